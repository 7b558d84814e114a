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

from distillhash.codes import Codes, check_same_length
from distillhash.dedup.buckets import EXHAUSTIVE, Buckets, bits_between, compiled, key_of
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
def _claim(words: Any, bits: Any, starts: Any, members: Any, order: Any, radius: int, places: Any, apart: Any) -> Any:
    keeper = np.full(len(words), -1, np.int64)
    distance = np.zeros(len(words), np.int32)
    stops = starts[:, 1:].copy()
    for item in order:
        if keeper[item] >= 0:
            continue
        keeper[item] = item
        for table in range(len(bits)):
            bucket = key_of(words[item], bits[table])
            free = starts[table, bucket]  # what is taken leaves its bucket, so a crowd is walked through once
            for place in range(starts[table, bucket], stops[table, bucket]):
                row = members[table, place]
                if keeper[row] >= 0:
                    continue
                found = bits_between(words[item], words[row], radius)
                if found <= radius and not _blocked(item, row, places, apart):
                    keeper[row], distance[row] = item, found
                else:
                    members[table, free] = row
                    free += 1
            stops[table, bucket] = free
    return keeper, distance


@compiled
def _mark(words: Any, bits: Any, starts: Any, members: Any, radius: int, places: Any, apart: Any) -> Any:
    marked = np.zeros(len(words), np.bool_)
    for item in range(len(words)):
        for table in range(len(bits)):
            if marked[item]:
                break
            bucket = key_of(words[item], bits[table])
            for place in range(starts[table, bucket], starts[table, bucket + 1]):
                row = members[table, place]
                if row == item or bits_between(words[item], words[row], radius) > radius:
                    continue
                if not _blocked(item, row, places, apart):
                    marked[item] = marked[row] = True
                    break
    return marked


@compiled
def _nearest_of(
    query: Any, words: Any, bits: Any, starts: Any, members: Any, radius: int, query_places: Any, places: Any
) -> Any:
    nearest = np.full(len(query), -1, np.int64)
    distance = np.full(len(query), -1, np.int32)
    matches = np.zeros(len(query), np.int64)
    seen = np.full(len(words), -1, np.int64)  # the query that counted a row already, in an earlier table
    for item in range(len(query)):
        for table in range(len(bits)):
            bucket = key_of(query[item], bits[table])
            for place in range(starts[table, bucket], starts[table, bucket + 1]):
                row = members[table, place]
                if seen[row] == item or (query_places[item] >= 0 and query_places[item] == places[row]):
                    continue
                found = bits_between(query[item], words[row], radius)
                if found > radius:
                    continue
                seen[row] = item
                matches[item] += 1
                best = nearest[item]
                if best < 0 or found < distance[item] or (found == distance[item] and row < best):
                    nearest[item], distance[item] = row, found
    return nearest, distance, matches


def near_rows(codes: Codes, radius: int, *, rules: Rules | None = None, exhaustive: int = EXHAUSTIVE) -> Rows:
    """Rows that have at least one other within ``radius`` bits that the rules let them be linked to, ascending."""
    buckets = Buckets.of(codes.words(), codes.n_bits, radius, exhaustive=exhaustive)
    places, apart = (rules or Rules()).arrays(len(codes))
    marked = _mark(buckets.words, buckets.bits, buckets.starts, buckets.members, radius, places, apart)
    return np.flatnonzero(marked).astype(np.int64)


def star_groups(
    codes: Codes,
    radius: int,
    *,
    order: Rows | None = None,
    rules: Rules | None = None,
    exhaustive: int = EXHAUSTIVE,
) -> Stars:
    """Stars around keepers; memory linear in the number of codes, deterministic.

    Args:
        codes: ``n`` codes.
        radius: In bits, at least 0.
        order: Rows by falling preference as keepers, all of them once; None takes them as they come.
        rules: Pairs that are never linked.
        exhaustive: Up to this many codes every pair is compared; above, a pair at the radius is missed with probability
            ``buckets.MISSED`` at most, nearer ones far less.

    Raises:
        DataError: ``order`` is not a permutation.
        ParameterError: a negative radius.
    """
    n = len(codes)
    order = np.arange(n, dtype=np.int64) if order is None else np.asarray(order, np.int64)
    if len(order) != n or not np.array_equal(np.sort(order), np.arange(n)):
        raise DataError(f"the order must hold each of the {n} rows once")
    buckets = Buckets.of(codes.words(), codes.n_bits, radius, exhaustive=exhaustive)
    places, apart = (rules or Rules()).arrays(n)
    keeper, distance = _claim(
        buckets.words, buckets.bits, buckets.starts, buckets.members, order, radius, places, apart
    )
    return Stars(keeper, distance)


@dataclass(frozen=True)
class Matches:
    """The nearest item of another collection, for every query.

    Attributes:
        row: ``(q,) int64`` the nearest within the radius, equal distances by the lower row; -1 where there is none.
        distance: ``(q,) int32`` bits; -1 where there is none.
        count: ``(q,) int64`` how many lie within the radius.
    """

    row: Rows
    distance: NDArray[np.int32]
    count: NDArray[np.int64]


def match(
    query: Codes,
    database: Codes,
    radius: int,
    *,
    query_places: Rows | None = None,
    database_places: Rows | None = None,
    exhaustive: int = EXHAUSTIVE,
) -> Matches:
    """For every query code the nearest of ``database`` within ``radius`` bits; order of the items changes nothing but equal distances.

    Args:
        query: ``q`` codes.
        database: Codes of the same length.
        radius: In bits, at least 0.
        query_places: ``(q,)`` numbers; a query and an item of the same number are not compared (the same file in both), -1 is none.
        database_places: The same for the database.
        exhaustive: As in :func:`star_groups`.
    """
    check_same_length(query, database)
    buckets = Buckets.of(database.words(), database.n_bits, radius, exhaustive=exhaustive)
    ours = np.full(len(query), -1, np.int64) if query_places is None else query_places
    theirs = np.full(len(database), -1, np.int64) if database_places is None else database_places
    found = _nearest_of(
        query.words(), buckets.words, buckets.bits, buckets.starts, buckets.members, radius, ours, theirs
    )
    return Matches(*found)
