"""The searches by FAISS's flat binary index, where numba is absent; answers are repaired to be those of the other engines.

FAISS finds the right distances and leaves open which rows at the k-th distance it names. So it is asked twice: for the k-th
distance of every query, then for all rows within it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillhash.hamming.search import Distances, Ints, Planes


class Flat:
    """A database of ``(n_planes, n)`` words, which is copied. Pad bits are zero, so any length goes in as whole words."""

    def __init__(self, database: Planes) -> None:
        import faiss

        self._index = faiss.IndexBinaryFlat(8 * database.itemsize * len(database))
        self._index.add(_packed(database))

    def nearest(self, query: Planes, k: int) -> tuple[Ints, Distances]:
        """Rows and distances ``(q, k)``, by (distance, row); ``k`` is at most ``n``."""
        packed = _packed(query)
        farthest = self._index.search(packed, k)[0].max(axis=1)
        rows = np.empty((len(packed), k), np.int64)
        distances = np.empty((len(packed), k), np.int32)
        for radius in np.unique(farthest):
            some = np.flatnonzero(farthest == radius)
            limits, found, far = self._within(packed[some], int(radius))
            for i, start in zip(some, limits, strict=False):
                rows[i], distances[i] = found[start : start + k], far[start : start + k]
        return rows, distances

    def within(self, query: Planes, radius: int) -> tuple[Ints, Ints, Distances]:
        """Limits, rows and distances of all rows within ``radius``, by (distance, row)."""
        return self._within(_packed(query), radius)

    def _within(self, packed: NDArray[np.uint8], radius: int) -> tuple[Ints, Ints, Distances]:
        limits, distances, rows = self._index.range_search(packed, radius + 1)  # FAISS finds what is nearer than this
        limits = limits.astype(np.int64)
        owners = np.repeat(np.arange(len(packed)), limits[1:] - limits[:-1])
        order = np.lexsort((rows, distances, owners))
        return limits, rows[order].astype(np.int64), distances[order].astype(np.int32)


def _packed(planes: Planes) -> NDArray[Any]:
    return np.ascontiguousarray(planes.T).view(np.uint8).reshape(planes.shape[1], planes.itemsize * len(planes))
