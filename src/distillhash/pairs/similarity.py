"""Noisy pair labels from distances of pretrained features: the half-Gaussian thresholds of SSDH.

Paper: Yang, Deng, Liu, Liu, Tao, "Semantic Structure-based Unsupervised Deep Hashing", IJCAI 2018; used by DistillHash
(CVPR 2019) for its Eq. (2). The histogram of cosine distances looks like two half Gaussians glued at the mode m; pairs far
to the left of the mode are called similar, pairs far to the right dissimilar, the rest stays unlabelled.

The paper mirrors each half and fits a Gaussian to it. Mirroring makes the mean m, so the fit is closed form:
sigma_left^2 = mean (m - D)^2 over D <= m, and the mirror image for the right.

Departs from the released code in: self-distances (the zero diagonal) are left out of the fit unless asked for; the
histogram spans the data, not [0, 1), because centred features reach beyond 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from distillhash.errors import DataError, ParameterError

Floats = NDArray[np.float32]
PairLabels = NDArray[np.int8]
ModeRule = Literal["left-edge", "centre"]
LabelRule = Literal["three-way", "two-way"]

BIN_WIDTH = 0.01
FALLBACK_SHARE = 0.01
_BLOCK = 1024


@dataclass(frozen=True)
class HalfGaussians:
    """Mode and one standard deviation per side of a distance histogram."""

    mode: float
    sigma_left: float
    sigma_right: float


@dataclass(frozen=True)
class Thresholds:
    """Pairs at ``similar`` or below are labelled +1, pairs at ``dissimilar`` or above -1.

    ``fallback`` is True when the Gaussian rule left one side without pairs and a quantile took its place.
    """

    similar: float
    dissimilar: float
    fallback: bool = False


def row_blocks(n: int) -> list[slice]:
    """Slices of at most 8,192 of ``n`` rows: what is computed in float64 is computed of one at a time."""
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
    """Fit the two half Gaussians in closed form.

    Args:
        distances: ``(n, n)`` symmetric distances.
        mode: Read the mode at the left edge of the fullest bin (as released) or at its centre. Bins are 0.01 wide.
        include_self: Count the zero diagonal, as released; it pulls sigma_left up by about m^2 / n.

    Raises:
        DataError: fewer than two items.
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

    A side that no pair reaches falls back to the closest (farthest) 1 % of pairs, because a loss with one sign collapses.

    Raises:
        ParameterError: ``alpha`` or ``beta`` is negative.
    """
    if alpha < 0 or beta < 0:
        raise ParameterError(f"alpha and beta must be at least 0, got {alpha} and {beta}")
    similar, dissimilar = fit.mode - alpha * fit.sigma_left, fit.mode + beta * fit.sigma_right
    upper = distances[np.triu_indices(min(len(distances), 2000), 1)]  # a corner is sample enough for a 1 % quantile
    fallback = False
    if not any(bool((values <= similar).any()) for values in _off_diagonal_blocks(distances)):
        similar, fallback = float(np.quantile(upper, FALLBACK_SHARE, method="higher")), True
    if not any(bool((values >= dissimilar).any()) for values in _off_diagonal_blocks(distances)):
        dissimilar, fallback = float(np.quantile(upper, 1 - FALLBACK_SHARE, method="lower")), True
    return Thresholds(similar, dissimilar, fallback)


def label_pairs(distances: Floats, thresholds: Thresholds, *, rule: LabelRule = "three-way") -> PairLabels:
    """Noisy pair labels S~ (DistillHash Eq. 2).

    Args:
        distances: ``(n, n)`` symmetric distances.
        thresholds: From :func:`pair_thresholds`.
        rule: ``three-way`` leaves pairs between the thresholds unlabelled; ``two-way`` calls everything that is not similar
            dissimilar (the released DistillHash code).

    Returns:
        ``(n, n) int8`` in {-1, 0, +1}, diagonal 0.
    """
    labels = np.zeros(distances.shape, np.int8)
    labels[distances >= thresholds.dissimilar] = -1
    if rule == "two-way":
        labels[:] = -1
    labels[distances <= thresholds.similar] = 1
    np.fill_diagonal(labels, 0)
    return labels
