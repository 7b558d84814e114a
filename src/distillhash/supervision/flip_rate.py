"""Flip-rate bounds and distilled pairs (DistillHash, CVPR 2019, Eq. 8, Eq. 9 and Theorem 1).

With eta~(i, j) = P(S~_ij = +1 | pair), the flip rates of a pair are bounded by its neighbourhood (Eq. 8):

    r-max(i, j) = min eta~(k, l),    r+max(i, j) = 1 - max eta~(k, l)    over k in nn_o(i), l in nn_o(j),

and Theorem 1 keeps the pairs whose Bayes label is certain under these bounds:

    S = +1  if eta~(i, j) > (1 + r-max) / 2,        S = -1  if eta~(i, j) < (1 - r+max) / 2.

eta~ is given by its logit s. A float32 sigmoid is exactly 1 above s = 16.6, where the strict test fails and the surest pairs would
vanish. With log-sigmoids the same tests are exact at any s:

    +  iff  log sg(-s_ij) < log sg(-s_min) - ln 2        -  iff  log sg(s_ij) < log sg(s_max) - ln 2

The minimum over the o x o neighbour pairs separates into a minimum over rows, then over columns: O(n^2 o), not O(n^2 o^2).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit, prange
from numpy.typing import NDArray

from distillhash.errors import DataError
from distillhash.hamming.compilation import compiled
from distillhash.supervision.similarity import BoundRule, LabelRule, PairLabels, Thresholds

_LN2 = math.log(2.0)


def distil_pairs(
    logits: NDArray[np.float32],
    neighbours: NDArray[np.int32],
    neighbours_for_positive: NDArray[np.int32] | None = None,
    *,
    bounds: BoundRule = "full",
    keep_certain: bool = False,
) -> PairLabels:
    """Distilled pair labels by Theorem 1, ``(n, n) int8`` in {-1, 0, +1}, diagonal 0; O(n) memory a thread beside input and output.

    Args:
        logits: ``(n, n) float32`` logits s of eta~, symmetric; infinities allowed (eta~ of exactly 0 or 1), NaN not.
        neighbours: ``(n, o) int32`` neighbours that bound the flip rates.
        neighbours_for_positive: Other neighbours for r-max, which decides positives (the release skips two); None takes ``neighbours``.
        bounds: ``full`` is Eq. 8. ``unshared`` leaves out (k, k), which enters when i and j share a neighbour k. ``diagonal``
            reads only (k, k) for k in nn(j), the indexing slip of the released code; it need not be symmetric.
        keep_certain: Also keep pairs with eta~ of exactly 1 or 0, which the strict tests refuse where all neighbours agree. By Eq. 3,
            a true eta~ of 1 needs eta = 1 when r+ + r- < 1. An estimate proves no such thing: an average over neighbour pairs is
            exactly 1 as soon as one of them is labelled, that one similar, and all others have no label. The count has no weight.
    """
    if logits.ndim != 2 or logits.shape[0] != logits.shape[1] or len(neighbours) != len(logits):
        raise DataError(f"logits must be (n, n) with n neighbour lists, got {logits.shape} and {neighbours.shape}")
    if any(bool(np.isnan(logits[start : start + 1024]).any()) for start in range(0, len(logits), 1024)):
        raise DataError(
            "the logits of the pair probabilities hold NaN; did the estimator diverge? lower its learning rate"
        )
    positive = neighbours if neighbours_for_positive is None else neighbours_for_positive
    kernel = {"full": _distil_full, "unshared": _distil_unshared, "diagonal": _distil_diagonal}[bounds]
    labels: PairLabels = kernel(logits, positive, neighbours, keep_certain)
    return labels


def distil_partners(
    rows: NDArray[np.float32],
    thresholds: Thresholds,
    around: NDArray[np.int32],
    bounding: NDArray[np.int32],
    partners: NDArray[np.int32],
    *,
    n_neighbours: int,
    skip_for_positive: int,
    rule: LabelRule,
    keep_certain: bool,
) -> tuple[PairLabels, PairLabels, NDArray[np.float32]]:
    """Theorem 1 for the pairs of every row and its ``partners (n, c)`` alone, in time linear in n.

    For the same neighbours it gives what :func:`~distillhash.supervision.similarity.label_pairs`, the average of labels over neighbour
    pairs and :func:`distil_pairs` (bounds ``full``) give for these pairs.

    Args:
        rows: ``(n, d) float32`` of length 1 (or 0), whose cosines are compared.
        thresholds: Which distances make a similar or dissimilar pair, under ``rule``.
        around: ``(n, m) int32``, the item itself and its neighbours, over which labels are averaged.
        bounding: ``(n, b) int32`` neighbours, nearest first.
        partners: ``(n, c) int32``.
        n_neighbours: How many of the bounding neighbours bound r+max.
        skip_for_positive: After how many of them those begin that bound r-max.
        rule: See :func:`~distillhash.supervision.similarity.label_pairs`.
        keep_certain: See :func:`distil_pairs`.

    Returns:
        Distilled and initial labels, ``(n, c) int8``, 0 for a row with itself, and the logits of eta~, ``(n, c) float32``.
    """
    similar, dissimilar = np.float32(thresholds.similar), np.float32(thresholds.dissimilar)
    if rule == "two-way":
        dissimilar = np.float32(-np.inf)
    shares = np.arange(around.shape[1] ** 2 + 1, dtype=np.float32) / around.shape[1] ** 2
    with np.errstate(divide="ignore"):
        logs = np.log(shares.astype(np.float32))
    roots = np.hstack([np.arange(len(rows), dtype=np.int32)[:, None], bounding])
    skipped = min(skip_for_positive, bounding.shape[1] - 1)
    options = (n_neighbours, skipped, keep_certain)
    labels, initial, logits = _distil_partners(rows, similar, dissimilar, logs, around, roots, partners, *options)
    return labels, initial, logits


@njit(nogil=True, inline="always")
def _log_sigmoid(x: Any) -> Any:
    return min(x, 0.0) - math.log1p(math.exp(-abs(x)))


@njit(nogil=True, inline="always")
def _label(s: Any, low: Any, high: Any, keep_certain: Any) -> Any:
    if keep_certain and math.isinf(s):
        return 1 if s > 0 else -1
    # + needs s > 0 (eta~ > 1/2) and - needs s < 0, so one test a pair is enough.
    if s > 0 and _log_sigmoid(-s) < _log_sigmoid(-low) - _LN2:
        return 1
    if s < 0 and _log_sigmoid(s) < _log_sigmoid(high) - _LN2:
        return -1
    return 0


@compiled(parallel=True)
def _distil_full(logits: Any, positive: Any, negative: Any, keep_certain: Any) -> Any:
    n = len(logits)
    labels = np.zeros((n, n), np.int8)
    for i in prange(n):
        row_low = logits[positive[i, 0]].copy()
        for k in positive[i, 1:]:
            row_low = np.minimum(row_low, logits[k])
        row_high = logits[negative[i, 0]].copy()
        for k in negative[i, 1:]:
            row_high = np.maximum(row_high, logits[k])
        for j in range(n):
            s = np.float64(logits[i, j])
            if s > 0:
                low = row_low[positive[j, 0]]
                for c in range(1, positive.shape[1]):
                    low = min(low, row_low[positive[j, c]])
                labels[i, j] = _label(s, np.float64(low), 0.0, keep_certain)
            elif s < 0:
                high = row_high[negative[j, 0]]
                for c in range(1, negative.shape[1]):
                    high = max(high, row_high[negative[j, c]])
                labels[i, j] = _label(s, 0.0, np.float64(high), keep_certain)
        labels[i, i] = 0
    return labels


@compiled(parallel=True)
def _distil_unshared(logits: Any, positive: Any, negative: Any, keep_certain: Any) -> Any:
    n = len(logits)
    labels = np.zeros((n, n), np.int8)
    for i in prange(n):
        for j in range(n):
            low, high = np.inf, -np.inf  # with nothing left to bound them, the flip rates may be 1: no label
            for k in positive[i]:
                for c in positive[j]:
                    if k != c:
                        low = min(low, np.float64(logits[k, c]))
            for k in negative[i]:
                for c in negative[j]:
                    if k != c:
                        high = max(high, np.float64(logits[k, c]))
            if i != j:
                labels[i, j] = _label(np.float64(logits[i, j]), low, high, keep_certain)
    return labels


@compiled(parallel=True)
def _distil_diagonal(logits: Any, positive: Any, negative: Any, keep_certain: Any) -> Any:
    n = len(logits)
    lows, highs = np.full(n, np.inf), np.full(n, -np.inf)
    for j in range(n):
        for k in positive[j]:
            lows[j] = min(lows[j], np.float64(logits[k, k]))
        for k in negative[j]:
            highs[j] = max(highs[j], np.float64(logits[k, k]))
    labels = np.zeros((n, n), np.int8)
    for i in prange(n):
        for j in range(n):
            if i != j:
                labels[i, j] = _label(np.float64(logits[i, j]), lows[j], highs[j], keep_certain)
    return labels


_CHUNK = 512


@njit(nogil=True)
def _gather(item: Any, roots: Any, around: Any, places: Any, items: Any, lists: Any) -> Any:
    """The different items around the roots of one, and where those of every root are among them."""
    count = 0
    for a in range(roots.shape[1]):
        for q in range(around.shape[1]):
            other = around[roots[item, a], q]
            if places[other] < 0:
                places[other] = count
                items[count] = other
                count += 1
            lists[a, q] = places[other]
    for other in items[:count]:
        places[other] = -1
    return count


@compiled(parallel=True)
def _distil_partners(
    rows: Any,
    similar: Any,
    dissimilar: Any,
    logs: Any,
    around: Any,
    roots: Any,
    partners: Any,
    n_negative: Any,
    skipped: Any,
    keep_certain: Any,
) -> Any:
    n, d = rows.shape
    c, r, m = partners.shape[1], roots.shape[1], around.shape[1]
    labels, initial = np.zeros((n, c), np.int8), np.zeros((n, c), np.int8)
    logits = np.zeros((n, c), np.float32)
    for chunk in prange((n + _CHUNK - 1) // _CHUNK):
        places = np.full(n, -1, np.int32)
        mine, others = np.empty(r * m, np.int32), np.empty(r * m, np.int32)
        my_lists, other_lists = np.empty((r, m), np.int32), np.empty((r, m), np.int32)
        row = np.zeros((d + 3) // 4 * 4, np.float32)
        columns, cosines = np.zeros((len(row), r * m), np.float32), np.empty(r * m, np.float32)
        kinds = np.empty((r * m, r * m), np.int8)
        sums = np.empty((2, r * m), np.int32)
        found = np.empty((r, r), np.float32)
        for i in range(chunk * _CHUNK, min((chunk + 1) * _CHUNK, n)):
            n_mine = _gather(i, roots, around, places, mine, my_lists)
            for p in range(c):
                j = partners[i, p]
                if i == j:
                    continue
                n_others = _gather(j, roots, around, places, others, other_lists)
                for v in range(n_others):
                    for t in range(d):
                        columns[t, v] = rows[others[v], t]
                for u in range(n_mine):
                    cosines[:n_others] = 0
                    row[:d] = rows[mine[u]]
                    for t in range(0, len(row), 4):  # four at once: fewer loads and stores of the sums
                        x0, x1, x2, x3 = row[t], row[t + 1], row[t + 2], row[t + 3]
                        c0, c1, c2, c3 = columns[t], columns[t + 1], columns[t + 2], columns[t + 3]
                        for v in range(n_others):
                            cosines[v] += x0 * c0[v] + x1 * c1[v] + x2 * c2[v] + x3 * c3[v]
                    for v in range(n_others):
                        distance = min(max(np.float32(1) - cosines[v], np.float32(0)), np.float32(2))
                        kind = 1 if distance <= similar else (-1 if distance >= dissimilar else 0)
                        kinds[u, v] = 0 if mine[u] == others[v] else kind
                initial[i, p] = kinds[my_lists[0, 0], other_lists[0, 0]]  # an item is the first around itself
                for a in range(r):
                    sums[:, :n_others] = 0
                    for q in range(m):
                        for v in range(n_others):
                            kind = kinds[my_lists[a, q], v]
                            sums[0, v] += kind > 0
                            sums[1, v] += kind < 0
                    for b in range(r):
                        plus = minus = 0
                        for q in range(m):
                            plus += sums[0, other_lists[b, q]]
                            minus += sums[1, other_lists[b, q]]
                        # No labelled pair around: nothing is known, eta~ = 1/2.
                        found[a, b] = logs[plus] - logs[minus] if plus or minus else np.float32(0)
                low, high = np.inf, -np.inf
                for a in range(1 + skipped, r):
                    for b in range(1 + skipped, r):
                        low = min(low, np.float64(found[a, b]))
                for a in range(1, 1 + n_negative):
                    for b in range(1, 1 + n_negative):
                        high = max(high, np.float64(found[a, b]))
                logits[i, p] = found[0, 0]
                labels[i, p] = _label(np.float64(found[0, 0]), low, high, keep_certain)
    return labels, initial, logits
