from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from distillhash import Codes, make_hasher
from distillhash.errors import DataError, ParameterError
from distillhash.methods.sph import forces, spherical_hamming


def cloud(n: int = 600, d: int = 16, seed: int = 0) -> NDArray[Any]:
    rng = np.random.default_rng(seed)
    return np.maximum(rng.standard_normal((n, d)) @ rng.standard_normal((d, d)) + 1, 0)


def naive_radii(x: NDArray[Any], pivots: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    radii, inside = [], []
    for p in pivots:
        distance = np.array([np.linalg.norm(row - p) for row in x])
        middle = np.sort(distance)[len(x) // 2 - 1 : len(x) // 2 + 1]
        radii.append(middle.mean())
        inside.append(distance <= radii[-1])
    return np.array(radii), np.array(inside).T


@pytest.mark.parametrize("n_bits", [1, 6, 16])
def test_matches_the_paper_step_by_step(n_bits: int) -> None:
    x, n = cloud(200), 200
    hasher: Any = make_hasher("sph", n_bits, seed=3).fit(x)
    rng = np.random.default_rng(3)
    pivots = np.array([x[rng.choice(n, 5, replace=False)].mean(0) for _ in range(n_bits)])
    rounds = 0
    while True:
        radii, inside = naive_radii(x, pivots)
        overlaps = {(i, j): np.sum(inside[:, i] & inside[:, j]) for i in range(n_bits) for j in range(n_bits) if i != j}
        o = np.array([overlaps[i, j] for i, j in overlaps if i < j])
        if not len(o) or (np.abs(o - n / 4).mean() <= 0.1 * n / 4 and o.std() <= 0.15 * n / 4):
            break
        rounds += 1
        moved = pivots.copy()
        for (i, j), both in overlaps.items():
            moved[i] += 0.5 * (both - n / 4) / (n / 4) * (pivots[i] - pivots[j]) / n_bits
        pivots = moved
    assert rounds == max(0, len(hasher.history_["overlap_error"]) - 1)
    assert rounds > 0 or n_bits == 1
    np.testing.assert_allclose(hasher.pivots_, pivots, rtol=1e-9)
    np.testing.assert_allclose(hasher.radii_, radii, rtol=1e-9)
    new = cloud(50, seed=1)
    expected = radii - np.array([[np.linalg.norm(row - p) for p in pivots] for row in new])
    np.testing.assert_allclose(hasher.project(new), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("n", [600, 601])
def test_bits_end_balanced_and_pairwise_independent(n: int) -> None:
    x = cloud(n)
    hasher = make_hasher("sph", 32).fit(x)
    errors, spreads = (np.array(hasher.history_[name]) for name in ("overlap_error", "overlap_spread"))
    assert 1 < len(errors) < 100  # it stopped by itself
    assert errors[-1] <= 0.10 < errors[0] and spreads[-1] <= 0.15
    inside = hasher.encode(x).signs() > 0
    np.testing.assert_array_equal(inside.sum(0), n // 2)
    overlaps = (inside.T.astype(int) @ inside.astype(int))[np.triu_indices(32, 1)]
    assert np.abs(overlaps - n / 4).mean() / (n / 4) == pytest.approx(errors[-1])


def test_spheres_that_overlap_too_much_part() -> None:
    pivots = np.array([[0.0, 0.0], [1.0, 0.0]])
    for overlap, direction in [(40.0, -1), (10.0, 1), (25.0, 0)]:
        moves = forces(np.array([[50.0, overlap], [overlap, 50.0]]), pivots, 100)
        assert np.sign(moves[0, 0]) == direction == -np.sign(moves[1, 0])


def test_training_is_capped() -> None:
    hasher = make_hasher("sph", 16, max_iterations=3, mean_tolerance=0, std_tolerance=0).fit(cloud())
    assert len(hasher.history_["overlap_error"]) == 3
    # The radii belong to the pivots of the last move.
    np.testing.assert_array_equal((hasher.encode(cloud()).signs() > 0).sum(0), 300)


def test_spherical_hamming_matches_a_loop() -> None:
    rng = np.random.default_rng(0)
    a, b = (np.where(rng.random((n, 13)) < 0.4, 1, -1) for n in (9, 21))
    a[0], b[0] = -1, -1  # nothing in common with anything, and equal to each other
    distances = spherical_hamming(Codes.from_signs(a), Codes.from_signs(b))
    assert distances.shape == (9, 21)
    for i in range(9):
        for j in range(21):
            different = sum(s != t for s, t in zip(a[i], b[j], strict=True))
            common = sum(s == t == 1 for s, t in zip(a[i], b[j], strict=True))
            assert distances[i, j] == pytest.approx(different / (common or 0.1))
    assert distances[0, 0] == 0


def test_refusals() -> None:
    with pytest.raises(DataError, match="codes of 3 and 4 bits"):
        spherical_hamming(Codes.from_signs(np.ones((1, 3))), Codes.from_signs(np.ones((1, 4))))
    for wrong in ({"max_iterations": 0}, {"mean_tolerance": -1}, {"std_tolerance": float("nan")}):
        with pytest.raises(ParameterError, match=next(iter(wrong))):
            make_hasher("sph", 8, **wrong)
