"""Training batches of items and their neighbours, for contrastive losses with many positives."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distillhash.methods.training import Inputs


class NeighbourhoodInputs:
    """Batches of images and, for each, a random one of its neighbourhood: ``(2 b, ...)``, the images first."""

    def __init__(self, inputs: Inputs, neighbours: NDArray[np.int32]) -> None:
        """``inputs`` of n rows, and the neighbourhood of each, ``(n, k)``."""
        from scipy.sparse import csr_array

        self._inputs, self._neighbours = inputs, neighbours
        n, k = neighbours.shape
        listed = csr_array((np.ones(n * k, bool), neighbours.ravel(), np.arange(0, n * k + 1, k)), shape=(n, n))
        self._graph = listed.maximum(listed.T).tocsr()
        self._drawn: NDArray[np.intp] = np.empty(0, np.intp)

    def __len__(self) -> int:
        return len(self._inputs)

    def batch(self, rows: NDArray[np.intp], rng: np.random.Generator) -> Tensor:
        """A view of each row, then a view of a partner of each; who was drawn is kept for :meth:`positives`."""
        partners = self._neighbours[rows, rng.integers(self._neighbours.shape[1], size=len(rows))]
        self._drawn = np.concatenate([rows, partners])
        return self._inputs.batch(self._drawn, rng)

    def pair(self, rows: NDArray[np.intp], rng: np.random.Generator, noise: float) -> tuple[Tensor, Tensor]:
        """The inputs' own."""
        return self._inputs.pair(rows, rng, noise)

    def positives(self, *, all_in_batch: bool) -> Tensor:
        """Who is whose positive in the last batch, ``(2 b, 2 b)`` bool: neighbours and equal images, or only the partners drawn."""
        n = len(self._drawn)
        if not all_in_batch:
            return torch.eye(n, dtype=torch.bool).roll(n // 2, dims=0)
        near = self._graph[self._drawn][:, self._drawn].toarray()
        return torch.from_numpy(near | np.equal.outer(self._drawn, self._drawn))
