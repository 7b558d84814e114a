"""Exact Hamming kernels over 64-bit words: popcount, the k nearest, everything within a radius.

Words are what :meth:`distillhash.codes.Codes.words` gives, ``(n, n_words) uint64``; any number of words will do. Answers are
ordered by distance, equal distances by ascending row, and do not depend on the number of threads.

numba compiles the kernels at first use and keeps them on disk; without numba, numpy gives identical answers more slowly. The
kernels run without the interpreter lock, groups of queries in a pool of threads, so searches from several threads are safe.

Distances of a block of rows go to a small buffer of bytes, which the compiler turns into vector popcounts; a block is looked at
one by one only if something in it can still enter the answer. A tile of rows stays in cache while a group of queries passes.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint64]
Ints = NDArray[np.int64]
Distances = NDArray[np.int32]

_BLOCK = 512  # rows whose distances are computed before any is looked at
_TILE = 32 * _BLOCK  # rows that a group of queries passes over together: 128 KiB of every word
_GROUP = 16  # queries of one kernel call
_MOST_KEPT = 1 << 22  # candidates of one kernel call, which bounds its memory for a large k

try:
    from numba import njit, types
    from numba.extending import intrinsic

    HAVE_NUMBA = True
except ImportError:  # pragma: no cover  # numba is a dependency; some platforms have no wheel of it
    HAVE_NUMBA = False

if HAVE_NUMBA:

    def _compiled(function: Callable[..., Any]) -> Any:
        try:
            return njit(nogil=True, cache=True)(function)
        except RuntimeError:  # no folder to keep compiled code in: a read-only installation without a home
            return njit(nogil=True)(function)

    @intrinsic
    def popcount64(typing_context: Any, value: Any) -> Any:
        """Number of set bits of a uint64, for use inside njit functions (LLVM ctpop, one instruction); returns int64."""
        del typing_context, value

        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            del context, signature
            return builder.ctpop(arguments[0])

        return types.int64(types.uint64), codegen

    @_compiled
    def _any_below(query: Any, planes: Any, start: int, bound: int, buffer: Any, limit: Any) -> bool:
        """Fill ``buffer`` with the distances of the rows from ``start``; whether any of them is below ``bound``."""
        size = min(len(buffer), planes.shape[1] - start)
        limit[0] = bound  # through the array, the bound takes the narrow type of the buffer: wider compares are slow
        narrow = limit[0]
        hit = False
        if size == _BLOCK:  # a loop of known length is what the compiler makes vectors of
            word, plane = query[0], planes[0, start : start + _BLOCK]
            for b in range(_BLOCK):
                buffer[b] = popcount64(word ^ plane[b])
            for w in range(1, len(planes)):
                word, plane = query[w], planes[w, start : start + _BLOCK]
                for b in range(_BLOCK):
                    buffer[b] += popcount64(word ^ plane[b])
            for b in range(_BLOCK):
                hit |= buffer[b] < narrow
        else:
            for b in range(size):
                buffer[b] = popcount64(query[0] ^ planes[0, start + b])
                for w in range(1, len(planes)):
                    buffer[b] += popcount64(query[w] ^ planes[w, start + b])
                hit |= buffer[b] < narrow
        return hit

    @_compiled
    def _nearest_compiled(query: Any, planes: Any, k: int, buffer: Any) -> Any:
        q, (n_words, n) = len(query), planes.shape
        capacity = 2 * k + _BLOCK
        kept_rows = np.empty((q, capacity), np.int64)  # candidates, by ascending row
        kept_distances = np.empty((q, capacity), np.int32)
        kept = np.zeros(q, np.int64)
        counts = np.zeros((q, 64 * n_words + 1), np.int64)  # candidates at every distance
        worst = np.full(q, 64 * n_words)  # distance of the k-th candidate, once there are k
        total = np.zeros(q, np.int64)  # candidates no farther than that
        limit = np.empty(1, buffer.dtype)
        for tile in range(0, n, _TILE):
            for i in range(q):
                for start in range(tile, min(tile + _TILE, n), _BLOCK):
                    # With k candidates, a later row as far as the worst loses the tie.
                    bound = worst[i] + (total[i] < k)
                    if not _any_below(query[i], planes, start, bound, buffer, limit):
                        continue
                    for b in range(min(_BLOCK, n - start)):
                        distance = np.int64(buffer[b])
                        if distance >= bound:
                            continue
                        kept_rows[i, kept[i]] = start + b
                        kept_distances[i, kept[i]] = distance
                        kept[i] += 1
                        counts[i, distance] += 1
                        total[i] += 1
                        while total[i] - counts[i, worst[i]] >= k:
                            total[i] -= counts[i, worst[i]]
                            counts[i, worst[i]] = 0
                            worst[i] -= 1
                        bound = worst[i] + (total[i] < k)
                    if kept[i] > capacity - _BLOCK:  # so there are more than k: the next block has room after this
                        at_worst = k - (total[i] - counts[i, worst[i]])
                        counts[i, worst[i]], total[i] = at_worst, k
                        place = 0
                        for c in range(kept[i]):
                            distance = kept_distances[i, c]
                            if distance < worst[i] or (distance == worst[i] and at_worst > 0):
                                at_worst -= distance == worst[i]
                                kept_rows[i, place], kept_distances[i, place] = kept_rows[i, c], distance
                                place += 1
                        kept[i] = place
        rows = np.full((q, k), -1, np.int64)
        found = np.full((q, k), -1, np.int32)
        for i in range(q):
            places = np.cumsum(counts[i]) - counts[i]  # where each distance starts in the answer
            for c in range(kept[i]):
                distance = kept_distances[i, c]
                place = places[distance]
                if distance <= worst[i] and place < k:
                    rows[i, place], found[i, place] = kept_rows[i, c], distance
                    places[distance] += 1
        return rows, found

    @_compiled
    def _count_within_compiled(query: Any, planes: Any, radius: int, buffer: Any) -> Any:
        counts = np.zeros((len(query), radius + 1), np.int64)
        limit = np.empty(1, buffer.dtype)
        n = planes.shape[1]
        for tile in range(0, n, _TILE):
            for i in range(len(query)):
                for start in range(tile, min(tile + _TILE, n), _BLOCK):
                    if _any_below(query[i], planes, start, radius + 1, buffer, limit):
                        for b in range(min(_BLOCK, n - start)):
                            if buffer[b] <= radius:
                                counts[i, buffer[b]] += 1
        return counts

    @_compiled
    def _fill_within_compiled(query: Any, planes: Any, places: Any, rows: Any, found: Any, buffer: Any) -> None:
        """Write every hit at ``places[query, distance]``, which moves on: ordered by distance, then row, without a sort."""
        radius = places.shape[1] - 1
        limit = np.empty(1, buffer.dtype)
        n = planes.shape[1]
        for tile in range(0, n, _TILE):
            for i in range(len(query)):
                for start in range(tile, min(tile + _TILE, n), _BLOCK):
                    if _any_below(query[i], planes, start, radius + 1, buffer, limit):
                        for b in range(min(_BLOCK, n - start)):
                            if buffer[b] <= radius:
                                place = places[i, buffer[b]]
                                rows[place], found[place] = start + b, buffer[b]
                                places[i, buffer[b]] += 1


def nearest(query: Words, database: Words, k: int) -> tuple[Ints, Distances]:
    """The ``k`` nearest rows of ``database`` to every query.

    Args:
        query: ``(q, n_words)``.
        database: ``(n, n_words)``; in Fortran order it is used as it is, else it is copied once a call.
        k: How many, at least 1.

    Returns:
        Rows ``(q, k) int64`` and distances ``(q, k) int32`` in bits, by (distance, row); -1 in places beyond ``n``.
    """
    k_held = min(k, len(database))
    rows = np.full((len(query), k), -1, np.int64)
    distances = np.full((len(query), k), -1, np.int32)
    if not HAVE_NUMBA:
        rows[:, :k_held], distances[:, :k_held] = nearest_numpy(query, database, k_held)
    elif k_held:
        planes = np.ascontiguousarray(database.T)

        def search(part: slice) -> None:
            found = _nearest_compiled(query[part], planes, k_held, _buffer(planes))
            rows[part, :k_held], distances[part, :k_held] = found

        _in_groups(search, len(query), max(1, min(_GROUP, _MOST_KEPT // k_held)))
    return rows, distances


def within(query: Words, database: Words, radius: int) -> tuple[Ints, Ints, Distances]:
    """All rows of ``database`` within ``radius`` bits of every query.

    Args:
        query: ``(q, n_words)``.
        database: ``(n, n_words)``; in Fortran order it is used as it is, else it is copied once a call.
        radius: In bits, at least 0.

    Returns:
        Limits ``(q + 1,) int64``, and rows (int64) and distances (int32, bits) of all hits: query i owns places
        ``limits[i]:limits[i + 1]``, by (distance, row).
    """
    if not HAVE_NUMBA:
        return within_numpy(query, database, radius)
    planes = np.ascontiguousarray(database.T)
    radius = min(radius, 64 * len(planes))
    counts = np.zeros((len(query), radius + 1), np.int64)

    def count(part: slice) -> None:
        counts[part] = _count_within_compiled(query[part], planes, radius, _buffer(planes))

    _in_groups(count, len(query), _GROUP)
    limits = np.concatenate([[0], np.cumsum(counts.sum(axis=1))])
    places = (np.cumsum(counts) - counts.ravel()).reshape(counts.shape)
    rows, distances = np.empty(limits[-1], np.int64), np.empty(limits[-1], np.int32)

    def fill(part: slice) -> None:
        _fill_within_compiled(query[part], planes, places[part], rows, distances, _buffer(planes))

    _in_groups(fill, len(query), _GROUP)
    return limits, rows, distances


def _buffer(planes: Words) -> NDArray[Any]:
    """A block of distances in the narrowest type that holds them: four words have 256 bits, one more than a byte holds."""
    return np.empty(_BLOCK, np.uint8 if len(planes) < 4 else np.uint16)


def _in_groups(work: Callable[[slice], None], n: int, size: int) -> None:
    groups = [slice(start, start + size) for start in range(0, n, size)]
    threads = min(len(groups), available_cores())
    if threads <= 1:
        for group in groups:
            work(group)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(work, groups))


def available_cores() -> int:
    """Cores this process may use (Linux knows; elsewhere all there are)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def nearest_numpy(query: Words, database: Words, k: int) -> tuple[Ints, Distances]:
    """:func:`nearest` in numpy alone, for ``k`` up to ``n``."""
    rows = np.empty((len(query), k), np.int64)
    distances = np.empty((len(query), k), np.int32)
    for i, code in enumerate(query):
        found = _distances(code, database)
        rows[i] = np.argsort(found, kind="stable")[:k]
        distances[i] = found[rows[i]]
    return rows, distances


def within_numpy(query: Words, database: Words, radius: int) -> tuple[Ints, Ints, Distances]:
    """:func:`within` in numpy alone."""
    limits = np.zeros(len(query) + 1, np.int64)
    rows, distances = [np.zeros(0, np.int64)], [np.zeros(0, np.int32)]
    for i, code in enumerate(query):
        found = _distances(code, database)
        hits = np.flatnonzero(found <= radius)
        hits = hits[np.argsort(found[hits], kind="stable")]
        rows.append(hits)
        distances.append(found[hits].astype(np.int32))
        limits[i + 1] = limits[i] + len(hits)
    return limits, np.concatenate(rows), np.concatenate(distances)


def _distances(code: NDArray[np.uint64], database: Words) -> NDArray[np.uint16]:
    return np.asarray(np.bitwise_count(database ^ code).sum(axis=1, dtype=np.uint16))  # 16 bits are sorted by radix
