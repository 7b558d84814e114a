"""CCA-ITQ is the rotation of regularised canonical directions."""

import itertools

import numpy as np
import pytest

from distillhash.errors import DataError
from distillhash.methods import CCAITQ
from distillhash.methods.linear_algebra import canonical_directions
from pair_factory import paired_vectors

IMAGES, TEXTS, _ = (part.astype(np.float64) for part in paired_vectors(200, 1))
X, Y = IMAGES - IMAGES.mean(axis=0), TEXTS - TEXTS.mean(axis=0)


def test_the_quantisation_error_never_rises_and_the_rotation_is_one() -> None:
    hasher = CCAITQ(8, regularisation=0.5, power=0, iterations=30).fit(IMAGES, TEXTS)
    losses = hasher.history_["loss"]
    assert len(losses) == 30 and all(b <= a + 1e-9 for a, b in itertools.pairwise(losses))
    A, B, rho = canonical_directions(X, Y, 8, 0.5)
    np.testing.assert_allclose(hasher.history_["correlations"], rho)
    R = np.linalg.lstsq(A, hasher.image_.layers[0][0], rcond=None)[0]
    np.testing.assert_allclose(R @ R.T, np.eye(8), atol=1e-8)
    np.testing.assert_allclose(hasher.text_.layers[0][0], B @ R, atol=1e-8)
    np.testing.assert_allclose(hasher.project(IMAGES[:3]), X[:3] @ A @ R, atol=1e-4)


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
