"""Exact Hamming kernels over 64-bit words: popcount, the k nearest, everything within a radius.

Words are what :meth:`distillhash.codes.Codes.words` gives, ``(n, n_words) uint64``. Results are ordered by distance, equal
distances by ascending row.
numba compiles the kernels at first use and keeps them; without numba, numpy gives identical answers more slowly.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint64]
Ints = NDArray[np.int64]

try:
    from numba import njit, prange, types
    from numba.extending import intrinsic

    HAVE_NUMBA = True
except ImportError:  # pragma: no cover  # numba is a dependency; some platforms have no wheel of it
    HAVE_NUMBA = False

if HAVE_NUMBA:

    @intrinsic
    def popcount64(typing_context: Any, value: Any) -> Any:
        """Number of set bits of a uint64, for use inside njit functions (LLVM ctpop, one instruction); returns int64."""
        del typing_context, value

        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            del context, signature
            return builder.ctpop(arguments[0])

        return types.int64(types.uint64), codegen

    @njit(parallel=True, nogil=True, cache=True)
    def _nearest_compiled(query: Any, database: Any, k: int, levels: int) -> Any:
        rows = np.full((len(query), k), -1, np.int64)
        found = np.full((len(query), k), -1, np.int32)
        for i in prange(len(query)):
            distances = np.empty(len(database), np.uint16)
            counts = np.zeros(levels, np.int64)
            for j in range(len(database)):
                distance = 0
                for w in range(query.shape[1]):
                    distance += popcount64(query[i, w] ^ database[j, w])
                distances[j] = distance
                counts[distance] += 1
            # Where each level starts in the answer; rows are visited in order, so a level fills by ascending row.
            place = np.empty(levels, np.int64)
            before = 0
            for level in range(levels):
                place[level] = before
                before += counts[level]
            last = 0
            while last < levels - 1 and place[last] + counts[last] < k:
                last += 1
            for j in range(len(database)):
                level = distances[j]
                if level <= last and place[level] < k:
                    rows[i, place[level]] = j
                    found[i, place[level]] = level
                    place[level] += 1
        return rows, found

    @njit(parallel=True, nogil=True, cache=True)
    def _count_within_compiled(query: Any, database: Any, radius: int) -> Any:
        counts = np.zeros(len(query), np.int64)
        for i in prange(len(query)):
            total = 0
            for j in range(len(database)):
                distance = 0
                for w in range(query.shape[1]):
                    distance += popcount64(query[i, w] ^ database[j, w])
                total += distance <= radius
            counts[i] = total
        return counts

    @njit(parallel=True, nogil=True, cache=True)
    def _within_compiled(query: Any, database: Any, radius: int, limits: Any) -> Any:
        rows = np.empty(limits[-1], np.int64)
        found = np.empty(limits[-1], np.int32)
        for i in prange(len(query)):
            place = limits[i]
            for j in range(len(database)):
                distance = 0
                for w in range(query.shape[1]):
                    distance += popcount64(query[i, w] ^ database[j, w])
                if distance <= radius:
                    rows[place], found[place] = j, distance
                    place += 1
        return rows, found


def nearest(query: Words, database: Words, k: int, n_bits: int) -> tuple[Ints, NDArray[np.int32]]:
    """The ``k`` nearest rows of ``database`` to every query.

    Args:
        query: ``(q, n_words)``.
        database: ``(n, n_words)``.
        k: How many, at least 1.
        n_bits: Code length; distances lie in 0..n_bits.

    Returns:
        Rows ``(q, k) int64`` and distances ``(q, k) int32``, by (distance, row); -1 in places beyond ``n``.
    """
    if HAVE_NUMBA:
        rows, distances = _nearest_compiled(query, database, k, n_bits + 1)
        return rows, distances
    return nearest_numpy(query, database, k)


def within(query: Words, database: Words, radius: int) -> tuple[Ints, Ints, NDArray[np.int32]]:
    """All rows of ``database`` within ``radius`` bits of every query.

    Returns:
        ``limits (q + 1,)``, and rows and distances of all hits: query i owns places ``limits[i]:limits[i + 1]``, by (distance, row).
    """
    if not HAVE_NUMBA:
        return within_numpy(query, database, radius)
    limits = np.concatenate([[0], np.cumsum(_count_within_compiled(query, database, radius))])
    rows, distances = _within_compiled(query, database, radius, limits)
    for start, stop in pairwise(limits):
        order = np.argsort(distances[start:stop], kind="stable")
        rows[start:stop], distances[start:stop] = rows[start:stop][order], distances[start:stop][order]
    return limits, rows, distances


def nearest_numpy(query: Words, database: Words, k: int) -> tuple[Ints, NDArray[np.int32]]:
    """:func:`nearest` in numpy alone."""
    rows = np.full((len(query), k), -1, np.int64)
    distances = np.full((len(query), k), -1, np.int32)
    for i, code in enumerate(query):
        found = _distances(code, database)
        order = np.argsort(found, kind="stable")[:k]
        rows[i, : len(order)], distances[i, : len(order)] = order, found[order]
    return rows, distances


def within_numpy(query: Words, database: Words, radius: int) -> tuple[Ints, Ints, NDArray[np.int32]]:
    """:func:`within` in numpy alone."""
    limits, rows, distances = [0], [], []
    for code in query:
        found = _distances(code, database)
        order = np.argsort(found, kind="stable")
        order = order[: np.count_nonzero(found <= radius)]
        rows.append(order)
        distances.append(found[order])
        limits.append(limits[-1] + len(order))
    empty: list[Any] = [np.zeros(0, np.int64)]
    flat = np.concatenate(rows or empty).astype(np.int64)
    return np.array(limits, np.int64), flat, np.concatenate(distances or empty).astype(np.int32)


def _distances(code: NDArray[np.uint64], database: Words) -> NDArray[np.int32]:
    return np.asarray(np.bitwise_count(database ^ code).sum(axis=1, dtype=np.int32))
