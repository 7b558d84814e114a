"""The search kernels that numba compiles: the k nearest rows of many queries, and all rows within a radius.

A tile of rows stays in cache while all queries of a call pass over it. The database goes in as addresses; callers keep the
memory alive.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from distillhash.hamming.vectors import (
    BLOCK,
    CHUNK,
    GROUP,
    distance_of,
    look_at_half,
    look_for_group,
    look_for_one,
    lowest_bit,
    nearer,
    nearer_by_half,
    prefetch_row,
)

TILE_WORDS = 4096  # of the database, passed over by all queries while they are in the innermost caches
HALF_ROWS = 4096  # that a lone query looks at by half of the planes
MOST_BY_HALF = 48  # of them that may be near enough by that; where there are more, the other half is read along
ROW_BITS = 47  # a candidate is its distance, then its row, in one integer
ROW_MASK = 2**ROW_BITS - 1


def compiled(function: Callable[..., Any]) -> Any:
    """``njit`` without the interpreter lock, kept on disk."""
    try:
        return njit(nogil=True, cache=True)(function)
    except RuntimeError:  # no folder to keep compiled code in: a read-only installation without a home
        return njit(nogil=True)(function)


part = njit(nogil=True, forceinline=True)  # of a kernel: a call would pass every field of every array


@part
def mask_of(query: Any, i: int, addresses: Any, allowed: Any, n: int, start: int, bound: int) -> Any:
    """:func:`nearer`, for the last rows too."""
    if start + 64 <= n:
        return nearer(query, i, addresses, allowed, start, bound)
    found = np.uint64(0)
    for row in range(start, n):
        if distance_of(query, i, addresses, allowed, row) < bound:
            found |= np.uint64(1) << np.uint64(row - start)
    return found


@compiled
def _keep_nearest(kept: Any, n_kept: int, k: int, counts: Any) -> Any:
    """Keep the k nearest of the candidates ``kept[:n_kept]``, in their order; how many stay, and the distance of the k-th."""
    counts[:] = 0
    for c in range(n_kept):
        counts[kept[c] >> ROW_BITS] += 1
    farthest, nearer = 0, 0
    while nearer + counts[farthest] < k and farthest < len(counts) - 1:
        nearer += counts[farthest]
        farthest += 1
    ties, place = k - nearer, 0
    for c in range(n_kept):
        distance = kept[c] >> ROW_BITS
        kept[place] = kept[c]
        place += distance < farthest or (distance == farthest and ties > 0)
        ties -= distance == farthest
    return place, farthest


@part
def _take_block(
    query: Any, i: int, addresses: Any, allowed: Any, n: int, start: int, k: int,
    bounds: Any, n_kept: Any, kept: Any, counts: Any,
) -> None:  # fmt: skip
    """Take the rows of a block that are nearer than the bound of query i into its candidates, which are by ascending row."""
    place = n_kept[i]
    for chunk in range(start, min(start + BLOCK, n), 64):
        found = mask_of(query, i, addresses, allowed, n, chunk, bounds[i])
        while found:
            row = chunk + lowest_bit(found)
            found &= found - np.uint64(1)
            kept[i, place] = distance_of(query, i, addresses, None, row) << ROW_BITS | row
            place += 1
    if place > kept.shape[1] - BLOCK:
        # Of two rows as far as the k-th the earlier one is in the answer, so what comes later must be nearer.
        place, bounds[i] = _keep_nearest(kept[i], place, k, counts)
    n_kept[i] = place


@compiled
def _nearest_rows(
    query: Any, q: int, addresses: Any, allowed: Any, n: int, k: int,
    bounds: Any, n_kept: Any, kept: Any, counts: Any, rows: Any, distances: Any,
) -> None:  # fmt: skip
    tile_rows = max(TILE_WORDS // query.shape[1] // BLOCK, 1) * BLOCK
    for tile in range(0, n, tile_rows):
        going = False
        for i in range(0, q, GROUP):
            size = min(GROUP, q - i)
            farthest = 0
            for g in range(i, i + size):
                farthest = max(farthest, bounds[g])
            if farthest == 0:
                continue  # each has k rows at distance 0, so no later row enters
            going = True
            for start in range(tile, min(tile + tile_rows, n), BLOCK):
                if start + BLOCK > n:
                    hits = np.uint64(2**size - 1)
                elif q == 1:
                    hits = look_for_one(query, 0, addresses, allowed, start, bounds)
                else:
                    hits = look_for_group(query, i, addresses, allowed, start, bounds)
                while hits:
                    g = i + lowest_bit(hits)
                    _take_block(query, g, addresses, allowed, n, start, k, bounds, n_kept, kept, counts)
                    hits &= hits - np.uint64(1)
        if not going:
            break
    for i in range(q):
        _write_answer(kept[i], n_kept[i], k, counts, rows[i], distances[i])


@part
def _write_answer(kept: Any, n_kept: int, k: int, counts: Any, rows: Any, distances: Any) -> None:
    """The k nearest candidates by (distance, row); they come by ascending row."""
    place, _ = _keep_nearest(kept, n_kept, k, counts)
    counts[:] = 0
    for c in range(place):
        counts[kept[c] >> ROW_BITS] += 1
    before = 0  # from now on, where each distance starts in the answer
    for distance in range(len(counts)):
        before, counts[distance] = before + counts[distance], before
    for c in range(place):
        distance = kept[c] >> ROW_BITS
        rows[counts[distance]], distances[counts[distance]] = kept[c] & ROW_MASK, distance
        counts[distance] += 1


@part
def _near_by_half(query: Any, addresses: Any, allowed: Any, start: int, stop: int, bounds: Any, found: Any) -> Any:
    """Rows that are nearer than the bound by the first half of their planes: how many, and where it was given up for there were too many.

    Their other half is asked for.
    """
    n_found = 0
    for chunk in range(start, stop, CHUNK):
        if look_at_half(query, 0, addresses, allowed, chunk, bounds):
            mask = nearer_by_half(query, 0, addresses, allowed, chunk, bounds[0])
            while mask:
                row = chunk + lowest_bit(mask)
                mask &= mask - np.uint64(1)
                prefetch_row(query, 0, addresses, None, row)
                found[n_found] = row
                n_found += 1
            if n_found > len(found) - CHUNK:
                return n_found, chunk + CHUNK
    return n_found, stop


@compiled
def _nearest_by_halves(
    query: Any, addresses: Any, allowed: Any, n: int, k: int,
    bounds: Any, n_kept: Any, kept: Any, counts: Any, found: Any, rows: Any, distances: Any,
) -> None:  # fmt: skip
    """As :func:`_nearest_rows` for a lone query over two planes and more: it reads half of them as long as that says enough.

    A lone query is as fast as memory. Once the bound is small, hardly any row is near enough by half of its bits, and the other half of
    nearly all is never read.
    """
    start, next_try, wait = 0, 0, HALF_ROWS
    while start < n and bounds[0] > 0:
        if start < next_try or start + HALF_ROWS > n:
            if start + BLOCK > n or look_for_one(query, 0, addresses, allowed, start, bounds):
                _take_block(query, 0, addresses, allowed, n, start, k, bounds, n_kept, kept, counts)
            start += BLOCK
            continue
        n_found, reached = _near_by_half(query, addresses, allowed, start, start + HALF_ROWS, bounds, found)
        if reached < start + HALF_ROWS:
            wait *= 2
            next_try = reached + wait
        else:
            wait = HALF_ROWS
        start = reached
        place = n_kept[0]
        for c in range(n_found):
            distance = distance_of(query, 0, addresses, None, found[c])
            if distance < bounds[0]:
                kept[0, place] = distance << ROW_BITS | found[c]
                place += 1
        if place > kept.shape[1] - BLOCK:
            place, bounds[0] = _keep_nearest(kept[0], place, k, counts)
        n_kept[0] = place
    _write_answer(kept[0], n_kept[0], k, counts, rows[0], distances[0])


def nearest_rows(
    query: NDArray[Any], q: int, addresses: tuple[int, ...], allowed: int | None, n: int, k: int
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """The k nearest allowed rows of the first ``q`` queries, by (distance, row), and -1 after the last.

    Args:
        query: ``(at least q, n_planes)`` words in C order; a multiple of GROUP of them unless ``q`` is 1.
        q: Queries that count; the others are there to fill up the last group.
        addresses: A tuple of ``n_planes`` addresses of ``n`` words of the dtype of ``query``.
        allowed: Address of ``n`` bytes, 0 for a row that may not be in the answer; or None.
        n: Rows.
        k: How many, from 1 to ``n``.
    """
    # numba takes seconds to compile what makes arrays, so they are made here.
    counts = np.empty(8 * query.itemsize * query.shape[1] + 1, np.int64)  # one for every distance
    bounds = np.zeros(len(query), np.int64)  # a row must be nearer than this: never so for a query that does not count
    bounds[:q] = len(counts)
    n_kept = np.zeros(q, np.int64)
    # Candidates: distance, then row, in one integer. More room would be emptied less often, but the bound would lag behind.
    kept = np.empty((q, min(k + min(k, max(16, k // 4)), n) + BLOCK), np.int64)
    rows = np.full((q, k), -1, np.int64)
    distances = np.full((q, k), -1, np.int32)
    if q == 1 and len(addresses) > 1:
        found = np.empty(MOST_BY_HALF + CHUNK, np.int64)
        _nearest_by_halves(query, addresses, allowed, n, k, bounds, n_kept, kept, counts, found, rows, distances)
    else:
        _nearest_rows(query, q, addresses, allowed, n, k, bounds, n_kept, kept, counts, rows, distances)
    return rows, distances


@compiled
def count_within(
    query: Any, q: int, addresses: Any, allowed: Any, n: int, bounds: Any, counts: Any, holds: Any
) -> None:
    """Add the allowed rows at every distance up to a radius to ``counts``, ``(q, radius + 1)``, and set where a block holds one.

    The other arguments are those of :func:`nearest_rows`, and ``bounds``, an int64 for every query: the radius + 1, or 0 for those
    that do not count; ``holds`` is ``(q, n_blocks) uint8``.
    """
    radius = counts.shape[1] - 1
    tile_rows = max(TILE_WORDS // query.shape[1] // BLOCK, 1) * BLOCK
    for tile in range(0, n, tile_rows):
        for i in range(0, q, GROUP):
            for start in range(tile, min(tile + tile_rows, n), BLOCK):
                if start + BLOCK > n:
                    hits = np.uint64(2 ** min(GROUP, q - i) - 1)
                elif q == 1:
                    hits = look_for_one(query, 0, addresses, allowed, start, bounds)
                else:
                    hits = look_for_group(query, i, addresses, allowed, start, bounds)
                while hits:
                    g = i + lowest_bit(hits)
                    hits &= hits - np.uint64(1)
                    holds[g, start // BLOCK] = 1
                    for chunk in range(start, min(start + BLOCK, n), 64):
                        found = mask_of(query, g, addresses, allowed, n, chunk, radius + 1)
                        while found:
                            counts[g, distance_of(query, g, addresses, None, chunk + lowest_bit(found))] += 1
                            found &= found - np.uint64(1)


@compiled
def fill_within(
    query: Any, q: int, addresses: Any, allowed: Any, n: int, holds: Any, places: Any, rows: Any, distances: Any
) -> None:
    """Write every hit at ``places[query, distance]``, which moves on: ordered by distance, then row, without a sort."""
    radius = places.shape[1] - 1
    for i in range(q):
        for block in range(holds.shape[1]):
            if holds[i, block] == 0:
                continue
            for chunk in range(block * BLOCK, min((block + 1) * BLOCK, n), 64):
                found = mask_of(query, i, addresses, allowed, n, chunk, radius + 1)
                while found:
                    row = chunk + lowest_bit(found)
                    found &= found - np.uint64(1)
                    distance = distance_of(query, i, addresses, None, row)
                    rows[places[i, distance]], distances[places[i, distance]] = row, distance
                    places[i, distance] += 1
