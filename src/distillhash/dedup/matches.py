"""The nearest item of another collection: what a training set holds of a test set, or a collection of an inbox."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillhash.codes import Codes, check_same_length
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

Rows = NDArray[np.int64]


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


@dataclass(frozen=True)
class _Side:
    """One collection as the kernel takes it: codes as words and as planes of bits, and a number for the file of each."""

    words: Words
    planes: Words
    places: Rows

    @classmethod
    def of(cls, codes: Codes, places: Rows | None) -> _Side:
        words = codes.words()
        return cls(words, bit_planes(words), np.full(len(codes), -1, np.int64) if places is None else places)


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

    Memory is linear in the number of codes, time in the number of pairs within the radius, for they are counted.

    Args:
        query: ``q`` codes.
        database: Codes of the same length.
        radius: In bits, at least 0.
        query_places: ``(q,)`` numbers; a query and an item of the same number are not compared (the same file in both), -1 is none.
        database_places: The same for the database.
        exhaustive: Up to this many codes in ``database`` every pair is compared; above, a pair at the radius is missed with probability
            ``tables.MISSED`` at most, nearer ones far less.

    Raises:
        DataError: the lengths differ.
        ParameterError: a negative radius.
    """
    check_same_length(query, database)
    plan = make_plan(query, database, radius, exhaustive=exhaustive)
    sides = _Side.of(query, query_places), _Side.of(database, database_places)
    threads = max(1, min(THREADS, pool.cores(), len(plan.bits)))
    tasks: list[Callable[[], Matches]] = [
        partial(_by_tables, *sides, plan, radius, range(first, len(plan.bits), threads)) for first in range(threads)
    ]
    found, *more = pool.run(tasks, threads)
    for other in more:
        keys = [np.where(one.row < 0, np.inf, one.distance * len(database) + one.row) for one in (found, other)]
        better = keys[1] < keys[0]
        found = Matches(
            np.where(better, other.row, found.row),
            np.where(better, other.distance, found.distance),
            found.count + other.count,
        )
    return found


def _by_tables(query: _Side, database: _Side, plan: Plan, radius: int, tables: range) -> Matches:
    """What some of the tables find."""
    n = len(query.words)
    found = Matches(np.full(n, -1, np.int64), np.full(n, -1, np.int32), np.zeros(n, np.int64))
    masks = plan.masks(query.words.shape[1])
    rooms = Room.of(n), Room.of(len(database.words))
    for table in tables:
        bits = plan.bits[table]
        _match_buckets(
            query.words,
            database.words,
            query.places,
            database.places,
            *rooms[0].table(query.planes, bits, plan.k),
            *rooms[1].table(database.planes, bits, plan.k),
            *masks,
            plan.key_mask,
            plan.tolerance,
            radius,
            table,
            found.row,
            found.distance,
            found.count,
        )
    return found


@compiled
def _passed_before(
    query: Any, item: int, words: Any, row: int, keys: Any, others: Any, tolerance: int, table: int
) -> bool:
    """Whether an earlier table has brought these two together."""
    for earlier in range(table):
        differing = 0
        for word in range(words.shape[1]):
            difference = query[item, word] ^ words[row, word]
            if difference & keys[earlier, word] != 0:
                differing = tolerance + 1
                break
            differing += ones(difference & others[earlier, word])
        if differing <= tolerance:
            return True
    return False


@compiled
def _match_buckets(
    query: Any,
    words: Any,
    query_places: Any,
    places: Any,
    query_values: Any,
    query_rows: Any,
    values: Any,
    rows: Any,
    keys: Any,
    others: Any,
    key_mask: Any,
    tolerance: int,
    radius: int,
    table: int,
    nearest: Any,
    distance: Any,
    count: Any,
) -> None:
    """Compare the two sides of each bucket. A pair is counted in the first table that lets it pass, so none need be remembered."""
    start = 0
    stop = 0
    for place in range(len(query_values)):
        key = query_values[place] & key_mask
        while start < len(values) and values[start] & key_mask < key:
            start += 1
        stop = max(start, stop)
        while stop < len(values) and values[stop] & key_mask == key:
            stop += 1
        item = query_rows[place]
        for other in range(start, stop):
            if ones(query_values[place] ^ values[other]) > tolerance:
                continue
            row = rows[other]
            if query_places[item] >= 0 and query_places[item] == places[row]:
                continue
            found = bits_between(query, item, words, row)
            if found > radius or _passed_before(query, item, words, row, keys, others, tolerance, table):
                continue
            count[item] += 1
            if nearest[item] < 0 or found < distance[item] or (found == distance[item] and row < nearest[item]):
                nearest[item], distance[item] = row, found
