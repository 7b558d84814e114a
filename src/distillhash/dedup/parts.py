"""Connected parts: codes that chains of pairs within the radius join.

A group never crosses parts, so what is slow or needs memory (which of all pairs are near?) is answered for parts, and groups are then made
by comparing codes within a part. Only the parts are kept, never the pairs: two codes that are known to be of one part are not compared
again, and a crowd of a hundred thousand equal images costs a hundred thousand comparisons.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillhash.codes import Codes
from distillhash.dedup.tables import (
    EXHAUSTIVE,
    THREADS,
    Plan,
    Room,
    Words,
    bit_planes,
    bits_between,
    compiled,
    make_plan,
    ones,
)
from distillhash.hamming import pool


def connected_parts(codes: Codes, radius: int, *, exhaustive: int = EXHAUSTIVE) -> NDArray[np.int32]:
    """For every code the lowest row of its part; itself where nothing is near.

    Args:
        codes: ``n`` codes.
        radius: In bits, at least 0.
        exhaustive: Up to this many codes every pair is compared; above, a pair at the radius is missed with probability
            ``tables.MISSED`` at most, nearer ones far less, and not even then if others connect the two.

    Returns:
        ``(n,) int32``, the same for any number of threads.

    Raises:
        ParameterError: a negative radius.
    """
    plan = make_plan(codes, None, radius, exhaustive=exhaustive)
    words = codes.words()
    planes = bit_planes(words)
    threads = max(1, min(THREADS, pool.cores(), len(plan.bits)))
    tasks: list[Callable[[], Any]] = [
        partial(_joined, words, planes, plan, radius, range(first, len(plan.bits), threads)) for first in range(threads)
    ]
    parent = np.arange(len(codes), dtype=np.int32)
    for found in pool.run(tasks, threads):
        _merge(parent, found)
    return parent


def _joined(words: Words, planes: Words, plan: Plan, radius: int, tables: range) -> NDArray[np.int32]:
    """Parents by some of the tables."""
    n = len(words)
    parent = np.arange(n, dtype=np.int32)
    lists, room = np.empty((3, n), np.int32), Room.of(n)
    for table in tables:
        values, rows = room.table(planes, plan.bits[table], plan.k)
        _join_buckets(words, values, rows, plan.key_mask, plan.tolerance, radius, parent, lists)
    return parent


@compiled
def _root(parent: Any, row: int) -> int:
    while parent[row] != row:
        parent[row] = parent[parent[row]]
        row = parent[row]
    return row


@compiled
def _join(words: Any, parent: Any, a: int, b: int, radius: int) -> bool:
    """Whether two codes are of one part; they are from now on if they are near. The lower row leads a part."""
    a_root, b_root = _root(parent, a), _root(parent, b)
    if a_root == b_root:
        return True
    if bits_between(words, a, words, b) > radius:
        return False
    parent[max(a_root, b_root)] = min(a_root, b_root)
    return True


@compiled
def _join_buckets(
    words: Any, values: Any, rows: Any, key_mask: Any, tolerance: int, radius: int, parent: Any, lists: Any
) -> None:
    """Join what is near within each bucket of a table.

    A bucket's codes are kept in linked lists, one for each part that they are known to belong to. A code is held against a list until
    it proves to belong there, so that it meets a crowd once.
    """
    head, tail, after = lists[0], lists[1], lists[2]
    start = 0
    while start < len(values):
        key = values[start] & key_mask
        stop = start + 1
        while stop < len(values) and values[stop] & key_mask == key:
            stop += 1
        n_lists = 0
        for new in range(start, stop if stop - start > 1 else start):
            mine, number = -1, 0
            while number < n_lists:
                place = head[number]
                while place >= 0:
                    if ones(values[place] ^ values[new]) <= tolerance and _join(
                        words, parent, rows[place], rows[new], radius
                    ):
                        break
                    place = after[place]
                if place < 0:
                    number += 1
                elif mine < 0:
                    mine = number
                    number += 1
                else:  # the new code joins two lists; the last one takes the place of the second
                    after[tail[mine]] = head[number]
                    tail[mine] = tail[number]
                    n_lists -= 1
                    head[number], tail[number] = head[n_lists], tail[n_lists]
            after[new] = -1
            if mine < 0:
                head[n_lists] = tail[n_lists] = new
                n_lists += 1
            else:
                after[tail[mine]] = new
                tail[mine] = new
        start = stop


@compiled
def _merge(parent: Any, other: Any) -> None:
    """Join in ``parent`` what ``other`` joins; every row then names its part's lowest row."""
    for row in range(len(parent)):
        a, b = _root(parent, row), _root(parent, other[row])
        parent[max(a, b)] = min(a, b)
    for row in range(len(parent)):
        parent[row] = _root(parent, row)
