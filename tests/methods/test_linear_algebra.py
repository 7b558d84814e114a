"""Numerical steps shared by methods. Principal components and rotations are also checked by the methods that use them."""

import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.linalg import eigh
from sklearn.cluster import KMeans
from sklearn.cross_decomposition import CCA

from distillhash.errors import DataError
from distillhash.methods.linear_algebra import (
    canonical_directions,
    k_means,
    principal_components,
    procrustes_rotation,
    row_blocks,
    squared_distances,
)
from pair_factory import paired_vectors

IMAGES, TEXTS, _ = (part.astype(np.float64) for part in paired_vectors(200, 1))
X, Y = IMAGES - IMAGES.mean(axis=0), TEXTS - TEXTS.mean(axis=0)


def mixture(n: int = 500, d: int = 12, seed: int = 0) -> NDArray[Any]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((9, d))[rng.integers(0, 9, n)] * 2 + rng.standard_normal((n, d)) + 5


def test_principal_components_over_several_blocks_diagonalise_the_covariance() -> None:
    x = mixture(9000).astype(np.float32)
    assert [len(block) for block in row_blocks(x)] == [4096, 4096, 808]
    mean, components = principal_components(x, 5)
    np.testing.assert_allclose(mean, x.mean(axis=0, dtype=np.float64))
    covariance = np.cov(x.T.astype(np.float64), bias=True)
    variances = np.linalg.eigvalsh(covariance)[::-1][:5]
    np.testing.assert_allclose(components.T @ covariance @ components, np.diag(variances), atol=1e-8)
    assert (components[np.abs(components).argmax(axis=0), range(5)] > 0).all()


def test_rotation_brings_rows_nearer_their_signs() -> None:
    V = np.random.default_rng(0).standard_normal((500, 6)) ** 3
    R, losses = procrustes_rotation(V, 100, np.random.default_rng(3))
    np.testing.assert_allclose(R.T @ R, np.eye(6), atol=1e-9)
    assert len(losses) == 100 and all(after <= before + 1e-9 for before, after in itertools.pairwise(losses))
    start = np.linalg.qr(np.random.default_rng(3).standard_normal((6, 6)))[0]
    B = np.where(V @ R >= 0, 1.0, -1.0)
    assert losses[0] == pytest.approx(np.sum((np.where(V @ start >= 0, 1, -1) - V @ start) ** 2) / 500)
    assert np.sum(B * (V @ R)) > np.sum(np.abs(V @ start)) * 1.01
    # No other rotation fits these signs better: the maximum of tr(R^T V^T B) is the nuclear norm of V^T B.
    assert np.sum(B * (V @ R)) == pytest.approx(np.linalg.svd(V.T @ B, compute_uv=False).sum())


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


def test_canonical_directions_are_refused_where_there_are_none() -> None:
    with pytest.raises(DataError, match=r"19 bits need at least 19 features on either side .* 24 of images and 18 of"):
        canonical_directions(X, Y, 19, 1.0)
    with pytest.raises(DataError, match="features of the texts are all alike"):
        canonical_directions(X, np.zeros_like(Y), 4, 1.0)


def test_k_means_is_that_of_the_library() -> None:
    x = mixture()
    centres, shares = k_means(x, 12, 3, np.random.default_rng(0))
    start = x[np.sort(np.random.default_rng(0).choice(len(x), 12, replace=False))]
    theirs = KMeans(12, init=start, n_init=1, max_iter=3, tol=0, algorithm="lloyd").fit(x)
    np.testing.assert_allclose(centres, theirs.cluster_centers_, rtol=1e-9)
    # The shares are those of the last assignment, that of the centres after two rounds.
    before = KMeans(12, init=start, n_init=1, max_iter=2, tol=0, algorithm="lloyd").fit(x)
    np.testing.assert_allclose(shares, np.bincount(before.predict(x)) / len(x))


def test_k_means_leaves_empty_groups_out() -> None:
    x = np.repeat([[0.0, 0.0], [4.0, 0.0], [0.0, 9.0]], [10, 20, 30], axis=0)
    centres, shares = k_means(x, 40, 3, np.random.default_rng(0))
    order = np.lexsort(centres.T)
    np.testing.assert_allclose(centres[order], [[0, 0], [4, 0], [0, 9]])
    np.testing.assert_allclose(shares[order], [1 / 6, 2 / 6, 3 / 6])


def test_distances_of_equal_rows_are_not_negative() -> None:
    x = np.random.default_rng(0).standard_normal((50, 30)) * 1e3
    squared = squared_distances(x, x)
    assert squared.min() >= 0
    np.testing.assert_allclose(np.diagonal(squared), 0, atol=1e-6)


KERNELS = {"Nehalem": "sse4_2", "Sandybridge": "avx", "Haswell": "avx2", "SkylakeX": "avx512f"}  # and what each needs
FIT_AWKWARD_ROWS = """
import numpy as np
from distillhash.errors import DataError
from distillhash.methods import make_hasher
rng = np.random.default_rng(0)
constant = rng.standard_normal((40, 12))
constant[:, [3, 7]] = 2.5
plane = rng.standard_normal((40, 2)) @ rng.standard_normal((2, 12))
two = [rng.standard_normal((2, 12)) for _ in range(20)] + [np.eye(12)[:2], np.outer([1, 2], np.ones(12))]
for rows in [*two, constant, plane, np.hstack([plane[:, :1], np.zeros((40, 11))])]:
    for method in ("agh", "dgh", "dsh", "itq", "lsh", "pcah", "sh", "sph"):
        try:
            codes = make_hasher(method, 8).fit(rows).encode(rows)
        except DataError as error:
            assert method in ("agh", "dgh", "dsh") and len(str(error)) > 30, (method, error)
        else:
            assert len(codes) == len(rows)
            if method in ("sh", "itq", "pcah"):
                assert (codes.packed != codes.packed[0]).any(), method
"""


@pytest.mark.parametrize("kernel", KERNELS)
def test_two_rows_and_constant_axes_on_every_kernel_of_the_linear_algebra(kernel: str) -> None:
    # Rounding differs between processors: an axis without spread has a width of exactly 0 on some and of 1e-16 on others.
    cpu = Path("/proc/cpuinfo")
    if not cpu.exists() or KERNELS[kernel] not in cpu.read_text():
        pytest.skip(f"this processor cannot run the kernel {kernel}")
    environment = {**os.environ, "OPENBLAS_CORETYPE": kernel}
    done = subprocess.run([sys.executable, "-c", FIT_AWKWARD_ROWS], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
