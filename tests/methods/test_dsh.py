from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from distillhash import make_hasher
from distillhash.errors import DataError, ParameterError
from distillhash.methods.dsh import adjacent_pairs, entropy
from distillhash.methods.linear_algebra import k_means


def mixture(n: int = 500, d: int = 12, seed: int = 0) -> NDArray[Any]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((9, d))[rng.integers(0, 9, n)] * 2 + rng.standard_normal((n, d)) + 5


def naive_pool(centres: NDArray[Any], shares: NDArray[Any], r: int) -> dict[tuple[int, int], float]:
    """Entropy of every r-adjacent pair, by loops over the paper's text."""
    k = len(centres)
    pairs = set()
    for i in range(k):
        others = sorted((j for j in range(k) if j != i), key=lambda j: float(np.linalg.norm(centres[i] - centres[j])))
        pairs |= {(min(i, j), max(i, j)) for j in others[:r]}
    pool = {}
    for i, j in pairs:
        w = centres[i] - centres[j]
        t = (centres[i] + centres[j]) / 2 @ w
        p1 = sum(shares[g] for g in range(k) if w @ centres[g] > t)
        pool[i, j] = -sum(p * np.log(p) for p in (p1, 1 - p1) if p > 1e-12)
    return pool


@pytest.mark.parametrize("n_bits", [1, 8, 40])
def test_bits_are_the_planes_of_highest_entropy(n_bits: int) -> None:
    x = mixture()
    hasher: Any = make_hasher("dsh", n_bits, seed=4).fit(x)
    centres, shares = k_means(x, max(2, round(1.5 * n_bits)), 3, np.random.default_rng(4))
    pool = naive_pool(centres, shares, 3)
    scores = []
    for weight, bias in zip(hasher.weight_.T, hasher.bias_, strict=True):
        # Each bit must be the median plane of one pair of the pool, and no pair may serve twice.
        match = [(i, j) for i, j in pool if np.allclose(weight, centres[i] - centres[j])]
        assert len(match) == 1
        (i, j) = match[0]
        assert bias - hasher.mean_ @ weight == pytest.approx(-(centres[i] + centres[j]) / 2 @ weight)
        scores.append(pool.pop((i, j)))
    everything = sorted([*scores, *pool.values()], reverse=True)
    np.testing.assert_allclose(scores, everything[:n_bits], atol=1e-9)


@pytest.mark.parametrize("k", [2, 24, 96])
def test_the_pool_of_pairs_suffices(k: int) -> None:
    centres = np.random.default_rng(k).standard_normal((k, 20))
    pairs = adjacent_pairs(centres, 3)
    assert {tuple(pair) for pair in pairs.tolist()} == set(naive_pool(centres, np.full(k, 1 / k), 3))
    r = min(3, k - 1)
    assert r * k / 2 <= len(pairs) <= r * k


def test_one_bit_separates_two_clusters() -> None:
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.standard_normal((40, 5)) + 9, rng.standard_normal((60, 5)) - 9])
    signs = make_hasher("dsh", 1).fit(x).encode(x).signs()[:, 0]
    assert len(set(signs[:40])) == len(set(signs[40:])) == 1 and signs[0] != signs[-1]


def test_entropy_is_that_of_a_coin() -> None:
    np.testing.assert_allclose(entropy(np.array([0, 0.5, 0.25, 1])), [0, np.log(2), 0.5623351446188083, 0], atol=1e-12)


def test_refusals() -> None:
    with pytest.raises(DataError, match="pair of neighbouring groups for each of 8 bits, and found 0"):
        make_hasher("dsh", 8).fit(np.full((30, 5), 2.5))
    with pytest.raises(DataError, match="found 1 "):
        make_hasher("dsh", 8).fit(mixture()[:2])
    for wrong, message in [
        ({"alpha": 0}, "alpha must be above 0"),
        ({"r": 0}, "r must"),
        ({"iterations": 0}, "iterations"),
    ]:
        with pytest.raises(ParameterError, match=message):
            make_hasher("dsh", 8, **wrong)
