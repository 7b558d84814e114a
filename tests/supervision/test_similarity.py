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
    confusion,
    cosine_distances,
    describe_pairs,
    fit_half_gaussians,
    judge_pairs,
    label_pairs,
    pair_thresholds,
    probability_histogram,
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


def random_pairs(n: int, seed: int = 0) -> NDArray[Any]:
    half = np.triu(np.random.default_rng(seed).integers(-1, 2, (n, n)), 1)
    return (half + half.T).astype(np.int8)


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("n", [2, 7, 33, 600])
def test_diagnosis_equals_a_loop(n: int, multi_label: bool) -> None:
    rng = np.random.default_rng(n)
    pairs = random_pairs(n)
    labels = (rng.random((n, 3)) < 0.4).astype(int) if multi_label else rng.integers(0, 3, n)
    counts = {"+": 0, "-": 0, "+right": 0, "-right": 0, "similar": 0}
    for i in range(n):
        for j in range(n):
            if i == j:
                continue
            similar = bool((labels[i] & labels[j]).any()) if multi_label else labels[i] == labels[j]
            counts["similar"] += similar
            counts["+"] += pairs[i, j] > 0
            counts["-"] += pairs[i, j] < 0
            counts["+right"] += pairs[i, j] > 0 and similar
            counts["-right"] += pairs[i, j] < 0 and not similar
    total = n * (n - 1)
    facts, verdict = describe_pairs(pairs), judge_pairs(pairs, labels)
    assert facts["coverage_positive"] == pytest.approx(counts["+"] / total)
    assert facts["coverage_negative"] == pytest.approx(counts["-"] / total)
    assert facts["without_positive"] == pytest.approx(np.mean([not (row > 0).any() for row in pairs]))
    assert verdict["precision_positive"] == pytest.approx(counts["+right"] / max(counts["+"], 1))
    assert verdict["precision_negative"] == pytest.approx(counts["-right"] / max(counts["-"], 1))
    if counts["similar"]:
        prevalence = counts["similar"] / total
        assert verdict["lift_positive"] == pytest.approx(verdict["precision_positive"] / prevalence)


def test_histogram_and_confusion_count_every_off_diagonal_pair() -> None:
    logits = np.array([[9, 0.1, -30], [0.1, 9, 3], [-30, 3, 9]], np.float32)
    counts = probability_histogram(logits)
    assert sum(counts) == 6
    assert counts[0] == 2  # sg(-30)
    assert counts[10] == 2  # sg(.1) = .525
    assert counts[19] == 2  # sg(3) = .953
    before, after = random_pairs(20, 1), random_pairs(20, 2)
    table = confusion(before, after)
    assert sum(sum(row.values()) for row in table.values()) == 380
    assert table["+1"]["-1"] == sum(before[i, j] == 1 and after[i, j] == -1 for i in range(20) for j in range(20))


def test_judging_needs_matching_labels() -> None:
    with pytest.raises(DataError, match="2 labels for 3 items"):
        judge_pairs(random_pairs(3), np.zeros(2, int))
