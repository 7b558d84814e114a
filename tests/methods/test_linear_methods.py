from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.decomposition import PCA

from distillhash import make_hasher
from distillhash.errors import DataError
from distillhash.metrics.retrieval import evaluate_codes


def gaussian(n: int = 300, d: int = 24, seed: int = 0) -> NDArray[Any]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, d)) @ np.diag(np.linspace(3, 0.1, d)) @ rng.standard_normal((d, d)) + 5


def test_lsh_bits_differ_in_proportion_to_the_angle() -> None:
    x = np.array([[1.0, 0, 0], [np.cos(1.0), np.sin(1.0), 0], [-1, 0, 0]])
    signs = make_hasher("lsh", 4096, centre=False).fit(x).encode(x).signs()
    share = [(signs[0] != signs[i]).mean() for i in (1, 2)]
    assert share[0] == pytest.approx(1 / np.pi, abs=0.03)
    assert share[1] == pytest.approx(1, abs=0.005)


def test_pcah_projects_on_the_components_of_the_library() -> None:
    x = gaussian()
    ours = make_hasher("pcah", 8).fit(x).project(x)
    theirs = PCA(8, svd_solver="full").fit(x).transform(x)
    np.testing.assert_allclose(np.abs(ours), np.abs(theirs), rtol=1e-4, atol=1e-4)


def test_more_bits_than_features_is_refused() -> None:
    for method in ("pcah", "itq", "hashing-baseline"):
        with pytest.raises(DataError, match="25 bits need at least 25 features"):
            make_hasher(method, 25).fit(gaussian())


@pytest.mark.parametrize("n_bits", [1, 7, 24])
def test_hashing_baseline_turns_the_components_of_the_library_at_random(n_bits: int) -> None:
    x = gaussian()
    hasher: Any = make_hasher("hashing-baseline", n_bits, seed=2).fit(x)
    theirs = PCA(n_bits, svd_solver="full").fit(x)
    rotation = theirs.components_ @ hasher.weight_
    np.testing.assert_allclose(
        rotation.T @ rotation, np.eye(n_bits), atol=1e-9
    )  # orthogonal, inside the span of the components
    np.testing.assert_allclose(hasher.project(x), theirs.transform(x) @ rotation, rtol=1e-4, atol=1e-4)
    if n_bits > 1:
        other: Any = make_hasher("hashing-baseline", n_bits, seed=3).fit(x)
        assert np.abs(other.weight_ - hasher.weight_).max() > 0.1


@pytest.mark.parametrize("n_bits", [1, 7, 16, 24])
def test_itq_never_raises_its_objective_and_matches_the_formula(n_bits: int) -> None:
    x = gaussian()
    hasher: Any = make_hasher("itq", n_bits, seed=2).fit(x)
    losses = np.array(hasher.history_["loss"])
    assert len(losses) == 50
    assert (np.diff(losses) <= 1e-9 * losses[:-1]).all()
    # The same algorithm from the paper's text, started from the same rotation.
    pca = PCA(n_bits, svd_solver="full").fit(x)
    components = pca.components_.T * np.sign(pca.components_.T[np.abs(pca.components_.T).argmax(0), np.arange(n_bits)])
    V = (x - x.mean(0)) @ components
    R = np.linalg.qr(np.random.default_rng(2).standard_normal((n_bits, n_bits)))[0]
    for _ in range(50):
        B = np.where(V @ R >= 0, 1, -1)
        left, _, right = np.linalg.svd(V.T @ B)
        R = left @ right
    np.testing.assert_allclose(hasher.project(x), V @ R, rtol=1e-4, atol=1e-4)
    rotation = components.T @ hasher.weight_
    np.testing.assert_allclose(rotation.T @ rotation, np.eye(n_bits), atol=1e-9)


def test_itq_is_at_least_as_good_as_the_transform_of_faiss() -> None:
    faiss = pytest.importorskip("faiss")
    from sklearn.datasets import load_digits

    x, labels = load_digits(return_X_y=True)
    x = np.ascontiguousarray(x, np.float32)
    ours, theirs = [], []
    for seed in range(3):
        codes = make_hasher("itq", 16, seed=seed).fit(x).encode(x)
        ours.append(evaluate_codes(codes, codes, labels, labels)["map"])
        transform = faiss.ITQTransform(64, 16, True)
        transform.itq.seed = 100 + seed
        transform.train(x)
        from distillhash import Codes

        codes = Codes.from_projection(transform.apply(x))
        theirs.append(evaluate_codes(codes, codes, labels, labels)["map"])
    assert np.mean(ours) >= np.mean(theirs) - 0.01
