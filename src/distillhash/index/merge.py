"""Answers over parts of the items into the answer over all of them: by (distance, id), exactly."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from distillhash.index.base import RangeResult, SearchResult

_FARTHER_THAN_ALL = np.iinfo(np.int32).max


def merge_nearest(parts: Sequence[SearchResult], k: int) -> SearchResult:
    """The ``k`` nearest of all parts, each of which holds its own ``k`` nearest (or all its items).

    Args:
        parts: At least one, for the same queries.
        k: How many.
    """
    ids = np.concatenate([part.ids for part in parts], axis=1)
    distances = np.concatenate([part.distances for part in parts], axis=1)
    distances = np.where(distances < 0, _FARTHER_THAN_ALL, distances)  # padding goes last
    order = np.lexsort((ids, distances), axis=-1)[:, :k]
    ids, distances = np.take_along_axis(ids, order, 1), np.take_along_axis(distances, order, 1)
    return SearchResult(ids, np.where(distances == _FARTHER_THAN_ALL, -1, distances).astype(np.int32))


def merge_within(parts: Sequence[RangeResult]) -> RangeResult:
    """All items of all parts.

    Args:
        parts: At least one, for the same queries.
    """
    queries = np.concatenate([np.repeat(np.arange(len(part)), np.diff(part.limits)) for part in parts])
    ids = np.concatenate([part.ids for part in parts])
    distances = np.concatenate([part.distances for part in parts])
    order = np.lexsort((ids, distances, queries))
    counts = np.bincount(queries, minlength=len(parts[0]))
    limits = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return RangeResult(limits, ids[order], distances[order])


def nearest_from_pairs(answers: Sequence[Sequence[tuple[int, int]]], k: int) -> SearchResult:
    """A result from one list of (distance, id) per query, nearest first; more than ``k`` are cut off."""
    ids = np.full((len(answers), k), -1, np.int64)
    distances = np.full((len(answers), k), -1, np.int32)
    for query, pairs in enumerate(answers):
        for place, (distance, identifier) in enumerate(pairs[:k]):
            ids[query, place], distances[query, place] = identifier, distance
    return SearchResult(ids, distances)


def range_from_pairs(answers: Iterable[Sequence[tuple[int, int]]]) -> RangeResult:
    """A result from one list of (distance, id) per query, nearest first."""
    limits = [0]
    flat: list[tuple[int, int]] = []
    for pairs in answers:
        flat += pairs
        limits.append(len(flat))
    found = np.array(flat, np.int64).reshape(-1, 2)
    return RangeResult(
        np.array(limits, np.int64), np.ascontiguousarray(found[:, 1]), np.ascontiguousarray(found[:, 0], np.int32)
    )
