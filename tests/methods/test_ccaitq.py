"""CCA against a generalised eigenproblem and scikit-learn, ITQ against its promise."""

import itertools

import numpy as np
import pytest
from scipy.linalg import eigh
from sklearn.cross_decomposition import CCA

from distillhash.errors import DataError
from distillhash.methods import CCAITQ
from distillhash.methods.linear_algebra import canonical_directions
from pair_factory import paired_vectors

IMAGES, TEXTS, _ = (part.astype(np.float64) for part in paired_vectors(200, 1))
X, Y = IMAGES - IMAGES.mean(axis=0), TEXTS - TEXTS.mean(axis=0)


def test_correlations_solve_the_generalised_eigenproblem() -> None:
    # rho^2 are the eigenvalues of C_xy (C_yy + r_y I)^-1 C_yx w = rho^2 (C_xx + r_x I) w
    A, B, rho = canonical_directions(X, Y, 5, 0.3)
    n = len(X)
    C = [side.T @ side / n for side in (X, Y)]
    ridged = [c + 0.3 * np.trace(c) / len(c) * np.eye(len(c)) for c in C]
    cross = X.T @ Y / n
    values = eigh(cross @ np.linalg.solve(ridged[1], cross.T), ridged[0], eigvals_only=True)[::-1]
    np.testing.assert_allclose(rho**2, values[:5], rtol=1e-8)
    np.testing.assert_allclose(A.T @ ridged[0] @ A, np.eye(5), atol=1e-8)
    np.testing.assert_allclose(B.T @ ridged[1] @ B, np.eye(5), atol=1e-8)
    np.testing.assert_allclose(A.T @ cross @ B, np.diag(rho), atol=1e-8)


def test_without_a_ridge_it_is_scikit_learns_cca() -> None:
    A, B, rho = canonical_directions(X, Y, 2, 1e-9)
    theirs = CCA(2, scale=False, max_iter=5000, tol=1e-12).fit(X, Y).transform(X, Y)
    expected = [np.corrcoef(a, b)[0, 1] for a, b in zip(theirs[0].T, theirs[1].T, strict=True)]
    np.testing.assert_allclose(rho, expected, atol=1e-3)
    np.testing.assert_allclose(np.corrcoef(X @ A[:, 0], Y @ B[:, 0])[0, 1], rho[0], atol=1e-6)


def test_the_quantisation_error_never_rises_and_the_rotation_is_one() -> None:
    hasher = CCAITQ(8, regularisation=0.5, power=0, iterations=30).fit(IMAGES, TEXTS)
    losses = hasher.history_["loss"]
    assert len(losses) == 30 and all(b <= a + 1e-9 for a, b in itertools.pairwise(losses))
    A, B, rho = canonical_directions(X, Y, 8, 0.5)
    np.testing.assert_allclose(hasher.history_["correlations"], rho)
    R = np.linalg.lstsq(A, hasher.image_.layers[0][0], rcond=None)[0]
    np.testing.assert_allclose(R @ R.T, np.eye(8), atol=1e-8)
    np.testing.assert_allclose(hasher.text_.layers[0][0], B @ R, atol=1e-8)
    np.testing.assert_allclose(hasher.project_images(IMAGES[:3]), X[:3] @ A @ R, atol=1e-4)


def test_power_scales_the_columns() -> None:
    A, _, rho = canonical_directions(X, Y, 6, 0.1)
    hasher = CCAITQ(6, regularisation=0.1, power=2).fit(IMAGES, TEXTS)
    weight = hasher.image_.layers[0][0]
    np.testing.assert_allclose(weight @ weight.T, (A * rho**4) @ A.T, atol=1e-8)


def test_more_bits_than_features_are_refused() -> None:
    with pytest.raises(
        DataError, match=r"19 bits need at least 19 features on either side .* got 24 of images and 18 of texts"
    ):
        CCAITQ(19).fit(IMAGES, TEXTS)
    with pytest.raises(DataError, match="features of the texts are all alike"):
        CCAITQ(4).fit(IMAGES, np.ones((200, 18)))
