"""Numerical steps that several methods share: principal components, rotations, canonical correlations, k-means."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillhash.errors import DataError
from distillhash.methods.base import sample_rows

Floats = NDArray[np.float64]
_BLOCK = 4096
_KMEANS_ROWS = 20_000


def row_blocks(features: NDArray[Any]) -> Iterator[Floats]:
    """The rows in float64 and C order, 4,096 at a time, so that a memory map is never loaded whole."""
    for start in range(0, len(features), _BLOCK):
        yield np.ascontiguousarray(features[start : start + _BLOCK], np.float64)


def directions(features: NDArray[Any]) -> Floats:
    """Rows of length 1 in float64; a row of zeros stays zero."""
    values = np.asarray(features, np.float64)
    lengths = np.linalg.norm(values, axis=1, keepdims=True)
    return np.asarray(values / np.where(lengths > 0, lengths, 1))


def principal_components(features: NDArray[Any], k: int) -> tuple[Floats, Floats]:
    """Mean and the ``k`` leading eigenvectors of the covariance, by an exact symmetric eigen-decomposition.

    ``mean (d,)`` and ``components (d, k)`` float64, orthonormal columns by falling variance, largest entry positive. Features are read in
    blocks, so a memory map is never loaded whole. :class:`DataError` where ``k`` exceeds the number of features.
    """
    from scipy.linalg import eigh

    n, d = features.shape
    if k > d:
        raise DataError(
            f"{k} bits need at least {k} features for a principal direction each, got {d} feature(s); ask for fewer bits"
        )
    mean = np.mean(features, axis=0, dtype=np.float64)
    covariance = np.zeros((d, d))
    for block in row_blocks(features):
        centred = block - mean
        covariance += centred.T @ centred
    _, vectors = eigh(covariance / n, subset_by_index=(d - k, d - 1))
    components = vectors[:, ::-1]
    signs = np.sign(components[np.argmax(np.abs(components), axis=0), np.arange(k)])
    return np.asarray(mean), components * np.where(signs == 0, 1, signs)


def procrustes_rotation(rows: Floats, iterations: int, rng: np.random.Generator) -> tuple[Floats, list[float]]:
    """ITQ's rotation: lowers ``||B - V R||_F^2`` over signs B and rotations R by alternating updates of the two.

    ``R (k, k)`` for V = ``rows (n, k)``, and the error per row before each update, which never rises. ``rng`` draws the first rotation.
    Gong et al., "Iterative quantization", TPAMI 2013. https://doi.org/10.1109/TPAMI.2012.193
    """
    k = rows.shape[1]
    R, _ = np.linalg.qr(rng.standard_normal((k, k)))
    losses = []
    for _ in range(iterations):
        rotated = rows @ R
        B = np.where(rotated >= 0, 1.0, -1.0)
        losses.append(float(np.sum((B - rotated) ** 2) / len(rows)))
        S, _, T = np.linalg.svd(B.T @ rows)
        R = (S @ T).T
    return R, losses


def orthonormal_projection(rows: NDArray[Any], n_bits: int, iterations: int, rng: np.random.Generator) -> Floats:
    """As :func:`procrustes_rotation`, for any number of bits: ``R (k, n_bits)`` with R^T R = I, or R R^T = I where k < n_bits.

    With more columns than bits the alternation chooses the subspace too, as the one with the largest sum of ``abs(rows @ R)``.
    """
    k = rows.shape[1]
    R, _ = np.linalg.qr(rng.standard_normal((max(k, n_bits), min(k, n_bits))))
    R = R if k >= n_bits else R.T
    for _ in range(iterations):
        signs = np.where(rows @ R.astype(rows.dtype) >= 0, 1, -1).astype(rows.dtype)
        S, _, T = np.linalg.svd((rows.T @ signs).astype(np.float64), full_matrices=False)
        R = S @ T
    return np.asarray(R)


def canonical_directions(
    X: Floats, Y: Floats, k: int, regularisation: float, within: Floats | None = None
) -> tuple[Floats, Floats, Floats]:
    """Regularised canonical correlation of centred images and texts, by the singular values of the whitened cross-covariance.

    Hotelling, "Relations between two sets of variates", Biometrika 1936. From ``X (t, d)`` images and ``Y (t, e)`` texts, row by row:
    ``W_x (d, k)``, ``W_y (e, k)``, and the correlations ``(k,)`` in [0, 1], falling. The largest entry of a left singular vector is
    positive, because LAPACK's sign is arbitrary. ``regularisation`` is a ridge, as a share of each side's mean variance. ``within (d, d)``,
    the scatter of an image's augmented views where a row of X is their mean, is added to the covariance of X: it is unrelated to Y.
    :class:`DataError` where ``k`` exceeds a side's number of features, or a side is constant.
    """
    if k > min(X.shape[1], Y.shape[1]):
        raise DataError(
            f"{k} bits need at least {k} features on either side for a canonical direction each, got {X.shape[1]} of images and "
            f"{Y.shape[1]} of texts; ask for fewer bits"
        )
    covariances = [side.T @ side / len(side) for side in (X, Y)]
    if within is not None:
        covariances[0] = covariances[0] + within
    white_x = _whitener(covariances[0], regularisation, "images")
    white_y = _whitener(covariances[1], regularisation, "texts")
    left, values, right = np.linalg.svd(white_x @ (X.T @ Y / len(X)) @ white_y, full_matrices=False)
    signs = np.where(left[np.argmax(np.abs(left[:, :k]), axis=0), np.arange(k)] < 0, -1.0, 1.0)
    return white_x @ left[:, :k] * signs, white_y @ right[:k].T * signs, np.clip(values[:k], 0, 1)


def _whitener(covariance: Floats, regularisation: float, name: str) -> Floats:
    """The symmetric inverse square root of the regularised covariance."""
    ridge = regularisation * float(np.trace(covariance)) / len(covariance)
    if not ridge > 0:
        raise DataError(f"the features of the {name} are all alike; there is nothing to correlate")
    values, vectors = np.linalg.eigh(covariance)
    return np.asarray((vectors / np.sqrt(np.maximum(values, 0) + ridge)) @ vectors.T)


def k_means(features: NDArray[Any], k: int, rounds: int, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Lloyd's k-means from at most ``k`` random rows, for so many ``rounds``; convergence is not tested.

    Centres ``(k', d)`` and each one's share of the rows ``(k',)``; empty groups are left out. More than 20,000 rows are sampled down.
    """
    from scipy.cluster.vq import kmeans2

    rows = np.ascontiguousarray(features[sample_rows(len(features), _KMEANS_ROWS, rng)], np.float64)
    start = rows[np.sort(rng.choice(len(rows), min(k, len(rows)), replace=False))]
    with warnings.catch_warnings():  # it warns of empty groups, which are left out below
        warnings.simplefilter("ignore", UserWarning)
        centres, labels = kmeans2(rows, start, iter=rounds, minit="matrix")
    counts = np.bincount(labels, minlength=len(centres))
    return centres[counts > 0], counts[counts > 0] / len(rows)


def squared_distances(features: Floats, centres: Floats) -> Floats:
    """Squared Euclidean distances ``(n, m)``, by one matrix product."""
    origin = centres.mean(axis=0)  # a shift changes no distance, and avoids cancellation when features lie far from 0
    x, u = features - origin, centres - origin
    squared = np.sum(x**2, axis=1)[:, None] - 2 * (x @ u.T) + np.sum(u**2, axis=1)
    return np.asarray(np.maximum(squared, 0))
