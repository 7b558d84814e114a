"""DSG: what it trains on and the loss it trains with, against plain loops."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import ndtr
from scipy.stats import norm

from distillhash.errors import DataError, ParameterError
from distillhash.methods import make_hasher
from distillhash.methods.dsg import pair_confidence
from distillhash.methods.training import Batch, pair_targets
from distillhash.supervision.clusters import assign_clusters
from distillhash.supervision.losses import squared_loss
from distillhash.supervision.similarity import HalfGaussians, cosine_distances, fit_half_gaussians


def clustered(n: int = 120, d: int = 20, seed: int = 0) -> NDArray[Any]:
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((6, d))
    return np.maximum(centres[np.arange(n) % 6] + 0.6 * rng.standard_normal((n, d)), 0).astype(np.float32)


def dsg(**options: Any) -> Any:
    return make_hasher("dsg", 8, **{"epochs": 1, **options})


def test_the_weighted_squared_loss_equals_a_plain_loop() -> None:
    rng = np.random.default_rng(0)
    u, S, w = np.tanh(rng.standard_normal((7, 12))), rng.integers(-1, 2, (7, 7)), rng.random((7, 7))
    expected = sum(w[i, j] * abs(S[i, j]) * (u[i] @ u[j] / 12 - S[i, j]) ** 2 for i in range(7) for j in range(7)) / 49
    codes, pairs = torch.from_numpy(u), torch.from_numpy(S).double()
    assert float(squared_loss(codes, pairs, torch.from_numpy(w))) == pytest.approx(expected, rel=1e-12)
    ones = torch.ones(7, 7, dtype=torch.float64)
    assert float(squared_loss(codes, pairs, ones)) == pytest.approx(float(squared_loss(codes, pairs)))


@pytest.mark.parametrize(("alpha", "priority"), [(1.0, 1.0), (0.0, 2.0)])
def test_labels_weights_and_filter_equal_a_loop(alpha: float, priority: float) -> None:
    x = clustered()
    hasher = dsg(alpha=alpha, priority=priority, n_clusters=5, seed=2).fit(x)
    D = cosine_distances(x)
    fit = fit_half_gaussians(D)
    t = fit.mode - alpha * fit.sigma_left
    m, below, above = fit.mode, fit.sigma_left, fit.sigma_right
    clusters = assign_clusters(x, D, 5, seed=2)
    assert hasher.history_["thresholds"]["similar"] == pytest.approx(t)
    dropped = 0
    for i in range(0, 120, 3):
        for j in range(120):
            if i == j:
                assert hasher.initial_pairs_[i, j] == hasher.pairs_[i, j] == 0
                continue
            sign = 1 if D[i, j] <= t else -1
            distance = float(D[i, j])
            if sign > 0:
                w = (ndtr((t - m) / below) - ndtr((distance - m) / below)) / (ndtr((t - m) / below) - ndtr(-m / below))
            else:
                w = (ndtr((distance - m) / above) - ndtr((t - m) / above)) / (
                    ndtr((2 - m) / above) - ndtr((t - m) / above)
                )
            agrees = (clusters[i] == clusters[j]) == (sign > 0)
            dropped += not agrees
            assert hasher.initial_pairs_[i, j] == sign
            assert hasher.pairs_[i, j] == (sign if agrees else 0)
            assert float(hasher.weights_[i, j]) == pytest.approx(w**priority, abs=2e-3)
    assert dropped  # the filter had something to do


def test_the_loss_reads_the_pairs_of_the_batch() -> None:
    rng = np.random.default_rng(1)
    pairs, weights = rng.integers(-1, 2, (9, 9)).astype(np.int8), rng.random((9, 9)).astype(np.float16)
    rows = np.array([7, 2, 5])
    outputs = torch.from_numpy(rng.standard_normal((3, 4)).astype(np.float32))
    batch = Batch(outputs, rows, pair_targets(pairs, weights)(rows))
    u = np.tanh(outputs.numpy())
    expected = 0.0
    for a, i in enumerate(rows):
        for b, j in enumerate(rows):
            expected += float(weights[i, j]) * abs(pairs[i, j]) * (u[a] @ u[b] / 4 - pairs[i, j]) ** 2 / 9
    assert float(dsg().batch_loss(outputs, batch)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("clustering", ["spectral", "kmeans"])
def test_codes_of_a_cluster_end_up_alike(clustering: str) -> None:
    x = clustered()
    signs = make_hasher("dsg", 16, clustering=clustering).fit(x).encode(x).signs().astype(int)
    same = np.equal.outer(np.arange(120) % 6, np.arange(120) % 6)
    agreement = signs @ signs.T / 16
    assert agreement[same].mean() > agreement[~same].mean() + 0.7


def test_refusals() -> None:
    with pytest.raises(ParameterError, match="clustering must be one of spectral, kmeans, got 'x'"):
        dsg(clustering="x")
    for name in ("alpha", "priority"):
        with pytest.raises(ParameterError, match=f"{name} must be at least 0, got -1"):
            dsg(**{name: -1})
    with pytest.raises(ParameterError, match="n_clusters must be at least 1, got 0"):
        dsg(n_clusters=0)
    with pytest.raises(DataError, match="no similar pairs are left"):  # equal distances have no confidence
        dsg().fit(np.ones((20, 6), np.float32))
    with pytest.raises(DataError, match="no dissimilar pairs are left"):
        dsg(n_clusters=1).fit(clustered())


FIT = HalfGaussians(mode=0.7, sigma_left=0.1, sigma_right=0.05)


def features(n: int, d: int = 16) -> NDArray[Any]:
    return np.abs(np.random.default_rng(n).standard_normal((n, d))).astype(np.float32)


@pytest.mark.parametrize("power", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("n", [2, 33, 600])
def test_confidence_equals_a_plain_loop(n: int, power: float) -> None:
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
