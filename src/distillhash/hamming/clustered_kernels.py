"""The compiled searches over clustered codes (see :mod:`distillhash.hamming.clustered`), one query at a time."""

from __future__ import annotations

from typing import Any

import numpy as np

from distillhash.hamming.compiled import ROW_BITS, compiled, part
from distillhash.hamming.vectors import distance_of, lowest_bit, nearer, popcount64, prefetch

_VISIT = 32  # rows whose look costs as much as to find out where the rows of a centre are


@part
def _distances_to(query: Any, i: int, centres: Any, far: Any) -> None:
    for c in range(len(far)):
        far[c] = 0
    for w in range(len(centres)):
        word = query[i, w]
        for c in range(len(far)):
            far[c] += popcount64(np.uint64(word ^ centres[w, c]))


@part
def _order_by_distance(query: Any, i: int, centres: Any, far: Any, order: Any, counts: Any) -> None:
    """Distances of all centres to query i, and their order by distance (a counting sort)."""
    _distances_to(query, i, centres, far)
    counts[:] = 0
    for c in range(len(far)):
        counts[far[c]] += 1
    before = 0
    for distance in range(len(counts)):
        before, counts[distance] = before + counts[distance], before
    for c in range(len(far)):
        order[counts[far[c]]] = c
        counts[far[c]] += 1


@part
def _mask_until(query: Any, i: int, addresses: Any, start: int, stop: int, bound: int) -> Any:
    """Bit b says whether row ``start + b`` is before ``stop`` and nearer to query i than ``bound``; it reads 64 rows."""
    found = nearer(query, i, addresses, None, start, bound)
    if stop - start < 64:
        found &= (np.uint64(1) << np.uint64(stop - start)) - np.uint64(1)
    return found


@part
def _replace_top(heap: Any, k: int, key: int) -> None:
    """Put ``key`` in place of the largest of a heap."""
    place = 0
    while True:
        child = 2 * place + 1
        if child >= k:
            break
        if child + 1 < k and heap[child + 1] > heap[child]:
            child += 1
        if heap[child] <= key:
            break
        heap[place] = heap[child]
        place = child
    heap[place] = key


@compiled
def nearest_clustered(
    query: Any, centres: Any, rings: Any, reach: Any, addresses: Any, row_of: Any, allowed: Any, k: int, effort: int,
    exact: bool, far: Any, order: Any, counts: Any, runs: Any, heaps: Any,
) -> None:  # fmt: skip
    """The k nearest allowed rows of every query into ``heaps`` as distance and row in one integer; not sorted.

    A query that would look at more than ``effort`` rows is given up: its heap begins with -1. Or, if the answer need not be ``exact``, it
    ends with what was found so far.

    Args:
        query: ``(q, n_planes)``.
        centres: ``(n_planes, n_centres)``.
        rings: ``(n_centres, n_bits + 2)``: where the rows of a centre begin that are as far from it as the column says.
        reach: ``(n_centres, 2)``: distance of the nearest and the farthest row of a centre.
        addresses: Of the planes, rows in the order of ``row_of``, 64 rows more than there are.
        row_of: ``(n,)``: original rows.
        allowed: ``(n,)`` by original row, or None.
        k: How many.
        effort: Rows to look at, at most; a centre counts as some.
        exact: Whether to give up then.
        far: ``(n_centres,)`` to work in, and so are the others.
        order: ``(n_centres,)``.
        counts: ``(n_bits + 1,)``.
        runs: ``(centres at once, 2)``.
        heaps: ``(q, k)``, filled with a key that is larger than any.
    """
    farthest_reach = 0
    for c in range(len(reach)):
        farthest_reach = max(farthest_reach, reach[c, 1])
    for i in range(len(query)):
        heap = heaps[i]
        _order_by_distance(query, i, centres, far, order, counts)
        spent, place, at_once = np.int64(0), 0, 1
        while place < len(order):
            bound = heap[0] >> ROW_BITS  # a row may be as far as the k-th, if it is before it
            # Triangle inequality: a row at distance r from its centre is at least |far - r| from the query.
            if far[order[place]] - farthest_reach > bound:
                break
            # Memory is what takes time, and a branch on what is not there yet stops everything: so the runs of rows of several
            # centres are found first, then asked for, then looked at. The first few at once are few, for they lower the bound most.
            n_runs = 0
            while place < len(order) and n_runs < at_once:
                c = order[place]
                place += 1
                low, high = max(reach[c, 0], far[c] - bound), min(reach[c, 1], far[c] + bound)
                if low <= high:
                    runs[n_runs, 0], runs[n_runs, 1] = rings[c, low], rings[c, high + 1]
                    n_runs += 1
                elif far[c] - farthest_reach > bound:
                    break
            for run in range(n_runs):
                spent += runs[run, 1] - runs[run, 0] + _VISIT
                prefetch(query, i, addresses, None, runs[run, 0])
            if spent > effort and (exact or heap[0] >> ROW_BITS < rings.shape[1] - 2):
                if exact:
                    heap[0] = -1
                break
            at_once = min(2 * at_once, len(runs))
            for run in range(n_runs):
                stop = runs[run, 1]
                for start in range(runs[run, 0], stop, 64):
                    found = _mask_until(query, i, addresses, start, stop, (heap[0] >> ROW_BITS) + 1)
                    while found:
                        at = start + lowest_bit(found)
                        found &= found - np.uint64(1)
                        row = np.int64(row_of[at])
                        if allowed is not None and allowed[row] == 0:
                            continue
                        key = distance_of(query, i, addresses, None, at) << ROW_BITS | row
                        if key < heap[0]:
                            _replace_top(heap, k, key)


@compiled
def within_clustered(
    query: Any, i: int, centres: Any, rings: Any, reach: Any, addresses: Any, row_of: Any, allowed: Any, radius: int,
    effort: int, far: Any, keys: Any,
) -> int:  # fmt: skip
    """Number of allowed rows within ``radius`` of query i, or -1 if it is given up.

    Their keys, as in :func:`nearest_clustered`, are written as far as ``keys`` has room, not sorted.
    """
    _distances_to(query, i, centres, far)
    spent, n_found = np.int64(0), 0
    for c in range(len(far)):
        low, high = max(reach[c, 0], far[c] - radius), min(reach[c, 1], far[c] + radius)
        if low > high:
            continue
        first, stop = np.int64(rings[c, low]), np.int64(rings[c, high + 1])
        spent += stop - first + _VISIT
        if spent > effort:
            return -1
        for start in range(first, stop, 64):
            found = _mask_until(query, i, addresses, start, stop, radius + 1)
            while found:
                at = start + lowest_bit(found)
                found &= found - np.uint64(1)
                row = np.int64(row_of[at])
                if allowed is not None and allowed[row] == 0:
                    continue
                if n_found < len(keys):
                    keys[n_found] = distance_of(query, i, addresses, None, at) << ROW_BITS | row
                n_found += 1
    return n_found


@compiled
def count_ones(planes: Any, centre_of: Any, ones: Any, sizes: Any) -> None:
    """Add up, for every centre and bit, the rows that have the bit: ``ones`` is ``(n_centres, bits of all planes)``."""
    bits = ones.shape[1] // len(planes)
    for i in range(len(centre_of)):
        sizes[centre_of[i]] += 1
    for w in range(len(planes)):
        for i in range(len(centre_of)):
            word = np.uint64(planes[w, i])
            while word:
                ones[centre_of[i], bits * w + lowest_bit(word)] += 1
                word &= word - np.uint64(1)
