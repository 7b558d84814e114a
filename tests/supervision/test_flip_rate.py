"""Bounds and distilled pairs against loops over all neighbour pairs, worked numbers, and the theory itself."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from distillhash.errors import DataError
from distillhash.supervision.flip_rate import distil_pairs
from distillhash.supervision.similarity import BoundRule


def sigmoid(x: NDArray[Any]) -> NDArray[Any]:
    return 1 / (1 + np.exp(-np.asarray(x, np.longdouble)))


def random_problem(n: int, o: int, seed: int, scale: float = 1.0) -> tuple[NDArray[Any], NDArray[Any]]:
    rng = np.random.default_rng(seed)
    u = rng.standard_normal((n, 6))
    logits = (scale * (u @ u.T)).astype(np.float32)
    logits = np.triu(logits) + np.triu(logits, 1).T
    neighbours = np.array([rng.choice(np.delete(np.arange(n), i), o, replace=False) for i in range(n)], np.int32)
    return logits, neighbours


def brute_force(logits: NDArray[Any], positive: NDArray[Any], negative: NDArray[Any], bounds: str) -> NDArray[Any]:
    """Eq. (8) and Theorem 1 on probabilities, one pair of neighbours at a time."""
    n = len(logits)
    eta = sigmoid(logits)
    labels = np.zeros((n, n), int)
    for i in range(n):
        for j in range(n):
            pairs_low = [(k, c) for k in positive[i] for c in positive[j]]
            pairs_high = [(k, c) for k in negative[i] for c in negative[j]]
            if bounds == "diagonal":
                pairs_low, pairs_high = [(k, k) for k in positive[j]], [(k, k) for k in negative[j]]
            if bounds == "unshared":
                pairs_low = [(k, c) for k, c in pairs_low if k != c]
                pairs_high = [(k, c) for k, c in pairs_high if k != c]
            minus = min((eta[k, c] for k, c in pairs_low), default=1)
            plus = min((1 - eta[k, c] for k, c in pairs_high), default=1)
            if i != j and eta[i, j] > (1 + minus) / 2:
                labels[i, j] = 1
            elif i != j and eta[i, j] < (1 - plus) / 2:
                labels[i, j] = -1
    return labels


@pytest.mark.parametrize("bounds", ["full", "unshared", "diagonal"])
@pytest.mark.parametrize(("n", "o"), [(2, 1), (7, 2), (12, 4), (33, 4)])
def test_equals_brute_force(n: int, o: int, bounds: BoundRule) -> None:
    logits, neighbours = random_problem(n, o, seed=n)
    labels = brute_force(logits, neighbours, neighbours, bounds)
    np.testing.assert_array_equal(distil_pairs(logits, neighbours, bounds=bounds), labels)


def test_other_neighbours_for_positives() -> None:
    logits, negative = random_problem(15, 5, seed=1)
    positive = negative[:, 2:]
    labels = brute_force(logits, positive, negative, "full")
    np.testing.assert_array_equal(distil_pairs(logits, negative, positive), labels)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(3, 12), scale=st.sampled_from([0.1, 1.0, 20.0]))
def test_symmetric_and_monotone_in_the_neighbourhood(seed: int, n: int, scale: float) -> None:
    logits, neighbours = random_problem(n, n - 1, seed, scale)
    kept = None
    for o in range(1, n):
        labels = distil_pairs(logits, neighbours[:, :o])
        np.testing.assert_array_equal(labels, labels.T)
        if kept is not None:  # larger neighbourhoods loosen the bounds: what was kept stays kept
            np.testing.assert_array_equal(labels[kept != 0], kept[kept != 0])
        kept = labels


def test_worked_numbers() -> None:
    # (eta; smallest and largest neighbour eta) -> label
    for eta, low, high, expected in [
        (0.90, 0.70, 0.99, 1),
        (0.90, 0.85, 0.99, 0),
        (0.60, 0.10, 0.95, 1),
        (0.20, 0.05, 0.50, -1),
        (0.20, 0.10, 0.30, 0),
        (0.50, 0.001, 0.999, 0),
    ]:
        # items 0, 1; their neighbours 2, 3 and 4, 5 carry the bounds
        logits = np.zeros((6, 6), np.float32)

        def logit(p: float) -> float:
            return float(np.log(p / (1 - p)))

        logits[0, 1] = logits[1, 0] = logit(eta)
        logits[2:4, 4:6] = logit((low + high) / 2)
        logits[2, 4], logits[3, 5] = logit(low), logit(high)
        logits[4:6, 2:4] = logits[2:4, 4:6].T
        neighbours = np.array([[2, 3], [4, 5], [3, 0], [2, 0], [5, 1], [4, 1]], np.int32)
        assert distil_pairs(logits, neighbours)[0, 1] == expected


def test_saturated_logits_keep_their_surest_pairs() -> None:
    # float32 sigmoids of 30 and 40 are both exactly 1, and 1 > (1 + 1) / 2 is false; in log space 40 beats 30.
    logits = np.full((4, 4), 30, np.float32)
    logits[0, 1] = logits[1, 0] = 40
    neighbours = np.array([[2, 3], [2, 3], [3, 0], [2, 0]], np.int32)
    assert distil_pairs(logits, neighbours)[0, 1] == 1
    assert distil_pairs(-logits, neighbours)[0, 1] == -1


def test_certain_estimates_are_handled() -> None:
    logits = np.full((4, 4), np.inf, np.float32)
    neighbours = np.array([[2, 3], [2, 3], [3, 0], [2, 0]], np.int32)
    assert not distil_pairs(logits, neighbours).any()  # eta~ = 1 > (1 + 1) / 2 is false everywhere
    for sign in (1, -1):
        kept = distil_pairs(sign * logits, neighbours, keep_certain=True)
        np.testing.assert_array_equal(kept, sign * (1 - np.eye(4)))
    logits[2:, 2:] = 0
    assert distil_pairs(logits, neighbours)[0, 1] == 1


def test_theorem_one_with_true_flip_rates_recovers_bayes_labels() -> None:
    # eta~ = eta (1 - r+ - r-) + r- over the whole range of eta: what the rule keeps with the true rates is right.
    for plus, minus in [(0.2, 0.1), (0.05, 0.3), (0.45, 0.45), (0.0, 0.0)]:
        eta = np.linspace(0, 1, 1001)
        noisy = eta * (1 - plus - minus) + minus
        kept_positive, kept_negative = noisy > (1 + minus) / 2, noisy < (1 - plus) / 2
        assert (eta[kept_positive] >= 0.5).all()
        assert (eta[kept_negative] < 0.5).all()


def test_a_homogeneous_neighbourhood_is_rejected_and_a_mixed_one_accepted() -> None:
    # Anti-intuitive and right by the theory: a neighbour pair that is surely dissimilar proves the false-positive rate small.
    same = np.full((4, 4), 2, np.float32)
    neighbours = np.array([[2, 3], [2, 3], [3, 0], [2, 0]], np.int32)
    assert distil_pairs(same, neighbours)[0, 1] == 0
    same[2, 3] = same[3, 2] = -20
    assert distil_pairs(same, neighbours)[0, 1] == 1


def test_refusals() -> None:
    logits, neighbours = random_problem(5, 2, 0)
    logits[1, 2] = np.nan
    with pytest.raises(DataError, match="NaN"):
        distil_pairs(logits, neighbours)
    with pytest.raises(DataError, match="neighbour lists"):
        distil_pairs(logits[:3], neighbours)
