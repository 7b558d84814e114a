"""Groups of near-duplicates without chaining: every member lies within the radius of its group's keeper.

Items are taken in order of preference. One that no group holds yet becomes a keeper and takes every free item within the radius of
*itself*, not of its members: A~B~C with A far from C never becomes one group. Two keepers are never within the radius of each other
unless a rule keeps them apart.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillhash.codes import Codes
from distillhash.dedup.parts import connected_parts
from distillhash.dedup.tables import EXHAUSTIVE, bits_between, compiled
from distillhash.errors import DataError

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Rules:
    """Pairs that are never linked, whatever their distance.

    Attributes:
        places: ``(n,) int64``; two items of the same place (a folder, a file) are not linked, -1 is no place.
        apart: ``(m, 2) int64`` pairs of rows, as people told "not a duplicate".
    """

    places: NDArray[np.int64] | None = None
    apart: NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, 2), np.int64))

    def arrays(self, n: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Places, and the pairs as sorted numbers, as the kernels take them."""
        places = np.full(n, -1, np.int64) if self.places is None else np.asarray(self.places, np.int64)
        low, high = np.sort(self.apart, axis=1).T
        return places, np.unique(low * n + high)


@dataclass(frozen=True)
class Stars:
    """Groups as two columns.

    Attributes:
        keeper: ``(n,) int64`` row of every item's keeper; its own for keepers and for items without a duplicate.
        distance: ``(n,) int32`` bits to the keeper.
    """

    keeper: Rows
    distance: NDArray[np.int32]

    def groups(self) -> list[Rows]:
        """Rows of every group of two or more, keeper first, then by (distance, row); groups by keeper's row."""
        rows = np.flatnonzero(np.bincount(self.keeper, minlength=len(self.keeper))[self.keeper] > 1)
        away = self.keeper[rows] != rows
        rows = rows[np.lexsort((rows, self.distance[rows], away, self.keeper[rows]))]
        return np.split(rows, np.flatnonzero(np.diff(self.keeper[rows])) + 1) if len(rows) else []


@compiled
def _blocked(a: int, b: int, places: Any, apart: Any) -> bool:
    if places[a] >= 0 and places[a] == places[b]:
        return True
    if len(apart) == 0:
        return False
    pair = min(a, b) * len(places) + max(a, b)
    place = np.searchsorted(apart, pair)
    return bool(place < len(apart) and apart[place] == pair)


@compiled
def _claim(words: Any, starts: Any, members: Any, radius: int, places: Any, apart: Any) -> Any:
    """Stars within parts; ``members`` holds each part's rows by falling preference, and is used up."""
    keeper = np.arange(len(words))
    distance = np.zeros(len(words), np.int32)
    for part in range(len(starts) - 1):
        first, stop = starts[part], starts[part + 1]
        while first < stop:
            item = members[first]
            first += 1
            free = first  # what is taken leaves, so a crowd is walked through once
            for place in range(first, stop):
                row = members[place]
                found = bits_between(words, item, words, row)
                if found <= radius and not _blocked(item, row, places, apart):
                    keeper[row], distance[row] = item, found
                else:
                    members[free] = row
                    free += 1
            stop = free
    return keeper, distance


@compiled
def _mark(words: Any, starts: Any, members: Any, radius: int, places: Any, apart: Any) -> Any:
    """Which rows the rules leave a partner; ``members`` holds each part's rows by place, so that those of one place are stepped over."""
    marked = np.zeros(len(words), np.bool_)
    for part in range(len(starts) - 1):
        first, stop = starts[part], starts[part + 1]
        run, run_stop = first, first
        for at in range(first, stop):
            item = members[at]
            if at == run_stop:
                run = at
                run_stop += 1
                while run_stop < stop and places[item] >= 0 and places[members[run_stop]] == places[item]:
                    run_stop += 1
            other = first
            while other < stop and not marked[item]:
                if other == run:
                    other = run_stop
                    continue
                row = members[other]
                if bits_between(words, item, words, row) <= radius and not _blocked(item, row, places, apart):
                    marked[item] = marked[row] = True
                other += 1
    return marked


def near_rows(
    codes: Codes,
    radius: int,
    *,
    rules: Rules | None = None,
    parts: NDArray[np.int32] | None = None,
    exhaustive: int = EXHAUSTIVE,
) -> Rows:
    """Rows that have at least one other within ``radius`` bits that the rules let them be linked to, ascending.

    Args:
        codes: ``n`` codes.
        radius: In bits, at least 0.
        rules: Pairs that are never linked.
        parts: What :func:`distillhash.dedup.parts.connected_parts` found for these codes and this radius; None finds them here.
        exhaustive: As in :func:`star_groups`.
    """
    parts = connected_parts(codes, radius, exhaustive=exhaustive) if parts is None else parts
    places, apart = (rules or Rules()).arrays(len(codes))
    starts, members = _by_part(parts, places)
    if rules is None:
        return np.sort(members)
    return np.flatnonzero(_mark(codes.words(), starts, members, radius, places, apart)).astype(np.int64)


def star_groups(
    codes: Codes,
    radius: int,
    *,
    order: Rows | None = None,
    rules: Rules | None = None,
    parts: NDArray[np.int32] | None = None,
    exhaustive: int = EXHAUSTIVE,
) -> Stars:
    """Stars around keepers; memory linear in the number of codes, deterministic.

    Args:
        codes: ``n`` codes.
        radius: In bits, at least 0.
        order: Rows by falling preference as keepers, all of them once; None takes them as they come.
        rules: Pairs that are never linked.
        parts: ``(n,)`` numbers that two codes within the radius share, from :func:`distillhash.dedup.parts.connected_parts`; None finds
            them here.
        exhaustive: Up to this many codes every pair is compared; above, a pair at the radius is missed with probability
            ``tables.MISSED`` at most, nearer ones far less.

    Raises:
        DataError: ``order`` is not a permutation.
        ParameterError: a negative radius.
    """
    n = len(codes)
    order = np.arange(n, dtype=np.int64) if order is None else np.asarray(order, np.int64)
    if len(order) != n or not np.array_equal(np.sort(order), np.arange(n)):
        raise DataError(f"the order must hold each of the {n} rows once")
    parts = connected_parts(codes, radius, exhaustive=exhaustive) if parts is None else parts
    places, apart = (rules or Rules()).arrays(n)
    rank = np.empty(n, np.int64)
    rank[order] = np.arange(n)
    starts, members = _by_part(parts, rank)
    return Stars(*_claim(codes.words(), starts, members, radius, places, apart))


def _by_part(parts: NDArray[np.int32], rank: NDArray[np.int64]) -> tuple[Rows, Rows]:
    """Rows of all parts of two or more, part by part and by ``rank`` within, and where each part starts, and the end."""
    _, number, size = np.unique(parts, return_inverse=True, return_counts=True)
    rows = np.flatnonzero(size[number] > 1)
    rows = rows[np.lexsort((rank[rows], number[rows]))]
    return np.concatenate([[0], np.cumsum(size[size > 1])]).astype(np.int64), rows
