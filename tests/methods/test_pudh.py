"""PUDH: each closed-form step against its definition, and the head against the codes it learns."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import adjusted_rand_score

from distillhash.errors import DataError, ParameterError
from distillhash.methods import make_hasher
from distillhash.methods.linear_algebra import procrustes_rotation
from distillhash.methods.pudh import canonical_directions


def clustered(n: int = 120, d: int = 20, groups: int = 6, spread: float = 0.6, seed: int = 0) -> NDArray[Any]:
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((groups, d))
    return np.maximum(centres[np.arange(n) % groups] + spread * rng.standard_normal((n, d)), 0).astype(np.float32)


def pudh(n_bits: int = 8, **options: Any) -> Any:
    return make_hasher("pudh", n_bits, **options)


def root(S: NDArray[Any]) -> NDArray[Any]:
    values, vectors = np.linalg.eigh(S)
    return np.asarray(vectors @ np.diag(values**-0.5) @ vectors.T)


def test_canonical_correlations_equal_the_singular_values_of_the_whitened_covariance() -> None:
    rng = np.random.default_rng(0)
    X = rng.standard_normal((200, 5)) @ rng.standard_normal((5, 5))
    X -= X.mean(axis=0)
    Y = np.eye(4)[(X[:, 0] + 0.5 * rng.standard_normal(200) > 0) + 2 * (rng.random(200) > 0.5)]
    directions, rho = canonical_directions(X, Y, 1e-2)
    Yc = Y - Y.mean(axis=0)
    Sxx, Syy = X.T @ X / 200, Yc.T @ Yc / 200
    Sxx += 1e-2 * np.mean(np.diag(Sxx)) * np.eye(5)
    Syy += 1e-2 * np.mean(np.diag(Syy)) * np.eye(4)
    left, values, _ = np.linalg.svd(root(Sxx) @ (X.T @ Yc / 200) @ root(Syy))
    np.testing.assert_allclose(rho[:4], values, atol=1e-6)
    np.testing.assert_allclose(directions.T @ Sxx @ directions, np.eye(5), atol=1e-9)
    expected = root(Sxx) @ left
    cosine = (
        abs((directions * expected).sum(axis=0)) / np.linalg.norm(directions, axis=0) / np.linalg.norm(expected, axis=0)
    )
    np.testing.assert_allclose(cosine[:2], 1, atol=1e-6)


def test_separable_clusters_have_one_sure_direction_less_than_there_are() -> None:
    rng = np.random.default_rng(1)
    truth = np.arange(300) % 4
    X = 10 * rng.standard_normal((4, 12))[truth] + 0.1 * rng.standard_normal((300, 12))
    _, rho = canonical_directions(X - X.mean(axis=0), np.eye(4)[truth], 1e-6)
    assert (rho[:3] > 0.999).all() and (rho[3:] < 1e-3).all()


@pytest.mark.parametrize(("n_bits", "emphasis"), [(3, 1.0), (9, 0.5), (20, 0.0)])
def test_directions_are_scaled_by_their_correlation_and_padded(
    monkeypatch: pytest.MonkeyPatch, n_bits: int, emphasis: float
) -> None:
    captured: list[NDArray[Any]] = []

    def keep(V: NDArray[Any], iterations: int, rng: Any) -> tuple[NDArray[Any], list[float]]:
        captured.append(V)
        return procrustes_rotation(V, iterations, rng)

    monkeypatch.setattr("distillhash.methods.pudh.procrustes_rotation", keep)
    hasher = pudh(n_bits, emphasis=emphasis, n_clusters=6, epochs=1, ridge=1e-9, components=10).fit(clustered())
    V, rho = captured[0], np.array(hasher.history_["correlations"])
    kept = min(n_bits, 5)  # six clusters
    assert len(rho) == kept and (np.diff(rho) <= 1e-12).all()
    share = np.minimum(rho**2, 0.95)
    expected = np.diag((share / (1 - share)) ** (2 * emphasis))
    np.testing.assert_allclose(V[:, :kept].T @ V[:, :kept] / 120, expected, rtol=1e-5, atol=1e-5)
    assert V.shape == (120, n_bits) and not V[:, kept:].any()


@pytest.mark.parametrize("covariance", ["tied", "diag", "spherical"])
def test_pseudo_labels_find_separate_groups(covariance: str) -> None:
    x = clustered(spread=0.2)
    hasher = pudh(n_clusters=6, covariance=covariance, epochs=1).fit(x)
    assert adjusted_rand_score(np.arange(120) % 6, hasher.clusters_) > 0.9


@pytest.mark.parametrize("n_bits", [1, 16, 127])
def test_the_head_learns_the_codes_also_when_there_are_more_bits_than_directions(n_bits: int) -> None:
    x = clustered()
    hasher = pudh(n_bits, learning_rate=1e-2, epochs=100).fit(x)
    assert (hasher.encode(x).signs() == hasher.codes_).mean() > 0.97
    assert hasher.history_["loss"][-1] < hasher.history_["loss"][0]
    assert len(np.unique(hasher.codes_.T, axis=0)) > min(n_bits, 50) // 2  # the bits are not copies of a few directions


def test_refusals_and_small_sets() -> None:
    with pytest.raises(DataError, match="all rows of the features are equal"):
        pudh().fit(np.ones((20, 6)))
    for n in (2, 3, 7):
        assert len(pudh().fit(clustered(n)).encode(clustered(n))) == n
    cases: list[tuple[str, Any, str]] = [
        ("components", 0, "components must be at least 1, got 0"),
        ("n_clusters", 1, "n_clusters must be at least 2, got 1"),
        ("iterations", 0, "iterations must be at least 1, got 0"),
        ("covariance", "full", "covariance must be one of tied, diag, spherical, got 'full'"),
        ("emphasis", -1, "emphasis must be at least 0, got -1"),
        ("ridge", 0, "ridge must be above 0, got 0"),
    ]
    for name, bad, message in cases:
        with pytest.raises(ParameterError, match=message):
            pudh(**{name: bad})
