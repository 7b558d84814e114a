from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from distillhash import make_hasher
from distillhash.errors import DataError, ParameterError
from distillhash.methods.dgh import climb, nearest_uncorrelated, spread_to_anchors
from distillhash.methods.linear_algebra import build_graph


def mixture(n: int = 300, d: int = 10, seed: int = 0) -> NDArray[Any]:
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).standard_normal((6, d)) * 2
    return centres[rng.integers(0, 6, n)] + 1.2 * rng.standard_normal((n, d)) + 4


def signs(values: NDArray[Any]) -> NDArray[Any]:
    return np.where(values >= 0, 1.0, -1.0)


def dense_graph(Z: Any) -> NDArray[Any]:
    Z = Z.toarray()
    return np.asarray(Z @ np.diag(1 / Z.sum(0)) @ Z.T)


@pytest.mark.parametrize("rho", [0, 0.3, 5])
@pytest.mark.parametrize("variant", ["r", "weighted-r", "i"])
def test_the_objective_never_falls(variant: str, rho: float) -> None:
    hasher = make_hasher("dgh", 20, variant=variant, rho=rho, n_anchors=60).fit(mixture())
    objective = np.array(hasher.history_["objective"])
    assert 3 <= len(objective) <= 41 and len(objective) % 2 == 1
    assert np.diff(objective).min() >= -1e-12
    assert objective[-1] > objective[0] + 0.01


@pytest.mark.parametrize("variant", ["r", "weighted-r", "i"])
def test_matches_the_formula_on_the_dense_graph(variant: str) -> None:
    x, n, rho, k = mixture(), 300, 0.5, 6
    hasher: Any = make_hasher("dgh", k, variant=variant, rho=rho, n_anchors=60, seed=2).fit(x)
    rng = np.random.default_rng(2)
    graph, sparse = build_graph(x, 60, 3, rng)
    Z, A = sparse.toarray(), dense_graph(sparse)
    values, vectors = np.linalg.eigh(A - np.ones((n, n)) / n)
    H = vectors[:, ::-1][:, :k]
    # The columns' signs are arbitrary; those of the hasher's start make the largest anchor value positive.
    at_anchors = np.diag(1 / Z.sum(0)) @ Z.T @ H
    H = H * np.sign(at_anchors[np.abs(at_anchors).argmax(0), range(k)])
    Y = np.sqrt(n) * H
    if variant == "r":
        R = np.linalg.qr(rng.standard_normal((k, k)))[0]
        for _ in range(100):
            left, _, right = np.linalg.svd(H.T @ np.where(H @ R >= 0, 1, -1))
            R = left @ right
        Y = Y @ R
    B = np.where(Y >= 0, 1.0, -1.0)
    if variant == "weighted-r":  # Eq. (8), in the paper's terms
        R, theta = np.eye(k), np.diag(values[::-1][:k])
        for _ in range(100):
            B = np.where(H @ theta @ R >= 0, 1.0, -1.0)
            left, _, right = np.linalg.svd(theta @ H.T @ B)
            R = left @ right
        Y = Y @ R
    objective = [np.trace(B.T @ A @ B) + rho * np.trace(B.T @ Y)]
    for _ in range(20):
        for _ in range(300):
            G = 2 * A @ B + rho * Y
            last, B = B, np.where(G == 0, B, np.sign(G))
            if (last == B).all():
                break
        objective.append(np.trace(B.T @ A @ B) + rho * np.trace(B.T @ Y))
        left, _, right = np.linalg.svd(B - B.mean(0), full_matrices=False)
        Y = np.sqrt(n) * left @ right
        objective.append(np.trace(B.T @ A @ B) + rho * np.trace(B.T @ Y))
    recorded = hasher.history_["objective"]
    np.testing.assert_allclose(recorded, np.array(objective[: len(recorded)]) / (n * k), rtol=1e-9)
    assert objective[-1] / (n * k) == pytest.approx(recorded[-1])  # stopping early lost nothing
    # Unseen rows: B^T Z Lambda^-1 z(q).
    np.testing.assert_allclose(hasher.weight_, np.diag(1 / Z.sum(0)) @ Z.T @ B, atol=1e-9)
    new = mixture(40, seed=1)
    np.testing.assert_allclose(hasher.project(new), graph.embed(new, hasher.weight_), rtol=1e-6)


def test_climbing_ends_where_no_sign_wants_to_change() -> None:
    _, Z = build_graph(mixture(), 60, 3, np.random.default_rng(0))
    rng = np.random.default_rng(1)
    B, Y = signs(rng.standard_normal((300, 7))), rng.standard_normal((300, 7))
    end = climb(B, Y, 0.3, Z, spread_to_anchors(Z))
    gradient = 2 * dense_graph(Z) @ end + 0.3 * Y
    assert (gradient * end >= 0).all() and not np.array_equal(end, B)
    # Where the gradient is exactly 0 the old bit stays.
    alone = climb(-np.ones((2, 1)), np.array([[4.0], [0.0]]), 1.0, np.zeros((2, 1)), np.zeros((1, 2)))
    np.testing.assert_array_equal(alone, [[1], [-1]])


@pytest.mark.parametrize("case", ["full", "repeated", "constant", "all constant"])
def test_nearest_uncorrelated_is_feasible_and_best(case: str) -> None:
    rng = np.random.default_rng(0)
    n, k = 60, 8
    B = signs(rng.standard_normal((n, k)))
    if case == "repeated":
        B[:, 5], B[:, 2] = B[:, 1], -B[:, 0]
    elif case == "constant":
        B[:, 3] = 1
    elif case == "all constant":
        B[:] = 1
    Y = nearest_uncorrelated(B, rng)
    np.testing.assert_allclose(Y.sum(0), 0, atol=1e-9)
    np.testing.assert_allclose(Y.T @ Y, n * np.eye(k), atol=1e-9)
    # tr(B^T Y) is at most sqrt(n) times the sum of the singular values of centred B, and reaches it.
    bound = np.sqrt(n) * np.linalg.svd(B - B.mean(0), compute_uv=False).sum()
    assert np.sum(B * Y) == pytest.approx(bound, abs=1e-6)


def test_rho_balances_the_bits_of_the_training_rows() -> None:
    x = mixture()
    imbalance = [
        np.abs(make_hasher("dgh", 20, rho=rho, n_anchors=60).fit(x).encode(x).signs().mean(0)).mean() for rho in (0, 2)
    ]
    assert imbalance[1] < 0.8 * imbalance[0]


def test_refusals() -> None:
    with pytest.raises(DataError, match="8 uncorrelated bits need more than 8 rows, got 8"):
        make_hasher("dgh", 8).fit(mixture(8))
    with pytest.raises(DataError, match="rows that differ more"):
        make_hasher("dgh", 4).fit(np.full((30, 5), 2.5))
    for wrong in ({"variant": "x"}, {"rho": -1}, {"iterations": 0}, {"n_anchors": 1}, {"n_neighbours": 0}):
        with pytest.raises(ParameterError, match=next(iter(wrong))):
            make_hasher("dgh", 8, **wrong)
