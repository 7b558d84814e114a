"""MLS3RDUH: reconstructing the local semantic similarity structure on the data manifold.

Paper: Tu, Mao, Wei, "MLS3RDUH: Deep Unsupervised Hashing via Manifold based Local Semantic Similarity Structure Reconstructing",
IJCAI 2020, pp. 3466-3472. https://doi.org/10.24963/ijcai.2020/479

Symbols: k, o -> sizes of an item's neighbourhoods by cosine and by diffusion; S -> targets_; u -> relaxed codes; K -> n_bits.
S_ij = 1 if j is in both neighbourhoods of i, 0 if in the cosine one only, else the cosine; where the two directions differ, 1 goes before
0 and 0 before the cosine; then S <- 2 S - 1. Loss: mean log cosh(<u_i, u_j> / K - S_ij) over a batch, u = tanh(outputs), i = j included.

Departs from the paper in:
1. The backbone is whatever the features come from, frozen unless fine-tuned; the paper trains a network end to end.
2. Optimiser, batch size and epochs are for a head on standardised features (released: SGD 0.04, batch 128, 150 epochs).
3. Items without mutual neighbours keep the cosines of all their pairs; the release also takes them out of the others' neighbourhoods.
4. An item does not count as its own diffusion neighbour. Negative cosines count as 0, as released.
5. More than ``max_train`` rows are sampled down, because S is n x n.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distillhash.errors import ParameterError
from distillhash.methods.base import TrainingSet
from distillhash.methods.head_hasher import HeadHasher, check_positive
from distillhash.pairs.diagnosis import describe_pairs
from distillhash.pairs.diffusion import diffuse, mutual_neighbour_graph
from distillhash.pairs.losses import log_cosh_loss
from distillhash.pairs.neighbours import nearest_neighbours
from distillhash.pairs.similarity import Floats, PairLabels, cosine_distances

Targets = NDArray[np.float16]
_BLOCK = 512


@dataclass(eq=False, repr=False)
class MLS3RDUH(HeadHasher):
    """Cosine targets, corrected where the manifold agrees or disagrees with them. Further hyper-parameters: see :class:`HeadHasher`.

    ``targets_`` is S; ``pairs_`` (and ``initial_pairs_``, the same) says which pairs became +1 or -1, for ``history_["diagnosis"]``.

    Attributes:
        neighbour_share: k as a share of the training rows.
        manifold_ratio: o in units of k.
        diffusion: Chance that the random walk goes on.
    """

    method = "mls3rduh"
    neighbour_share: float = 0.06
    manifold_ratio: float = 1.5
    diffusion: float = 0.99
    max_train: int = 10_000
    """The memory for all pairs is about 11 bytes times its square."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "neighbour_share", "manifold_ratio")
        if self.neighbour_share > 1:
            raise ParameterError(f"neighbour_share must be at most 1, got {self.neighbour_share}")
        if not 0 <= self.diffusion < 1:
            raise ParameterError(f"diffusion must lie in [0, 1), got {self.diffusion}")

    def _fit(self, given: TrainingSet) -> None:
        data = self._data(given)
        self.targets_: Targets = self._targets(cosine_distances(data.features))
        self.pairs_: PairLabels = (self.targets_ == 1).astype(np.int8) - (self.targets_ == -1).astype(np.int8)
        np.fill_diagonal(self.pairs_, 0)
        self.initial_pairs_ = self.pairs_
        self.history_["diagnosis"] = [describe_pairs(self.pairs_, "pairs settled by both neighbourhoods")]
        head = self._head(data)
        module = head.build(self.n_bits, self.seed)

        def loss(outputs: Tensor, rows: NDArray[np.intp]) -> Tensor:
            return log_cosh_loss(torch.tanh(outputs), torch.from_numpy(self.targets_[np.ix_(rows, rows)]).to(outputs))

        self.history_["loss"] = self._train(data.network(module), data, loss)
        self._keep(head, module)

    def _targets(self, distances: Floats) -> Targets:
        n = len(distances)
        k = min(max(1, int(self.neighbour_share * n)), n - 1)
        o = min(max(1, int(self.manifold_ratio * k)), n - 1)
        near = nearest_neighbours(distances, k)
        graph = mutual_neighbour_graph(distances, near)
        alone = np.diff(graph.indptr) == 0
        walks = diffuse(graph, self.diffusion)
        with np.errstate(divide="ignore"):
            np.divide(1, walks, out=walks)  # the longest walk first; out of reach is infinitely far
        reached = nearest_neighbours(walks, o)
        del walks
        settled = three_cases(near, reached, alone)
        targets = np.empty((n, n), np.float16)
        for start in range(0, n, _BLOCK):
            rows = slice(start, min(start + _BLOCK, n))
            cosines = np.maximum(1 - distances[rows], 0)
            # Which case wins where the directions differ: the larger code, see three_cases.
            case = np.maximum(settled[rows], settled[:, rows].T)
            targets[rows] = 2 * np.select([case == 2, case == 1], [np.float32(1), np.float32(0)], cosines) - 1
        np.fill_diagonal(targets, 1)
        return targets


def three_cases(near: NDArray[np.int32], reached: NDArray[np.int32], alone: NDArray[np.bool_]) -> NDArray[np.int8]:
    """For item i and each j: 2 if j is in both neighbourhoods of i, 1 if it is in ``near`` only, else 0; 0 for items ``alone``."""
    n = len(near)
    cases = np.zeros((n, n), np.int8)
    np.put_along_axis(cases, near, 1, axis=1)
    np.put_along_axis(cases, reached, 2 * np.take_along_axis(cases, reached, axis=1), axis=1)
    cases[alone] = 0
    cases[:, alone] = 0
    return cases
