from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.decomposition import PCA

from distillhash import make_hasher
from distillhash.errors import DataError
from distillhash.methods.sh import lowest_modes


def box(n: int = 400, d: int = 8, seed: int = 0) -> NDArray[Any]:
    """A uniform box with axes of different widths, rotated."""
    rng = np.random.default_rng(seed)
    rotation = np.linalg.qr(rng.standard_normal((d, d)))[0]
    return np.asarray(rng.random((n, d)) * np.linspace(6, 1, d) @ rotation + 3)


@pytest.mark.parametrize("n_bits", [1, 5, 8, 30])
def test_matches_the_formula(n_bits: int) -> None:
    x, new = box(), box(seed=1)
    pca = PCA(min(n_bits, 8), svd_solver="full").fit(x)
    components = (
        pca.components_
        * np.sign(pca.components_[range(len(pca.components_)), np.abs(pca.components_).argmax(1)])[:, None]
    )
    values, new_values = (x - x.mean(0)) @ components.T, (new - x.mean(0)) @ components.T
    modes = []
    for i in range(values.shape[1]):
        width = values[:, i].max() - values[:, i].min()
        modes += [((k * np.pi / width) ** 2, k * np.pi / width, i) for k in range(1, n_bits + 1)]
    expected = [np.sin(np.pi / 2 + w * (new_values[:, i] - values[:, i].min())) for _, w, i in sorted(modes)[:n_bits]]
    np.testing.assert_allclose(
        make_hasher("sh", n_bits).fit(x).project(new), np.stack(expected, 1), rtol=1e-5, atol=1e-5
    )


def test_one_feature_gives_all_bits_by_its_modes() -> None:
    x = np.linspace(0, 1, 101)[:, None]
    hasher: Any = make_hasher("sh", 7).fit(x)
    np.testing.assert_allclose(hasher.frequency_, np.pi * np.arange(1, 8))
    # Mode k changes sign k times across the range.
    changes = (np.diff(hasher.encode(x).signs().astype(int), axis=0) != 0).sum(0)
    np.testing.assert_array_equal(changes, np.arange(1, 8))
    # Outside the range the first mode keeps oscillating: cos(pi t) is positive again beyond 1.5.
    np.testing.assert_array_equal(hasher.encode(np.array([[0.2], [0.9], [1.4], [1.6]])).signs()[:, 0], [1, -1, -1, 1])


def test_bits_of_a_uniform_box_are_balanced_and_uncorrelated() -> None:
    signs = make_hasher("sh", 8).fit(box(4000)).encode(box(4000)).signs().astype(float)
    correlation = signs.T @ signs / 4000
    assert np.abs(signs.mean(0)).max() < 0.15
    assert np.abs(correlation - np.eye(8)).max() < 0.15


def test_lowest_modes_prefer_wide_axes() -> None:
    axis, mode = lowest_modes(np.array([3.0, 2.0, 1e-14]), 6)
    # k / width: 1/3, 1/2, 2/3, 1 (axis 0), 1 (axis 1), 4/3; the axis without width is never used.
    np.testing.assert_array_equal(axis, [0, 1, 0, 0, 1, 0])
    np.testing.assert_array_equal(mode, [1, 1, 2, 3, 2, 4])


def test_nothing_is_random() -> None:
    x = box()
    assert make_hasher("sh", 16, seed=0).fit(x).encode(x) == make_hasher("sh", 16, seed=9).fit(x).encode(x)


@pytest.mark.parametrize("value", [0.0, 7.3, 1e6])
def test_equal_rows_are_refused(value: float) -> None:
    with pytest.raises(DataError, match="rows that differ"):
        make_hasher("sh", 4).fit(np.full((30, 5), value))
