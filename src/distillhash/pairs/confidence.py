"""How sure a pair label is: the mass of a half Gaussian between the label's threshold and the pair's distance.

Paper: Luo et al., "Unsupervised Deep Hashing via Distilled Smooth Guidance", ICME 2021, and Luo et al., "CIMON: Towards High-quality
Hash Codes", IJCAI 2021. With Phi_l, Phi_r the distribution functions of the two half Gaussians and t the threshold between + and -:

    D <= t:  w = (Phi_l(t) - Phi_l(D)) / (Phi_l(t) - Phi_l(0))        D > t:  w = (Phi_r(D) - Phi_r(t)) / (Phi_r(2) - Phi_r(t))

so w is 0 at the threshold and 1 at the ends 0 and 2 of the cosine distance.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillhash.pairs.similarity import Floats, HalfGaussians

Weights = NDArray[np.float16]
_BLOCK = 512
_FARTHEST = 2.0


def pair_confidence(distances: Floats, fit: HalfGaussians, threshold: float, *, power: float = 1.0) -> Weights:
    """Confidence of two-way pair labels.

    Args:
        distances: ``(n, n)`` symmetric cosine distances.
        fit: Their half Gaussians.
        threshold: Pairs at this distance or below are labelled +1, the others -1.
        power: The weights are raised to it: above 1 stresses the surest pairs, 0 makes all weights 1.

    Returns:
        ``(n, n) float16`` in [0, 1]; half precision, because two bytes a pair is what a large training set can afford. A side of no
        width (equal distances) says nothing and weighs 0.
    """
    left, right = _side(fit.mode, fit.sigma_left), _side(fit.mode, fit.sigma_right)
    near = float(left(threshold) - left(0.0))
    far = float(right(_FARTHEST) - right(threshold))
    weights = np.zeros(distances.shape, np.float16)
    for start in range(0, len(distances), _BLOCK):
        block = distances[start : start + _BLOCK]
        similar = block <= threshold
        found = np.zeros(block.shape, np.float32)
        if near > 0:
            found[similar] = (left(threshold) - left(block[similar])) / near
        if far > 0:
            found[~similar] = (right(block[~similar]) - right(threshold)) / far
        weights[start : start + len(block)] = np.clip(found, 0, 1) ** power
    return weights


def _side(mode: float, sigma: float) -> Any:
    """The distribution function of N(mode, sigma^2); constant, and so without any mass, at sigma = 0."""
    from scipy.special import ndtr

    if sigma == 0:
        return lambda x: np.zeros_like(x)
    return lambda x: ndtr((x - mode) / sigma)
