from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import norm

from distillhash.methods.dsg import pair_confidence
from distillhash.supervision.similarity import HalfGaussians, cosine_distances, fit_half_gaussians

FIT = HalfGaussians(mode=0.7, sigma_left=0.1, sigma_right=0.05)


def features(n: int, d: int = 16) -> NDArray[Any]:
    return np.abs(np.random.default_rng(n).standard_normal((n, d))).astype(np.float32)


@pytest.mark.parametrize("power", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("n", [2, 33, 600])
def test_equals_a_plain_loop(n: int, power: float) -> None:
    distances = cosine_distances(features(n))
    fit = fit_half_gaussians(distances) if n > 2 else FIT
    t = fit.mode - 0.7 * fit.sigma_left
    found = pair_confidence(distances, fit, t, power=power)
    left, right = norm(fit.mode, fit.sigma_left), norm(fit.mode, fit.sigma_right)
    rng = np.random.default_rng(0)
    for i, j in rng.integers(0, n, (200, 2)):
        distance = float(distances[i, j])
        if distance <= t:
            w = (left.cdf(t) - left.cdf(distance)) / (left.cdf(t) - left.cdf(0))
        else:
            w = (right.cdf(distance) - right.cdf(t)) / (right.cdf(2) - right.cdf(t))
        assert float(found[i, j]) == pytest.approx(w**power, abs=2e-3)
    np.testing.assert_array_equal(found, found.T)


def test_zero_at_the_threshold_one_at_the_ends_and_monotone_between() -> None:
    t = 0.62
    grid = np.linspace(0, 2, 400, dtype=np.float32)
    weights = pair_confidence(np.array([grid]), FIT, t)[0].astype(float)
    assert weights[0] == 1 and weights[-1] == 1
    near = grid <= t
    assert (np.diff(weights[near]) <= 0).all() and (np.diff(weights[~near]) >= 0).all()
    at = pair_confidence(
        np.array([[t, np.nextafter(np.float32(t), np.float32(2))]], np.float32), FIT, float(np.float32(t))
    )
    np.testing.assert_allclose(at, 0, atol=1e-6)


def test_power_zero_is_no_weighting_and_a_side_without_width_weighs_nothing() -> None:
    distances = cosine_distances(features(40))
    assert (pair_confidence(distances, FIT, 0.6, power=0.0) == 1).all()
    weights = pair_confidence(distances, HalfGaussians(0.7, 0.0, 0.05), 0.65)
    assert not weights[distances <= 0.65].any()
    assert weights[distances > 0.75].all()
