"""The searches in numpy alone: slow, short, and on every machine."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillhash.hamming.search import Distances, Ints, Planes


class Flat:
    """A database of ``(n_planes, n)`` words."""

    def __init__(self, database: Planes) -> None:
        self._database = database

    def nearest(self, query: Planes, k: int) -> tuple[Ints, Distances]:
        """Rows and distances ``(q, k)``, by (distance, row); ``k`` is at most ``n``."""
        rows = np.empty((query.shape[1], k), np.int64)
        distances = np.empty((query.shape[1], k), np.int32)
        for i, code in enumerate(query.T):
            found = self._distances(code)
            candidates = np.flatnonzero(found <= np.partition(found, k - 1)[k - 1])
            rows[i] = candidates[np.argsort(found[candidates], kind="stable")[:k]]
            distances[i] = found[rows[i]]
        return rows, distances

    def within(self, query: Planes, radius: int) -> tuple[Ints, Ints, Distances]:
        """Limits, rows and distances of all rows within ``radius``, by (distance, row)."""
        limits = np.zeros(query.shape[1] + 1, np.int64)
        rows, distances = [np.zeros(0, np.int64)], [np.zeros(0, np.int32)]
        for i, code in enumerate(query.T):
            found = self._distances(code)
            hits = np.flatnonzero(found <= radius)
            hits = hits[np.argsort(found[hits], kind="stable")]
            rows.append(hits)
            distances.append(found[hits].astype(np.int32))
            limits[i + 1] = limits[i] + len(hits)
        return limits, np.concatenate(rows), np.concatenate(distances)

    def _distances(self, code: NDArray[Any]) -> NDArray[np.uint16]:
        total = np.zeros(self._database.shape[1], np.uint16)  # 16 bits are sorted by radix
        for word, plane in zip(code, self._database, strict=True):
            total += np.bitwise_count(plane ^ word)
        return total
