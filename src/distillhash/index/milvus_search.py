"""Exact answers, ties by ascending id, from a server that breaks ties as it likes and answers with a bounded number of items.

Milvus gives the ``limit`` nearest items, at most 16,384, and among equally distant ones any. So:

- The k nearest: ask for more than k. All items nearer than the k-th are there in any case. If the answer goes on beyond the k-th
  distance, or holds all items, every item at that distance is there as well, and the lowest ids are chosen. Otherwise the items at
  exactly that distance are fetched by ascending ranges of ids until there are enough.
- Everything within a radius: one request; where its answer is full, the range of ids is split and each part asked for.

With an approximate index (``BIN_IVF_FLAT``) the same steps order what the server finds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from distillhash.index.rows import LARGEST_ID

Pair = tuple[int, int]  # (distance, id)
IdRange = tuple[int, int]  # first and last id
ALL_IDS: IdRange = (0, LARGEST_ID)
_ROOM = 16  # items asked for beyond k, at least


class Fetch(Protocol):
    """One request: for every code up to ``limit`` pairs, nearest first, with distances in ``least..most`` and ids in ``ids``."""

    def __call__(
        self, codes: Sequence[bytes], limit: int, *, least: int = 0, most: int | None = None, ids: IdRange = ALL_IDS
    ) -> list[list[Pair]]:
        """Pairs of every code; equal distances in any order. ``most=None`` asks for no radius."""


def nearest(fetch: Fetch, codes: Sequence[bytes], k: int, largest: int) -> list[list[Pair]]:
    """The ``k`` nearest of every code by (distance, id).

    Args:
        fetch: The server.
        codes: Packed codes.
        k: At most ``largest``.
        largest: The most items the server gives in one answer.
    """
    limit = min(largest, k + max(k, _ROOM))
    answers = []
    for code, pairs in zip(codes, fetch(codes, limit), strict=True):
        found = sorted(pairs)
        if len(found) == limit and len(found) >= k and found[-1][0] == found[k - 1][0]:
            worst = found[k - 1][0]
            nearer = [pair for pair in found if pair[0] < worst]
            found = nearer + _lowest(fetch, code, worst, k - len(nearer), largest)
        answers.append(found[:k])
    return answers


def within(fetch: Fetch, codes: Sequence[bytes], radius: int, largest: int) -> list[list[Pair]]:
    """Everything within ``radius`` of every code by (distance, id)."""
    answers = []
    for code, pairs in zip(codes, fetch(codes, largest, most=radius), strict=True):
        if len(pairs) == largest:
            pairs = [pair for part in _parts(fetch, code, 0, radius, largest) for pair in part]
        answers.append(sorted(pairs))
    return answers


def _lowest(fetch: Fetch, code: bytes, distance: int, n: int, largest: int) -> list[Pair]:
    """The ``n`` items of lowest id at exactly this distance."""
    found: list[Pair] = []
    for part in _parts(fetch, code, distance, distance, largest):
        found += sorted(part)
        if len(found) >= n:
            break
    return found[:n]


def _parts(fetch: Fetch, code: bytes, least: int, most: int, largest: int) -> Iterator[list[Pair]]:
    """All items with distances in ``least..most``, by ascending ranges of ids, each small enough for one answer."""
    waiting = [ALL_IDS]
    while waiting:
        first, last = waiting.pop()
        pairs = fetch([code], largest, least=least, most=most, ids=(first, last))[0]
        if len(pairs) < largest or first == last:
            yield pairs
            continue
        ids = sorted(identifier for _, identifier in pairs)
        middle = max(first, min(ids[len(ids) // 2], last - 1)) if largest > 1 else (first + last) // 2
        waiting += [(middle + 1, last), (first, middle)]  # the lower part is taken next
