from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.spatial.distance import cdist
from scipy.stats import norm

from distillhash.errors import DataError
from distillhash.supervision.similarity import (
    HalfGaussians,
    LabelRule,
    cosine_distances,
    fit_half_gaussians,
    label_pairs,
    pair_thresholds,
)


def features(n: int, d: int = 8, seed: int = 0) -> NDArray[Any]:
    rng = np.random.default_rng(seed)
    return np.abs(rng.standard_normal((5, d))[rng.integers(0, 5, n)] + 0.3 * rng.standard_normal((n, d))).astype("f4")


@pytest.mark.parametrize("n", [1, 2, 7, 33, 1500])
def test_cosine_distances_equal_the_library_and_are_symmetric(n: int) -> None:
    x = features(n)
    distances = cosine_distances(x)
    np.testing.assert_allclose(distances, np.clip(cdist(x, x, "cosine"), 0, 2), atol=1e-6)
    np.testing.assert_array_equal(distances, distances.T)
    assert not distances.diagonal().any()


def test_a_zero_row_is_at_distance_one() -> None:
    assert cosine_distances(np.array([[0.0, 0], [1, 1]], np.float32))[0, 1] == 1


@pytest.mark.parametrize("include_self", [False, True])
@pytest.mark.parametrize("n", [7, 33, 300])
def test_fit_equals_mirrored_gaussian_fits_by_loop(n: int, include_self: bool) -> None:
    distances = cosine_distances(features(n, seed=n))
    values = [float(distances[i, j]) for i in range(n) for j in range(n) if i != j or include_self]
    bins: dict[int, int] = {}
    for value in values:
        bins[int(np.floor(value / 0.01))] = bins.get(int(np.floor(value / 0.01)), 0) + 1
    fullest = min(bins, key=lambda b: (-bins[b], b))
    fit = fit_half_gaussians(distances, include_self=include_self)
    assert fit.mode == pytest.approx(fullest * 0.01)
    left = [v for v in values if v <= fit.mode]
    right = [v for v in values if v > fit.mode]
    if left:  # as released: mirror each half around the mode and fit a Gaussian to both together
        assert fit.sigma_left == pytest.approx(norm.fit(left + [2 * fit.mode - v for v in left])[1], rel=1e-6)
    assert fit.sigma_right == pytest.approx(norm.fit(right + [2 * fit.mode - v for v in right])[1], rel=1e-6)
    centre = fit_half_gaussians(distances, mode="centre", include_self=include_self)
    assert centre.mode == pytest.approx(fit.mode + 0.005)


def test_fit_recovers_two_glued_half_gaussians() -> None:
    rng = np.random.default_rng(0)
    n = 800
    z = rng.standard_normal(n * (n - 1) // 2)
    values = np.where(rng.random(len(z)) < 0.5, 0.75 - 0.05 * np.abs(z), 0.75 + 0.03 * np.abs(z))
    distances = np.zeros((n, n), np.float32)
    distances[np.triu_indices(n, 1)] = values
    distances += distances.T
    fit = fit_half_gaussians(distances)
    assert 0.74 <= fit.mode <= 0.76
    assert fit.sigma_left == pytest.approx(0.05, abs=0.006)
    assert fit.sigma_right == pytest.approx(0.03, abs=0.006)
    thresholds = pair_thresholds(distances, fit)
    labels = label_pairs(distances, thresholds)
    assert np.mean(labels != 0) == pytest.approx(0.0455, abs=0.02)


@pytest.mark.parametrize("rule", ["three-way", "two-way"])
@pytest.mark.parametrize("n", [2, 7, 33])
def test_labels_equal_a_loop(n: int, rule: LabelRule) -> None:
    distances = cosine_distances(features(n, seed=n))
    thresholds = pair_thresholds(distances, fit_half_gaussians(distances), alpha=1, beta=0.5)
    labels = label_pairs(distances, thresholds, rule=rule)
    for i in range(n):
        for j in range(n):
            expected = 0
            if i != j and distances[i, j] <= thresholds.similar:
                expected = 1
            elif i != j and (rule == "two-way" or distances[i, j] >= thresholds.dissimilar):
                expected = -1
            assert labels[i, j] == expected


def test_an_empty_side_falls_back_to_a_quantile() -> None:
    distances = cosine_distances(features(40))
    thresholds = pair_thresholds(distances, HalfGaussians(0.1, 1.0, 5.0))
    assert thresholds.fallback
    labels = label_pairs(distances, thresholds)
    assert (labels > 0).any() and (labels < 0).any()


def test_refusals() -> None:
    with pytest.raises(DataError, match="at least 2 items, got 1"):
        fit_half_gaussians(np.zeros((1, 1), np.float32))
