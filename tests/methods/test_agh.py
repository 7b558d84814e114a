from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import minimize

from distillhash import make_hasher
from distillhash.errors import DataError, ParameterError
from distillhash.methods import linear_algebra
from distillhash.methods.agh import second_thresholds
from distillhash.methods.linear_algebra import build_graph, graph_eigenvectors


def mixture(n: int = 400, d: int = 10, spread: float = 1.5, seed: int = 0) -> NDArray[Any]:
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).standard_normal((6, d)) * 2
    return centres[rng.integers(0, 6, n)] + spread * rng.standard_normal((n, d)) + 4


def naive_weights(x: NDArray[Any], anchors: NDArray[Any], s: int, sigma: float) -> NDArray[Any]:
    Z = np.zeros((len(x), len(anchors)))
    for i, row in enumerate(x):
        distance = np.linalg.norm(anchors - row, axis=1)
        near = np.argsort(distance)[:s]
        kernel = np.exp(-(distance[near] ** 2) / sigma**2)
        Z[i, near] = kernel / kernel.sum()
    return Z


@pytest.mark.parametrize("s", [1, 2, 3, 40])
def test_graph_matches_a_loop(s: int) -> None:
    x = mixture()
    graph, Z = build_graph(x, 40, s, np.random.default_rng(0))
    nth = [np.sort(np.linalg.norm(graph.anchors - row, axis=1))[s - 1] for row in x]
    assert graph.bandwidth == pytest.approx(np.mean(nth))
    np.testing.assert_allclose(Z.toarray(), naive_weights(x, graph.anchors, s, graph.bandwidth), atol=1e-9)
    np.testing.assert_allclose(Z.sum(axis=1), 1)
    new = mixture(30, seed=1)
    values = np.random.default_rng(2).standard_normal((len(graph.anchors), 5))
    expected = naive_weights(new, graph.anchors, s, graph.bandwidth) @ values
    np.testing.assert_allclose(graph.embed(new, values), expected, atol=1e-9)


def test_functions_are_the_leading_eigenvectors_of_the_graph() -> None:
    x = mixture()
    _, Z = build_graph(x, 40, 3, np.random.default_rng(0))
    W, eigenvalues = graph_eigenvectors(Z, 12)
    Y = Z @ W
    np.testing.assert_allclose(Y.T @ Y / len(x), np.eye(12), atol=1e-9)
    np.testing.assert_allclose(Y.sum(0), 0, atol=1e-7)
    Z = Z.toarray()
    A = Z @ np.diag(1 / Z.sum(0)) @ Z.T
    np.testing.assert_allclose(A @ np.ones(len(x)), 1)
    np.testing.assert_allclose(A @ Y, Y * eigenvalues, atol=1e-9)
    np.testing.assert_allclose(eigenvalues, np.linalg.eigvalsh(A)[::-1][1:13], atol=1e-9)


def test_unconnected_parts_are_told_apart() -> None:
    # Three clusters that share no anchor: the graph has three eigenvalues 1, and two of them are not the constant.
    rng = np.random.default_rng(0)
    x = np.repeat(np.eye(3), 40, axis=0) * 100 + rng.standard_normal((120, 3))
    hasher = make_hasher("agh", 2, layers=1, n_anchors=30).fit(x)
    np.testing.assert_allclose(hasher.history_["eigenvalues"], 1)
    projection = hasher.project(x)
    parts = [projection[i : i + 40] for i in (0, 40, 80)]
    assert all(np.ptp(part, axis=0).max() < 1e-5 for part in parts)
    assert min(np.abs(parts[i][0] - parts[j][0]).max() for i, j in [(0, 1), (0, 2), (1, 2)]) > 0.5
    # The second layer of such a function must not split a part by rounding.
    signs = make_hasher("agh", 4, layers=2, n_anchors=30).fit(x).encode(x).signs()
    assert all((signs[i : i + 40] == signs[i]).all() for i in (0, 40, 80))


@pytest.mark.parametrize("n_bits", [4, 24])
def test_one_layer_gives_the_codes_of_the_library(n_bits: int) -> None:
    aghasher = pytest.importorskip("aghasher")
    x, new = mixture(), mixture(100, seed=1)
    hasher: Any = make_hasher("agh", n_bits, layers=1, n_anchors=60).fit(x)
    theirs, train_bits = aghasher.AnchorGraphHasher.train(x, hasher.graph_.anchors, n_bits, nn_anchors=3)
    for rows, bits in [(x, train_bits), (new, theirs.hash(new))]:
        ours = hasher.encode(rows).signs() > 0
        agreement = (ours == np.asarray(bits)).mean(axis=0)
        # An eigenvector's sign is arbitrary; where a value is 0 up to rounding a bit may differ.
        assert np.maximum(agreement, 1 - agreement).min() > 0.99


def test_second_thresholds_minimise_the_roughness_of_the_graph() -> None:
    x = mixture()
    _, Z = build_graph(x, 40, 3, np.random.default_rng(0))
    W, _ = graph_eigenvectors(Z, 4)
    dense = Z.toarray()
    laplacian = np.eye(len(x)) - dense @ np.diag(1 / dense.sum(0)) @ dense.T
    for y in (Z @ W).T:
        above = y > 0

        def second(thresholds: NDArray[Any], y: NDArray[Any] = y, above: NDArray[Any] = above) -> NDArray[Any]:
            return np.asarray(np.where(above, y - thresholds[0], thresholds[1] - y))

        found = np.array(second_thresholds(y, Z))
        assert second(found).sum() == pytest.approx(0, abs=1e-7)
        best = minimize(
            lambda t, f=second: f(t) @ laplacian @ f(t),
            [0.0, 0.0],
            constraints={"type": "eq", "fun": lambda t, f=second: f(t).sum()},
        )
        assert best.success
        np.testing.assert_allclose(found, best.x, atol=1e-3)
        assert second(found) @ laplacian @ second(found) <= best.fun + 1e-9


def test_second_thresholds_without_an_edge_across_are_the_means_of_the_sides() -> None:
    y = np.array([3.0, 1.0, -1.0, -3.0])
    Z = np.array([[1.0, 0], [1, 0], [0, 1], [0, 1]])
    np.testing.assert_allclose(second_thresholds(y, Z), [2, -2], rtol=1e-5)


@pytest.mark.parametrize("n_bits", [1, 8, 13])
def test_two_layers_split_the_functions_of_one(n_bits: int) -> None:
    # 13 bits: 7 functions, of which 6 are split.
    x, n_functions = mixture(), (n_bits + 1) // 2
    two: Any = make_hasher("agh", n_bits, layers=2, n_anchors=60).fit(x)
    one = make_hasher("agh", n_functions, layers=1, n_anchors=60).fit(x).project(x)
    projection = two.project(x)
    np.testing.assert_array_equal(projection[:, :n_functions], one)
    for bit in range(n_functions, n_bits):
        k = bit - n_functions
        y = one[:, k]
        expected = [v - two.upper_[k] if v > 0 else -v + two.lower_[k] for v in y]
        np.testing.assert_allclose(projection[:, bit], expected, atol=1e-5)
        # b+ lies among the positive values and b- among the negative: both sides are really split.
        assert 0 < (y > two.upper_[k]).sum() < (y > 0).sum()
        assert 0 < (y < two.lower_[k]).sum() < (y <= 0).sum()


def test_rows_far_from_every_anchor_take_the_values_of_the_nearest() -> None:
    hasher: Any = make_hasher("agh", 4, layers=1, n_anchors=60).fit(mixture())
    far = mixture(5) * 1e4
    nearest = [np.linalg.norm(hasher.graph_.anchors - row, axis=1).argmin() for row in far]
    np.testing.assert_allclose(hasher.project(far), hasher.weight_[nearest], rtol=1e-5, atol=1e-9)


def test_anchors_near_nobody_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    x = mixture()
    lonely = np.concatenate([np.full((1, 10), 1e3), x[::20]])
    monkeypatch.setattr(linear_algebra, "k_means", lambda *_: (lonely, np.full(21, 1 / 21)))
    graph, Z = build_graph(x, 21, 3, np.random.default_rng(0))
    np.testing.assert_array_equal(graph.anchors, lonely[1:])
    assert Z.shape == (400, 20) and Z.sum(axis=0).min() > 0


def test_an_anchor_in_use_has_mass_however_far() -> None:
    weights = linear_algebra.weights_of(np.array([[0.0, 1.0, 1e9]]), 1.0)
    np.testing.assert_allclose(weights, [[1 / (1 + np.exp(-1)), 1 / (1 + np.e), 0]], atol=1e-9)
    assert weights.min() > 0


def test_refusals() -> None:
    with pytest.raises(DataError, match="rows that differ more"):
        make_hasher("agh", 4).fit(np.full((30, 5), 2.5))
    with pytest.raises(DataError, match="16 eigenvectors are wanted, but the graph of 10 anchors on 400 rows has 9"):
        make_hasher("agh", 16, layers=1, n_anchors=10).fit(mixture())
    for wrong in ({"layers": 3}, {"n_anchors": 1}, {"n_neighbours": 0}):
        with pytest.raises(ParameterError, match=next(iter(wrong))):
            make_hasher("agh", 8, **wrong)
