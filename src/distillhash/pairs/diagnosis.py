"""What pair labels look like, without labels, and how right they are when labels are at hand for diagnosis only."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillhash.errors import DataError
from distillhash.pairs.similarity import PairLabels

_BLOCK = 512
HISTOGRAM_BINS = 20


def describe_pairs(pairs: PairLabels, name: str = "pairs") -> dict[str, Any]:
    """Label-free facts about pair labels.

    Args:
        pairs: ``(n, n) int8`` in {-1, 0, +1}.
        name: Goes into the result as ``step``.

    Returns:
        ``step``, ``coverage_positive`` and ``coverage_negative`` (share of all off-diagonal pairs), ``without_positive``
        (share of items with no positive partner), ``positives_per_item`` (mean), ``symmetric``.
    """
    n = len(pairs)
    positives = np.count_nonzero(pairs > 0, axis=1)
    negatives = np.count_nonzero(pairs < 0, axis=1)
    off_diagonal = max(n * (n - 1), 1)
    return {
        "step": name,
        "coverage_positive": float(positives.sum() / off_diagonal),
        "coverage_negative": float(negatives.sum() / off_diagonal),
        "without_positive": float(np.mean(positives == 0)),
        "positives_per_item": float(positives.mean()),
        "symmetric": bool(np.array_equal(pairs, pairs.T)),
    }


def judge_pairs(pairs: PairLabels, labels: NDArray[Any]) -> dict[str, float]:
    """How right pair labels are against ground truth; for diagnosis, never for training.

    Args:
        pairs: ``(n, n) int8``.
        labels: ``(n,) int`` classes or ``(n, n_labels)`` 0/1 indicators; similar means same class, or a shared label.

    Returns:
        ``precision_positive``, ``precision_negative`` (0 where there are none), and their ``lift_*`` over the prevalence of
        truly similar (dissimilar) pairs: a lift of 1 is chance.

    Raises:
        DataError: ``labels`` does not match ``pairs``.
    """
    labels = np.asarray(labels)
    if len(labels) != len(pairs):
        raise DataError(f"{len(labels)} labels for {len(pairs)} items")
    n = len(pairs)
    right, given, similar_pairs = np.zeros(2), np.zeros(2), 0
    for start in range(0, n, _BLOCK):
        rows = slice(start, min(start + _BLOCK, n))
        similar = (
            labels[rows, None] == labels[None] if labels.ndim == 1 else (labels[rows].astype(float) @ labels.T) > 0
        )
        diagonal = np.arange(similar.shape[0])
        similar[diagonal, start + diagonal] = False
        similar_pairs += int(similar.sum())
        positive, negative = pairs[rows] > 0, pairs[rows] < 0
        given += positive.sum(), negative.sum()
        right += (positive & similar).sum(), (negative & ~similar).sum()
    prevalence = similar_pairs / max(n * (n - 1), 1)
    precision = right / np.maximum(given, 1)
    base = np.array([prevalence, 1 - prevalence])
    lift = np.divide(precision, base, out=np.zeros(2), where=base > 0)
    return {
        "precision_positive": float(precision[0]),
        "precision_negative": float(precision[1]),
        "lift_positive": float(lift[0]),
        "lift_negative": float(lift[1]),
    }


def probability_histogram(logits: NDArray[np.float32]) -> list[int]:
    """Histogram of the estimated probability eta~ = sg(s) over off-diagonal pairs: 20 equal bins on [0, 1]."""
    edges = np.linspace(0, 1, HISTOGRAM_BINS + 1)[1:-1]
    with np.errstate(divide="ignore"):
        cuts = np.log(edges / (1 - edges)).astype(np.float32)
    counts = np.zeros(HISTOGRAM_BINS, np.int64)
    for start in range(0, len(logits), _BLOCK):
        block = logits[start : start + _BLOCK]
        counts += np.bincount(np.searchsorted(cuts, block.ravel(), side="right"), minlength=HISTOGRAM_BINS)
    own = np.searchsorted(cuts, np.diagonal(logits), side="right")
    return [int(value) for value in counts - np.bincount(own, minlength=HISTOGRAM_BINS)]


def confusion(before: PairLabels, after: PairLabels) -> dict[str, dict[str, int]]:
    """How often each initial label became each distilled one, off the diagonal: ``{"+1": {"+1": ..., "0": ..., "-1": ...}, ...}``."""
    names = {1: "+1", 0: "0", -1: "-1"}
    table: dict[str, dict[str, int]] = {}
    for first, first_name in names.items():
        mask = before == first
        np.fill_diagonal(mask, False)
        kept = after[mask]
        table[first_name] = {name: int(np.count_nonzero(kept == value)) for value, name in names.items()}
    return table
