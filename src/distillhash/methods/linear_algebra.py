"""Principal components, shared by the methods that start from them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillhash.errors import DataError


def principal_components(features: NDArray[Any], k: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and the ``k`` leading eigenvectors of the covariance, by an exact symmetric eigen-decomposition.

    Args:
        features: ``(n, d)``; streamed in blocks, so a memory map is never loaded whole.
        k: Components wanted.

    Returns:
        ``mean (d,)`` and ``components (d, k)`` float64, orthonormal columns by falling variance, largest entry positive.

    Raises:
        DataError: ``k`` exceeds the number of features.
    """
    from scipy.linalg import eigh

    n, d = features.shape
    if k > d:
        raise DataError(
            f"{k} bits need at least {k} features for a principal direction each, got {d}; ask for fewer bits"
        )
    mean = np.mean(features, axis=0, dtype=np.float64)
    covariance = np.zeros((d, d))
    for start in range(0, n, 4096):
        block = np.asarray(features[start : start + 4096], np.float64) - mean
        covariance += block.T @ block
    _, vectors = eigh(covariance / n, subset_by_index=(d - k, d - 1))
    components = vectors[:, ::-1]
    signs = np.sign(components[np.argmax(np.abs(components), axis=0), np.arange(k)])
    return np.asarray(mean), components * np.where(signs == 0, 1, signs)


# Regularised canonical correlation of two modalities, and the rotation of their variables that loses least by taking signs.
#
# Hotelling, "Relations between two sets of variates", Biometrika 1936; Gong et al., "Iterative quantization", TPAMI 2013.

Floats = NDArray[np.float64]


def canonical_directions(
    X: Floats, Y: Floats, k: int, regularisation: float, within: Floats | None = None
) -> tuple[Floats, Floats, Floats]:
    """Regularised CCA of centred rows, by the singular values of the whitened cross-covariance.

    Args:
        X: ``(t, d)``.
        Y: ``(t, e)``, row by row the partners of X.
        k: Directions wanted.
        regularisation: Ridge, as a share of each side's mean variance.
        within: ``(d, d)`` scatter inside each row of X (of an image's augmented views, where a row is their mean); it counts as variance
            that has nothing to do with Y.

    Returns:
        ``W_x (d, k)``, ``W_y (e, k)``, and the correlations ``(k,)`` in [0, 1], falling.

    Raises:
        DataError: ``k`` exceeds a side's number of features, or a side is constant.
    """
    if k > min(X.shape[1], Y.shape[1]):
        raise DataError(
            f"{k} bits need at least {k} features on either side for a canonical direction each, got {X.shape[1]} of images and "
            f"{Y.shape[1]} of texts; ask for fewer bits"
        )
    covariances = [side.T @ side / len(side) for side in (X, Y)]
    if within is not None:
        covariances[0] = covariances[0] + within
    whiteners = [
        _whitener(covariance, regularisation, name)
        for covariance, name in zip(covariances, ("images", "texts"), strict=True)
    ]
    cross = whiteners[0] @ (X.T @ Y / len(X)) @ whiteners[1]
    left, values, right = np.linalg.svd(cross, full_matrices=False)
    signs = np.where(
        left[np.argmax(np.abs(left[:, :k]), axis=0), np.arange(k)] < 0, -1.0, 1.0
    )  # as they fall is as LAPACK likes
    return whiteners[0] @ left[:, :k] * signs, whiteners[1] @ right[:k].T * signs, np.clip(values[:k], 0, 1)


def _whitener(covariance: Floats, regularisation: float, name: str) -> Floats:
    """The symmetric inverse square root of the regularised covariance."""
    ridge = regularisation * float(np.trace(covariance)) / len(covariance)
    if not ridge > 0:
        raise DataError(f"the features of the {name} are all alike; there is nothing to correlate")
    values, vectors = np.linalg.eigh(covariance)
    return np.asarray((vectors / np.sqrt(np.maximum(values, 0) + ridge)) @ vectors.T)


def code_rotation(rows: Floats, seed: int, iterations: int) -> tuple[Floats, list[float]]:
    """ITQ's rotation of rows of both modalities, each at the length of a code: minimises ``||B - V R||_F^2`` over signs B and R.

    Args:
        rows: ``(n, k)``.
        seed: Draws the first rotation.
        iterations: Alternating updates.

    Returns:
        ``R (k, k)``, orthogonal, and the error a row before each update, which never rises.
    """
    k = rows.shape[1]
    lengths = np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    V = np.sqrt(k) * rows / lengths  # as long as the corners of the cube they are to be near
    R, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((k, k)))
    losses = []
    for _ in range(iterations):
        rotated = V @ R
        B = np.where(rotated >= 0, 1.0, -1.0)
        losses.append(float(np.sum((B - rotated) ** 2) / len(V)))
        S, _, T = np.linalg.svd(B.T @ V)
        R = (S @ T).T
    return R, losses
