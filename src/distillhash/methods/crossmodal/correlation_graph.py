"""UGACH's correlation graph: which items stand for one another, by their neighbours in either modality."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_BLOCK = 1024


class CorrelationGraph:
    """The positives of every item: the union of its nearest items in image space and in text space, itself among them.

    Directed, as in the authors' release: j among the positives of i does not make i one of j's.

    Attributes:
        positives: ``(n, 2 neighbours) intp``, row i the distinct positives of item i first, ascending.
        counts: ``(n,)``, how many they are.
    """

    def __init__(self, images: NDArray[Any], texts: NDArray[Any], neighbours: int) -> None:
        """Find the nearest by Euclidean distance.

        Args:
            images: ``(n, d)``.
            texts: ``(n, e)``, one vector an item.
            neighbours: Length of either list, the item itself included; 1 is no graph: the item is its only positive.
        """
        lists = np.concatenate([nearest_rows(side, neighbours) for side in (images, texts)], axis=1)
        lists.sort(axis=1)
        repeated = np.zeros(lists.shape, bool)
        repeated[:, 1:] = lists[:, 1:] == lists[:, :-1]
        order = np.argsort(repeated, axis=1, kind="stable")
        self.positives = np.take_along_axis(lists, order, axis=1)
        self.counts = (~repeated).sum(axis=1)

    def draw(self, rows: NDArray[np.intp], rng: np.random.Generator) -> NDArray[np.intp]:
        """One positive of each of ``rows``, uniformly."""
        return np.asarray(self.positives[rows, rng.integers(self.counts[rows])])

    def among(self, rows: NDArray[np.intp], candidates: NDArray[np.intp]) -> NDArray[np.bool_]:
        """``(len(rows), len(candidates))``: whether a candidate is a positive of a row."""
        return np.asarray((self.positives[rows][:, None, :] == candidates[None, :, None]).any(axis=2))


def nearest_rows(features: NDArray[Any], k: int) -> NDArray[np.intp]:
    """The ``min(k, n)`` nearest rows of each row by Euclidean distance, ``(n, k)``; the row itself is always the first.

    Ties go to the lower row. Memory is a block of 1,024 rows times n.
    """
    values = np.asarray(features, np.float64)
    squares = np.einsum("ij,ij->i", values, values)
    k = min(k, len(values))
    nearest = np.empty((len(values), k), np.intp)
    for start in range(0, len(values), _BLOCK):
        rows = np.arange(start, min(start + _BLOCK, len(values)))
        distances = squares - 2 * (values[rows] @ values.T)  # the row's own square changes no order
        distances[np.arange(len(rows)), rows] = -np.inf
        nearest[rows] = np.argsort(distances, axis=1, kind="stable")[:, :k]
    return nearest
