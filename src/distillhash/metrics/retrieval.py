"""Retrieval metrics of codes, exact over ties.

Hamming distance takes K + 1 values, so most of a ranking is ties, and their order is arbitrary. Every metric here is the exact expectation
over all orders of every tie, in closed form (McSherry and Najork, "Computing information retrieval performance measures efficiently in the
presence of tied scores", ECIR 2008). The best and the worst order are reported as well. Nothing is sorted: two histograms over distance
determine the metrics of a query. Codes of two parts are ranked by ``both`` (:mod:`distillhash.hamming.ranking`): their levels are the
pairs of distances (d, c) in the order of that ranking, and the rest is the same.

Notation, per query: level d = 0..K holds ``n`` items of which ``r`` are relevant; ``N`` and ``C`` items and relevant items
come before it; ``T`` items are relevant in all; ``H`` are harmonic numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numba import prange
from numpy.typing import NDArray

from distillhash.codes import Codes, check_same_length
from distillhash.errors import DataError, ParameterError
from distillhash.hamming import ranking as two_parts
from distillhash.hamming.compilation import compiled
from distillhash.hamming.kernel import popcount64
from distillhash.metrics.neighbours import DEPTHS, NEAREST, neighbour_recall, positive_integers

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_CURVE_POINTS = 50
_PAIR_BLOCK = 1 << 22  # (query, database) pairs or cells held at once: about 200 MB


def evaluate_codes(
    query_codes: Codes,
    database_codes: Codes,
    query_labels: NDArray[Any] | None,
    database_labels: NDArray[Any] | None,
    cutoffs: Sequence[int] = (1000, 5000),
    topn: Sequence[int] = (1, 10, 100, 1000),
    *,
    query_features: NDArray[Any] | None = None,
    database_features: NDArray[Any] | None = None,
    same_items: bool | NDArray[np.intp] = False,
) -> dict[str, Any]:
    """Retrieval metrics of a set of codes, as a JSON-able dictionary.

    By labels: an item is relevant to a query when it has the same class, or shares at least one label. Queries with no relevant item
    in the database are left out of every mean and counted in ``queries_without_relevant``. By features: the share of the 10 nearest by
    cosine that are among the first N by code. Either may be left out.

    Args:
        query_codes: ``q`` codes.
        database_codes: ``n`` codes of the same length K.
        query_labels: ``(q,) int`` classes, or ``(q, n_labels)`` 0/1 indicators; None for both sides where there are none.
        database_labels: The same for the database.
        cutoffs: Depths R for ``map@R`` (divisor ``min(R, T)``) and ``map@R_hits`` (divisor: hits within R, a common variant; 0 where
            there are none).
        topn: Depths N for ``precision@N`` and ``recall@N``.
        query_features: ``(q, d)`` floats, the features of the queries; may be a memory map.
        database_features: ``(n, d)`` floats of the database.
        same_items: For the recall of neighbours, what :func:`~distillhash.metrics.neighbour_recall` takes: whether the queries are the
            database, or the row of each query in it, which is then left out. Labels judge such items as any others.

    Returns:
        - ``map`` (whole database), ``map_worst`` and ``map_best`` (over tie orders), ``map_random`` (of a random ranking);
        - the keys named above;
        - ``topn``: curves over depth, ``n``, ``precision``, ``recall``;
        - ``pr_radius``: Hamming lookup, ``precision`` and ``recall``, K + 1 points each, means over queries; an empty lookup has
          precision 0;
        - ``precision_radius2``, and ``empty_radius2``, the share of queries with nothing within 2 bits;
        - ``n_bits``, ``n_queries``, ``n_database``, ``queries_without_relevant``; ``class_bits`` where codes have two parts;
        - with features ``neighbour_recall@10``, ``@40``, ``@100``, of at most 1,000 queries drawn by a fixed seed.

        Lookups within a radius count all bits; everything else follows the ranking. Without labels there are only the sizes and the recall.

    Raises:
        DataError: lengths or shapes do not match, features are not finite, or no query has a relevant item.
        ParameterError: a cutoff or depth below 1, or neither labels nor features of both sides.
    """
    for what, one, other in (
        ("labels", query_labels, database_labels),
        ("features", query_features, database_features),
    ):
        if (one is None) != (other is None):
            raise ParameterError(f"metrics take {what} of queries and database both; one of them is None")
    if query_labels is None and query_features is None:
        raise ParameterError("metrics need labels, or query_features and database_features; all of them are None")
    if query_labels is None or database_labels is None:
        check_same_length(query_codes, database_codes)
        report = _sizes(query_codes, database_codes)
    else:
        report = evaluate_queries(query_codes, database_codes, query_labels, database_labels, cutoffs, topn)[0]
    if query_features is not None and database_features is not None:
        sides = query_codes, database_codes, query_features, database_features
        found = neighbour_recall(*sides, (NEAREST,), DEPTHS, same_items=same_items)
        report |= {f"neighbour_recall@{depth}": found[f"recall{NEAREST}@{depth}"] for depth in DEPTHS}
    return report


def evaluate_queries(
    query_codes: Codes,
    database_codes: Codes,
    query_labels: NDArray[Any],
    database_labels: NDArray[Any],
    cutoffs: Sequence[int] = (1000, 5000),
    topn: Sequence[int] = (1, 10, 100, 1000),
) -> tuple[dict[str, Any], Floats]:
    """:func:`evaluate_codes`, and the average precision of every query, ``(q,) float64``, NaN where nothing is relevant."""
    check_same_length(query_codes, database_codes)
    cutoffs, topn = (positive_integers(values, "cutoffs and depths") for values in (cutoffs, topn))
    query_labels = _check_labels(query_labels, len(query_codes), "query")
    database_labels = _check_labels(database_labels, len(database_codes), "database")
    check_same_kind(query_labels, database_labels)
    counts, hits = _distance_histograms(query_codes, database_codes, query_labels, database_labels)
    total_hits = hits.sum(axis=1)
    answerable = total_hits > 0
    if not answerable.any():
        raise DataError("no query has a relevant item in the database; do both sides carry the same kind of labels?")
    counts, hits, relevant = counts[answerable], hits[answerable], total_hits[answerable]
    n_database = len(database_codes)
    deepest = min(max(topn, default=1), n_database)
    curve = np.unique(np.linspace(1, deepest, min(_CURVE_POINTS, deepest)).round().astype(int)).tolist()
    depths = dict.fromkeys([*(min(depth, n_database) for depth in topn), *curve])

    parts: Iterable[tuple[Ints, Ints]] = [(counts, hits)]
    if query_codes.class_bits:
        sides = query_codes[answerable], database_codes, query_labels[answerable], database_labels
        parts = _two_part_histograms(*sides)
    blocks = [_query_sums(Ranking(*part), n_database, cutoffs, depths) for part in parts]
    sums = {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}
    at_random = Ranking(np.full((len(relevant), 1), n_database), relevant[:, None])  # one level that holds everything
    average_precision = np.full(len(total_hits), np.nan)
    average_precision[answerable] = sums["all"] / relevant
    report: dict[str, Any] = {
        "map": float(np.mean(average_precision[answerable])),
        "map_worst": float(np.mean(sums["worst"] / relevant)),
        "map_best": float(np.mean(sums["best"] / relevant)),
        "map_random": float(np.mean(at_random.precision_sum(n_database) / relevant)),
    }
    for cutoff in cutoffs:
        divisors = np.minimum(min(cutoff, n_database), relevant)
        report[f"map@{cutoff}"] = float(np.mean(sums[f"sum@{cutoff}"] / divisors))
        report[f"map@{cutoff}_hits"] = float(np.mean(sums[f"hits@{cutoff}"]))
    for depth in topn:
        found = sums[f"found@{min(depth, n_database)}"]
        # A database smaller than N cannot fill the list; the empty places count as misses.
        report[f"precision@{depth}"] = float(np.mean(found / depth))
        report[f"recall@{depth}"] = float(np.mean(found / relevant))
    within, found = np.cumsum(counts, axis=1), np.cumsum(hits, axis=1)
    precision = np.mean(found / np.maximum(within, 1), axis=0)  # an empty lookup counts as precision 0
    recall = np.mean(found / relevant[:, None], axis=0)
    two = min(2, query_codes.n_bits)
    report |= {
        "topn": {
            "n": curve,
            "precision": [float(np.mean(sums[f"found@{depth}"] / depth)) for depth in curve],
            "recall": [float(np.mean(sums[f"found@{depth}"] / relevant)) for depth in curve],
        },
        "pr_radius": {"precision": precision.tolist(), "recall": recall.tolist()},
        "precision_radius2": float(precision[two]),
        "empty_radius2": float(np.mean(within[:, two] == 0)),
        **_sizes(query_codes, database_codes),
        "queries_without_relevant": int(np.sum(~answerable)),
    }
    return report, average_precision


def _sizes(query_codes: Codes, database_codes: Codes) -> dict[str, Any]:
    parts = {"class_bits": query_codes.class_bits} if query_codes.class_bits else {}
    return {"n_bits": query_codes.n_bits, **parts, "n_queries": len(query_codes), "n_database": len(database_codes)}


def _query_sums(ranking: Ranking, n: int, cutoffs: Iterable[int], depths: Iterable[int]) -> dict[str, Floats]:
    """What the metrics are means of, one value per query: sums of precision over hits, and hits among the first N."""
    sums = {f"found@{depth}": ranking.expected_hits(depth) for depth in depths}
    for cutoff in cutoffs:
        sums[f"sum@{cutoff}"] = ranking.precision_sum(min(cutoff, n))
        sums[f"hits@{cutoff}"] = ranking.hits_average_precision(min(cutoff, n))
    sums["all"] = ranking.precision_sum(n)
    sums["worst"] = ranking.precision_sum_extreme(relevant_first=False)
    sums["best"] = ranking.precision_sum_extreme(relevant_first=True)
    return sums


def _two_part_histograms(
    query_codes: Codes, database_codes: Codes, query_labels: NDArray[Any], database_labels: NDArray[Any]
) -> Iterator[tuple[Ints, Ints]]:
    """Items and relevant items at every level of the ranking by ``both``, ``(b, L)`` each, of blocks of the queries in turn."""
    n_cells = two_parts.cell_count(query_codes)
    step = max(1, _PAIR_BLOCK // max(n_cells, len(database_codes)))
    for start in range(0, len(query_codes), step):
        labels = query_labels[start : start + step]
        if labels.ndim == 2:
            relevant = labels.astype(np.float32) @ database_labels.T.astype(np.float32) > 0
        else:
            relevant = labels[:, None] == database_labels
        cells = two_parts.cells(query_codes[start : start + step], database_codes)
        cells += n_cells * np.arange(len(labels))[:, None]
        counts, hits = (
            np.bincount(found.ravel(), minlength=len(labels) * n_cells).reshape(-1, n_cells)
            for found in (cells, cells[relevant])
        )
        levels = two_parts.cell_levels(counts, query_codes.class_bits)
        yield two_parts.by_level(levels, counts), two_parts.by_level(levels, hits)


def _distance_histograms(
    query_codes: Codes, database_codes: Codes, query_labels: NDArray[Any], database_labels: NDArray[Any]
) -> tuple[Ints, Ints]:
    """Items and relevant items at every Hamming distance, each ``(q, K + 1) int64``; time one XOR and popcount per pair."""
    if not len(query_codes) or not len(database_codes):
        raise DataError(
            f"metrics need at least one query and one database code, got {len(query_codes)} and {len(database_codes)}"
        )
    levels = query_codes.n_bits + 1
    words, database_words = query_codes.words(), database_codes.words()
    if query_labels.ndim == 2:
        # (n, ceil(n_labels / 64)) uint64: two items share a label when the AND of their masks is not zero.
        masks = (Codes(np.packbits(side, axis=1), side.shape[1]).words() for side in (query_labels, database_labels))
        counts, hits = _multi_label_histograms(words, database_words, *masks, levels)
        return counts, hits
    # Sorted by class, the relevant items of a query are one slice of the database.
    order = np.argsort(database_labels, kind="stable")
    classes = database_labels[order]
    starts = np.searchsorted(classes, query_labels, side="left")
    ends = np.searchsorted(classes, query_labels, side="right")
    counts, hits = _single_label_histograms(words, database_words[order], starts, ends, levels)
    return counts, hits


class Ranking:
    """Closed forms over the histograms of several queries, ``(q, L)`` each, in the notation above, nearest level first.

    Every method returns one value per query.
    """

    def __init__(self, counts: Ints, hits: Ints) -> None:
        """Take ``n``, every row of which has the same sum, and ``r``."""
        self.n, self.r = counts, hits
        self.N = np.cumsum(counts, axis=1) - counts
        self.C = np.cumsum(hits, axis=1) - hits
        self.H = np.concatenate([[0.0], np.cumsum(1.0 / np.arange(1, int(counts[0].sum()) + 1))])

    def taken(self, depth: int) -> Ints:
        """``(q, L)``: how many items of each level are among the first ``depth``."""
        return np.asarray(np.clip(depth - self.N, 0, self.n))

    def expected_hits(self, depth: int) -> Floats:
        """Expected number of relevant items among the first ``depth``."""
        return np.asarray((self.r * (self.taken(depth) / np.maximum(self.n, 1))).sum(axis=1))

    def precision_sum(self, depth: int) -> Floats:
        """Expected sum of precision@t over the relevant items among the first ``depth``; AP is this over its divisor."""
        return np.asarray(self._level_sums(self.taken(depth)).sum(axis=1))

    def _level_sums(self, m: Ints) -> Floats:
        # sum_{t=1..m} (r/n) (C + 1 + (t-1) c) / (N + t), c = (r-1)/(n-1): given a relevant item in place t of its level,
        # each of the t-1 before it is relevant with probability c.
        n, r, N, C = self.n, self.r, self.N, self.C
        c = np.where(n > 1, (r - 1) / np.maximum(n - 1, 1), 0.0)
        inner = c * m + (C + 1 - c * (N + 1)) * (self.H[N + m] - self.H[N])
        return np.where(r > 0, r / np.maximum(n, 1) * inner, 0.0)

    def precision_sum_extreme(self, *, relevant_first: bool) -> Floats:
        """The same for the whole ranking with each level's relevant items first (best) or last (worst)."""
        before = self.N if relevant_first else self.N + self.n - self.r
        spread = self.H[before + self.r] - self.H[before]
        return np.asarray((self.r + (self.C - before) * spread).sum(axis=1))

    def hits_average_precision(self, depth: int) -> Floats:
        """Expected AP over the first ``depth`` divided by the hits among them (0 without hits).

        Only the level that ``depth`` cuts has a random number of hits. It follows a hypergeometric law, and given that number the places
        of the hits are uniform, so the expectation is a finite sum of closed forms.
        """
        m = self.taken(depth)
        cut = np.argmax(self.N + self.n >= depth, axis=1)  # the level holding place `depth`
        rows = np.arange(len(self.n))
        before = self._level_sums(np.where(np.arange(self.n.shape[1]) < cut[:, None], m, 0)).sum(axis=1)
        at_cut = [array[rows, cut] for array in (self.n, self.r, self.N, self.C, m)]
        return np.asarray(_hits_expectation(before, *at_cut, self.H))


def check_same_kind(query_labels: NDArray[Any], database_labels: NDArray[Any]) -> None:
    """Raise :class:`DataError` unless both are classes, or both are indicators of equally many labels."""
    if query_labels.ndim != database_labels.ndim or query_labels.shape[1:] != database_labels.shape[1:]:
        raise DataError(
            f"query labels {query_labels.shape} and database labels {database_labels.shape} are of different kinds"
        )


def _check_labels(labels: NDArray[Any], n: int, side: str) -> NDArray[Any]:
    try:
        labels = np.asarray(labels)
    except ValueError as error:  # lists of unequal lengths
        raise DataError(f"{side} labels must be one array ({error})") from error
    if labels.ndim not in (1, 2) or len(labels) != n:
        raise DataError(f"{side} labels must be ({n},) classes or ({n}, n_labels) indicators, got shape {labels.shape}")
    if labels.ndim == 1:
        if labels.dtype.kind not in "iub":
            raise DataError(f"{side} classes must be integers, got {labels.dtype}")
        return labels.astype(np.int64)
    if not np.isin(labels, (0, 1)).all():
        raise DataError(f"{side} multi-label indicators must be 0 or 1")
    return labels.astype(bool)


@compiled(parallel=True)
def _single_label_histograms(query: Any, database: Any, starts: Any, ends: Any, levels: int) -> Any:
    counts = np.zeros((len(query), levels), np.int64)
    hits = np.zeros((len(query), levels), np.int64)
    for i in prange(len(query)):
        # Two counters each, used alternately: an increment then does not wait for the store of an equal distance before it.
        total = np.zeros((2, levels), np.int64)
        found = np.zeros((2, levels), np.int64)
        for j in range(len(database)):
            distance = 0
            for w in range(query.shape[1]):
                distance += popcount64(query[i, w] ^ database[j, w])
            if starts[i] <= j < ends[i]:
                found[j & 1, distance] += 1
            else:
                total[j & 1, distance] += 1
        for d in range(levels):
            hits[i, d] = found[0, d] + found[1, d]
            counts[i, d] = total[0, d] + total[1, d] + hits[i, d]
    return counts, hits


@compiled(parallel=True)
def _multi_label_histograms(query: Any, database: Any, query_mask: Any, database_mask: Any, levels: int) -> Any:
    counts = np.zeros((len(query), levels), np.int64)
    hits = np.zeros((len(query), levels), np.int64)
    for i in prange(len(query)):
        table = np.zeros((levels, 2), np.int64)  # [distance, shares a label]
        for j in range(len(database)):
            distance = 0
            for w in range(query.shape[1]):
                distance += popcount64(query[i, w] ^ database[j, w])
            shared = np.uint64(0)
            for w in range(query_mask.shape[1]):
                shared |= query_mask[i, w] & database_mask[j, w]
            table[distance, 1 if shared != 0 else 0] += 1
        hits[i] = table[:, 1]
        counts[i] = table[:, 0] + table[:, 1]
    return counts, hits


@compiled
def _hits_expectation(before: Any, n: Any, r: Any, N: Any, C: Any, m: Any, H: Any) -> Any:
    """E[(before + S(X)) / (C + X)], X ~ Hypergeometric(n items, r relevant, m drawn), S(x) the level sum given x hits in m places."""
    result = np.zeros(len(before))
    for i in range(len(before)):
        low, high = max(0, m[i] - (n[i] - r[i])), min(m[i], r[i])
        mode = min(max((m[i] + 1) * (r[i] + 1) // (n[i] + 2), low), high)
        spread = H[N[i] + m[i]] - H[N[i]]
        weight_sum = value_sum = 0.0
        for direction in (1, -1):
            x, weight = mode, 1.0
            if direction == -1:
                x -= 1
                if x < low:
                    continue
                weight = mode * (n[i] - r[i] - m[i] + mode) / ((r[i] - x) * (m[i] - x))
            while low <= x <= high and weight > 1e-18:  # below that a term cannot move a float64 sum
                if C[i] + x > 0:
                    c = (x - 1) / (m[i] - 1) if m[i] > 1 else 0.0
                    level = x / m[i] * (c * m[i] + (C[i] + 1 - c * (N[i] + 1)) * spread) if x > 0 else 0.0
                    value_sum += weight * (before[i] + level) / (C[i] + x)
                weight_sum += weight
                if direction == 1:
                    weight *= (r[i] - x) * (m[i] - x) / ((x + 1) * (n[i] - r[i] - m[i] + x + 1))
                else:
                    weight *= x * (n[i] - r[i] - m[i] + x) / ((r[i] - x + 1) * (m[i] - x + 1))
                x += direction
        result[i] = value_sum / weight_sum
    return result
