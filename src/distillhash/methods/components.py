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
