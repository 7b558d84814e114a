"""Retrieval across modalities: an image queries texts, a text queries images; binary or graded relevance, exact over ties.

Relevance is a property of items (an image with its texts), so both directions are judged alike: a text is as relevant to an image
as its item is to the image's item. All numbers are expectations over the orders of ties, in closed form; see
:mod:`distillhash.metrics.retrieval`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillhash.codes import Codes, hamming_distances
from distillhash.errors import DataError
from distillhash.metrics.neighbours import positive_integers
from distillhash.metrics.retrieval import Floats, Ints, Ranking, check_same_kind

Rows = NDArray[np.intp]
Relevance = Callable[[Rows], Floats]
"""From ``(b,)`` rows of query items to ``(b, n)`` gains of the database's items: 0 irrelevant, at most 1."""

DEPTHS = (1, 5, 10)
LEAST_GAIN = 0.15
"""From this gain on an item counts as relevant where relevance must be binary; of :func:`word_overlap`, a share of common words."""
_MOST_LEVELS = 1 << 16  # of integers that are levels themselves; others are ranked
_BLOCK = 1 << 22  # (query, database) pairs held at once: about 200 MB


@dataclass(frozen=True)
class CodedPairs:
    """One side of an evaluation: codes of images and of their texts."""

    images: Codes
    texts: Codes  # of the same length
    owners: Rows  # the image of each text


def evaluate_cross_modal(
    query: CodedPairs, database: CodedPairs, relevances: dict[str, Relevance]
) -> dict[str, dict[str, dict[str, float]]]:
    """Both directions under every relevance: the query's images search the database's texts, and its texts the database's images.

    Codes are ranked by Hamming distance over all bits, those of two parts too.

    The result is ``{"image_to_text": {name: metrics}, "text_to_image": {name: metrics}}``. Metrics are the means of :func:`query_metrics`
    over the queries with a relevant item; ``n_queries`` is their number, and ``queries_without_relevant`` that of the others.
    """
    for side in (query, database):
        owners = np.asarray(side.owners)
        if owners.shape != (len(side.texts),) or owners.dtype.kind not in "iu" or (owners >= len(side.images)).any():
            raise DataError(
                f"owners must be {len(side.texts)} integers below {len(side.images)}, the image of each text"
            )
    sides = {
        "image_to_text": (query.images, np.arange(len(query.images)), database.texts, database.owners),
        "text_to_image": (query.texts, query.owners, database.images, np.arange(len(database.images))),
    }
    return {
        direction: {name: _evaluate_direction(*side, relevance) for name, relevance in relevances.items()}
        for direction, side in sides.items()
    }


def _evaluate_direction(
    asked: Codes, asked_items: Rows, found: Codes, found_items: Rows, relevance: Relevance
) -> dict[str, float]:
    if not len(asked) or not len(found):
        raise DataError(f"metrics need at least one query and one database code, got {len(asked)} and {len(found)}")
    step = max(1, _BLOCK // len(found))
    parts = []
    for start in range(0, len(asked), step):
        block = slice(start, start + step)
        gains = relevance(asked_items[block])[:, found_items]
        parts.append(query_metrics(hamming_distances(asked[block], found), gains))
    values = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    answered = ~np.isnan(values["map"])
    if not answered.any():
        raise DataError("no query has a relevant item in the database; take queries and database from one source")
    means = {name: float(np.mean(array[answered])) for name, array in values.items()}
    return means | {"n_queries": int(answered.sum()), "queries_without_relevant": int((~answered).sum())}


def query_metrics(distances: NDArray[Any], gains: NDArray[Any], depths: Sequence[int] = DEPTHS) -> dict[str, Floats]:
    """Metrics of every query, ``(q,)`` each, NaN where no item is relevant, from ``(q, n)`` distances and gains in [0, 1].

    Equal distances are tied. An item is relevant, where that is asked, when its gain is at least :data:`LEAST_GAIN`. The metrics are
    ``map``, and for each depth k ``hit@k`` (chance of a relevant item among the first k: Recall@k of the captioning literature),
    ``recall@k`` (share of the relevant items there) and ``ndcg@k`` (gains discounted by log2(1 + place), over the best possible).
    """
    depths = positive_integers(depths, "depths")
    distances, gains = np.asarray(distances), np.asarray(gains)
    if distances.dtype.kind not in "fiu" or gains.dtype.kind not in "fiub":
        raise DataError(f"distances and gains must be numbers, got {distances.dtype} and {gains.dtype}")
    if distances.shape != gains.shape or distances.ndim != 2 or distances.size == 0:
        raise DataError(f"distances {distances.shape} and gains {gains.shape} must be one table (q, n), not empty")
    gains = np.asarray(gains, np.float64)
    if not (distances >= 0).all() or not ((gains >= 0) & (gains <= 1)).all():
        raise DataError("distances must be at least 0 and gains from 0 to 1, all of them numbers")
    counts, sums, relevant = _levels(distances, gains)
    ranking, totals = Ranking(counts, relevant), relevant.sum(axis=1)
    report = {"map": ranking.precision_sum(gains.shape[1]) / np.maximum(totals, 1)}
    best = -np.sort(-gains, axis=1)
    for depth in depths:
        deepest = min(depth, gains.shape[1])
        taken = ranking.taken(deepest)
        report[f"hit@{depth}"] = 1 - np.exp(_log_no_hit(counts, relevant, taken).sum(axis=1))
        report[f"recall@{depth}"] = ranking.expected_hits(deepest) / np.maximum(totals, 1)
        discounts = 1 / np.log2(np.arange(2, deepest + 2))
        ideal = best[:, :deepest] @ discounts
        summed = np.concatenate([[0.0], np.cumsum(discounts)])
        spans = summed[np.minimum(ranking.N + taken, deepest)] - summed[np.minimum(ranking.N, deepest)]
        gained = (sums / np.maximum(counts, 1) * spans).sum(axis=1)
        report[f"ndcg@{depth}"] = gained / np.where(ideal > 0, ideal, 1)
    for values in report.values():
        values[totals == 0] = np.nan
    return report


def _levels(distances: NDArray[Any], gains: Floats) -> tuple[Ints, Floats, Ints]:
    """Items, summed gains and relevant items at every level of distance, nearest first: ``(q, L)`` each."""
    q = len(distances)
    if distances.dtype.kind == "f" or distances.max() > _MOST_LEVELS:
        distances = np.stack([np.unique(row, return_inverse=True)[1] for row in distances])
    levels = int(distances.max()) + 1
    cells = (distances.astype(np.int64) + levels * np.arange(q)[:, None]).ravel()
    relevant = (gains >= LEAST_GAIN).ravel()
    counts, hits = (np.bincount(found, minlength=q * levels).reshape(q, levels) for found in (cells, cells[relevant]))
    sums = np.bincount(cells, gains.ravel(), minlength=q * levels).reshape(q, levels)
    return counts.astype(np.int64), sums.astype(np.float64), hits.astype(np.int64)


def _log_no_hit(n: Ints, r: Ints, m: Ints) -> Floats:
    """Log of the chance that none of ``m`` items drawn from ``n``, ``r`` of them relevant, is relevant: C(n - r, m) / C(n, m)."""
    from scipy.special import gammaln

    possible = n - r >= m
    safe = np.where(possible, n - r - m, 0)
    value = gammaln(n - r + 1.0) - gammaln(safe + 1.0) - gammaln(n + 1.0) + gammaln(n - m + 1.0)
    return np.asarray(np.where(possible, np.where((m == 0) | (r == 0), 0.0, value), -np.inf))


def own_items(query_keys: Sequence[str], database_keys: Sequence[str]) -> Relevance:
    """1 where the database's item has the key of the query's item."""
    place = {key: column for column, key in enumerate(database_keys)}
    columns = np.array([place.get(key, -1) for key in query_keys], np.intp)

    def gains(rows: Rows) -> Floats:
        return np.equal.outer(columns[rows], np.arange(len(database_keys))).astype(np.float64)

    return gains


def shared_labels(query_labels: NDArray[Any], database_labels: NDArray[Any]) -> Relevance:
    """1 where the items have the same class, ``(n,)`` labels, or share one at least, ``(n, n_labels)`` 0/1."""
    check_same_kind(query_labels, database_labels)
    multi = query_labels.ndim == 2
    indicators = database_labels.astype(np.float32).T if multi else database_labels

    def gains(rows: Rows) -> Floats:
        if multi:
            return np.asarray(query_labels[rows].astype(np.float32) @ indicators > 0, np.float64)
        return np.asarray(np.equal.outer(query_labels[rows], indicators), np.float64)

    return gains


def word_overlap(query_texts: Sequence[Sequence[str]], database_texts: Sequence[Sequence[str]]) -> Relevance:
    """Graded: common content words over all content words of the two items (Jaccard).

    Words are those of all texts of an item together, lower case, two letters or more, without scikit-learn's English stop words. Raises
    :class:`DataError` where the texts hold no content word.
    """
    from sklearn.feature_extraction.text import CountVectorizer

    vectoriser = CountVectorizer(binary=True, stop_words="english", dtype=np.float64)
    try:
        vectoriser.fit([" ".join(texts) for texts in (*database_texts, *query_texts)])
    except ValueError as error:
        raise DataError(f"the texts hold no content word to compare ({error}); leave word overlap out") from error
    asked, found = (vectoriser.transform([" ".join(texts) for texts in side]) for side in (query_texts, database_texts))
    sizes = [np.asarray(side.sum(axis=1)).ravel() for side in (asked, found)]

    def gains(rows: Rows) -> Floats:
        common = np.asarray((asked[rows] @ found.T).todense())
        union = sizes[0][rows][:, None] + sizes[1] - common
        return np.asarray(common / np.maximum(union, 1))

    return gains
