"""Noisy pair labels from distances of pretrained features, by the half-Gaussian thresholds of SSDH, and what they look like.

Paper: Yang, Deng, Liu, Liu, Tao, "Semantic Structure-based Unsupervised Deep Hashing", IJCAI 2018; used by DistillHash
(CVPR 2019) for its Eq. (2). The histogram of cosine distances looks like two half Gaussians glued at the mode m; pairs far
to the left of the mode are called similar, pairs far to the right dissimilar, the rest stays unlabelled. The paper mirrors each half and
fits a Gaussian to it. Mirroring makes the mean m, so the fit is closed form: sigma_left^2 = mean (m - D)^2 over D <= m, likewise right.

Departs from the released code in: self-distances (the zero diagonal) are left out of the fit unless asked for; the
histogram spans the data, not [0, 1), because centred features reach beyond 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from distillhash.errors import DataError

Floats = NDArray[np.float32]
PairLabels = NDArray[np.int8]
ModeRule = Literal["left-edge", "centre"]
LabelRule = Literal["three-way", "two-way"]
BoundRule = Literal["full", "unshared", "diagonal"]

BIN_WIDTH = 0.01
FALLBACK_SHARE = 0.01
HISTOGRAM_BINS = 20
_BLOCK = 1024


@dataclass(frozen=True)
class HalfGaussians:
    """Mode and one standard deviation per side of a distance histogram."""

    mode: float
    sigma_left: float
    sigma_right: float


@dataclass(frozen=True)
class Thresholds:
    """Pairs at ``similar`` or below are labelled +1, pairs at ``dissimilar`` or above -1."""

    similar: float
    dissimilar: float
    fallback: bool  # the Gaussian rule left one side without pairs and a quantile took its place


def row_blocks(n: int) -> list[slice]:
    """Slices of at most 8,192 of ``n`` rows, to bound the memory of what is computed in float64."""
    return [slice(start, min(start + 8192, n)) for start in range(0, n, 8192)]


def unit_rows(features: NDArray[Any]) -> Floats:
    """Rows scaled to length 1, ``(n, d) float32``; a zero row stays zero."""
    features = np.asarray(features, np.float32)
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    return np.asarray(features / np.where(norms > 0, norms, 1), np.float32)


def cosine_distances(features: NDArray[Any]) -> Floats:
    """All cosine distances ``D = 1 - cos``: ``(n, n) float32`` in [0, 2], symmetric, diagonal exactly 0. Memory 4 n^2 bytes."""
    unit = unit_rows(features)
    distances = unit @ unit.T
    np.subtract(1, distances, out=distances)
    np.clip(distances, 0, 2, out=distances)
    mirror_upper(distances)
    np.fill_diagonal(distances, 0)
    return distances


def mirror_upper(square: Floats) -> None:
    """Copy the upper triangle over the lower one in place: a matrix product rounds the two apart by a last bit."""
    for start in range(0, len(square), _BLOCK):
        stop = min(start + _BLOCK, len(square))
        square[start:stop, :start] = square[:start, start:stop].T
        block = square[start:stop, start:stop]
        block[:] = np.triu(block) + np.triu(block, 1).T


def fit_half_gaussians(distances: Floats, *, mode: ModeRule = "left-edge", include_self: bool = False) -> HalfGaussians:
    """Fit the two half Gaussians to ``(n, n)`` symmetric distances in closed form.

    The mode lies at the left edge of the fullest bin (as released) or at its centre. ``include_self`` counts the zero diagonal, as
    released; it pulls sigma_left up by about m^2 / n.
    """
    n = len(distances)
    if n < 2:
        raise DataError(f"pair labels need at least 2 items, got {n}")
    low = 0.0 if include_self else float(min(distances[i, :i].min() for i in range(1, n)))
    first = np.floor(low / BIN_WIDTH)
    n_bins = int(np.floor(float(distances.max()) / BIN_WIDTH) - first) + 1
    edges = (first + np.arange(n_bins + 1)) * BIN_WIDTH
    counts = np.zeros(n_bins, np.int64)
    for values in _off_diagonal_blocks(distances):
        counts += np.histogram(values, bins=edges)[0]
    if include_self:
        counts[0] += n
    fullest = int(np.argmax(counts))
    m = float(edges[fullest]) + (BIN_WIDTH / 2 if mode == "centre" else 0.0)
    sums, sizes = np.zeros(2), np.zeros(2)
    for values in _off_diagonal_blocks(distances):
        squares = (values.astype(np.float64) - m) ** 2
        left = values <= m
        sums += squares[left].sum(), squares[~left].sum()
        sizes += left.sum(), (~left).sum()
    if include_self:
        sums[0] += n * m**2
        sizes[0] += n
    sigma = np.sqrt(sums / np.maximum(sizes, 1))
    return HalfGaussians(m, float(sigma[0]), float(sigma[1]))


def _off_diagonal_blocks(distances: Floats) -> Any:
    for start in range(0, len(distances), _BLOCK):
        block = distances[start : start + _BLOCK]
        keep = np.ones(block.shape, bool)
        keep[np.arange(len(block)), start + np.arange(len(block))] = False
        yield block[keep]


def pair_thresholds(distances: Floats, fit: HalfGaussians, *, alpha: float = 2.0, beta: float = 2.0) -> Thresholds:
    """``similar = m - alpha sigma_left`` and ``dissimilar = m + beta sigma_right`` (SSDH; t1 and t2 of DistillHash Eq. 2).

    ``alpha`` and ``beta`` are at least 0. A side that no pair reaches falls back to the closest (farthest) 1 % of pairs, because a
    loss with one sign collapses.
    """
    similar, dissimilar = fit.mode - alpha * fit.sigma_left, fit.mode + beta * fit.sigma_right
    upper = distances[np.triu_indices(min(len(distances), 2000), 1)]  # a corner is sample enough for a 1 % quantile
    fallback = False
    if not any(bool((values <= similar).any()) for values in _off_diagonal_blocks(distances)):
        similar, fallback = float(np.quantile(upper, FALLBACK_SHARE, method="higher")), True
    if not any(bool((values >= dissimilar).any()) for values in _off_diagonal_blocks(distances)):
        dissimilar, fallback = float(np.quantile(upper, 1 - FALLBACK_SHARE, method="lower")), True
    return Thresholds(similar, dissimilar, fallback)


def label_pairs(distances: Floats, thresholds: Thresholds, *, rule: LabelRule = "three-way") -> PairLabels:
    """Noisy pair labels S~ (DistillHash Eq. 2), ``(n, n) int8`` in {-1, 0, +1}, diagonal 0.

    ``three-way`` leaves pairs between the thresholds unlabelled; ``two-way`` calls everything that is not similar dissimilar (as released).
    """
    labels = np.zeros(distances.shape, np.int8)
    labels[distances >= thresholds.dissimilar] = -1
    if rule == "two-way":
        labels[:] = -1
    labels[distances <= thresholds.similar] = 1
    np.fill_diagonal(labels, 0)
    return labels


def describe_pairs(pairs: PairLabels, name: str = "pairs") -> dict[str, Any]:
    """Label-free facts about pair labels ``(n, n) int8``; ``name`` goes into the result as ``step``.

    Coverage is the share of all off-diagonal pairs, ``without_positive`` that of items without a positive partner.
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


def describe_partners(labels: PairLabels, name: str) -> dict[str, Any]:
    """As :func:`describe_pairs`, of the labels ``(n, c)`` of rows and their partners; coverage is the share of these pairs."""
    positives = np.count_nonzero(labels > 0, axis=1)
    return {
        "step": name,
        "coverage_positive": float(np.mean(labels > 0)),
        "coverage_negative": float(np.mean(labels < 0)),
        "without_positive": float(np.mean(positives == 0)),
        "positives_per_item": float(positives.mean()),
        "symmetric": False,
    }


def judge_pairs(pairs: PairLabels, labels: NDArray[Any]) -> dict[str, float]:
    """How right pair labels ``(n, n) int8`` are against ground truth; for diagnosis, never for training.

    ``labels`` are ``(n,)`` classes or ``(n, n_labels)`` 0/1 indicators; similar means same class, or a shared label. Precision is 0 where
    there are no such pairs. ``lift_*`` is precision over the prevalence of truly similar (dissimilar) pairs: 1 is chance.
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
    names = "precision_positive", "precision_negative", "lift_positive", "lift_negative"
    return dict(zip(names, [*precision.tolist(), *lift.tolist()], strict=True))


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
