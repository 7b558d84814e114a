"""The searches in NumPy, where numba is not installed: the answers of :mod:`distillhash.hamming.kernel`, several times as slow.

Queries are words ``(n_planes, q)``, rows ``(n_planes, n)``. ``allowed`` is ``(n,)`` uint8, 0 for a row that may not be in the answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillhash.hamming.ranking import By, order, weighted

Ints = NDArray[np.int64]
_NO_ROW = np.iinfo(np.uint16).max  # above every distance
_NO_KEY = 1 << 60


def nearest_rows(
    query: NDArray[Any], rows: NDArray[Any], allowed: NDArray[np.uint8] | None, k: int
) -> tuple[Ints, NDArray[np.int32]]:
    """The k nearest allowed rows by (distance, row), ``(q, k)`` each, and -1 after the last allowed row; 1 <= k <= n."""
    found, distances = np.full((2, query.shape[1], k), -1, np.int64)
    for i, words in enumerate(query.T):
        near = _distances(words, rows, allowed)
        first = _first(near, k)
        first = first[near[first] != _NO_ROW]
        found[i, : len(first)], distances[i, : len(first)] = first, near[first]
    return found, distances.astype(np.int32)


def candidate_rows(
    query: NDArray[Any], rows: NDArray[Any], allowed: NDArray[np.uint8] | None, k: int,
    class_words: NDArray[Any], weights: Sequence[tuple[int, int]], least: Sequence[int], by: By,
) -> tuple[Ints, Ints, Ints]:  # fmt: skip
    """The nearest allowed rows by two rankings of codes of two parts; see :func:`distillhash.hamming.kernel.candidate_rows`.

    ``class_words (n_planes,)`` has ones at the class bits. Rows are in the order of the ranking ``by``.
    """
    answers = []
    for words in query.T:
        near, kind = _distances(words, rows, None), _distances(words & class_words, rows & class_words[:, None], None)
        chosen = np.zeros(rows.shape[1], np.bool_)
        for pair, few in zip(weights, least, strict=True):
            if few:
                key = weighted(near, kind, pair) << 20 | kind
                if allowed is not None:
                    key[allowed == 0] = _NO_KEY
                tied = int(np.count_nonzero(key <= np.partition(key, few - 1)[few - 1]))
                chosen[_first(key, min(k, tied))] = True
        if allowed is not None:
            chosen &= allowed != 0
        at = np.flatnonzero(chosen)
        at = at[order(near[at], kind[at], by)]
        answers.append(np.stack([at, near[at], kind[at]]).astype(np.int64))
    found = np.full((3, len(answers), max(answer.shape[1] for answer in answers)), -1, np.int64)
    for i, answer in enumerate(answers):
        found[:, i, : answer.shape[1]] = answer
    return found[0], found[1], found[2]


def rows_within(
    query: NDArray[Any], rows: NDArray[Any], allowed: NDArray[np.uint8] | None, radius: int
) -> tuple[Ints, Ints, NDArray[np.int32]]:
    """How many allowed rows are within the radius of each query, ``(q,)``; then all rows and distances by (query, distance, row)."""
    found, distances = [], []
    for words in query.T:
        near = _distances(words, rows, allowed)
        hits = np.flatnonzero(near <= radius)
        found.append(hits[np.argsort(near[hits], kind="stable")])
        distances.append(near[found[-1]].astype(np.int32))
    counts = np.array([len(hits) for hits in found], np.int64)
    return counts, np.concatenate(found, dtype=np.int64), np.concatenate(distances)


def _distances(words: NDArray[Any], rows: NDArray[Any], allowed: NDArray[np.uint8] | None) -> NDArray[np.uint16]:
    total = np.zeros(rows.shape[1], np.uint16)
    for word, plane in zip(words, rows, strict=True):
        total += np.bitwise_count(plane ^ word)
    if allowed is not None:
        total[allowed == 0] = _NO_ROW
    return total


def _first(keys: NDArray[Any], k: int) -> NDArray[np.intp]:
    """Places of the k smallest keys, by (key, place)."""
    at = np.flatnonzero(keys <= np.partition(keys, k - 1)[k - 1])
    return at[np.argsort(keys[at], kind="stable")[:k]]
