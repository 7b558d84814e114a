"""CIMON: its four weighted terms and its contrast, against the formula; what the two feature sets are."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from distillhash.errors import ParameterError
from distillhash.methods import make_hasher
from distillhash.methods.base import TrainingSet
from distillhash.methods.dsg import pair_confidence
from distillhash.methods.heads import Data
from distillhash.methods.training import CachedFeatures
from distillhash.supervision.clusters import assign_clusters, drop_contradictions
from distillhash.supervision.losses import nt_xent
from distillhash.supervision.similarity import cosine_distances, fit_half_gaussians, label_pairs, pair_thresholds

Array = NDArray[Any]


def clustered(n: int = 120, d: int = 20, seed: int = 0) -> Array:
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((6, d))
    return np.maximum(centres[np.arange(n) % 6] + 0.6 * rng.standard_normal((n, d)), 0).astype(np.float32)


def make_views(x: Array, n: int = 3) -> Array:
    noise = 0.2 * np.random.default_rng(1).standard_normal((n, *x.shape))
    return np.asarray(np.maximum(x + noise, 0), np.float32)


def guidance(x: Array, seed: int) -> tuple[Array, Array]:
    D = cosine_distances(x)
    fit = fit_half_gaussians(D)
    thresholds = pair_thresholds(D, fit, alpha=1.0, beta=0.0)
    pairs = drop_contradictions(label_pairs(D, thresholds, rule="two-way"), assign_clusters(x, D, 70, seed=seed))
    return pairs, pair_confidence(D, fit, thresholds.similar)


def cosine(a: Array, b: Array) -> float:
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_nt_xent_equals_a_plain_loop(temperature: float) -> None:
    a, b = np.random.default_rng(0).standard_normal((2, 5, 8))
    rows = [*a, *b]
    total = 0.0
    for i in range(10):
        scores = {j: np.exp(cosine(rows[i], rows[j]) / temperature) for j in range(10) if j != i}
        total -= np.log(scores[(i + 5) % 10] / sum(scores.values()))
    found = nt_xent(torch.from_numpy(a), torch.from_numpy(b), temperature=temperature)
    assert float(found) == pytest.approx(total / 10)


def test_the_loss_is_four_weighted_terms_and_the_contrast() -> None:
    x = clustered()
    views = make_views(x)
    hasher: Any = make_hasher("cimon", 8, seed=4, contrast=0.7, temperature=0.4)
    data = Data(TrainingSet(x, views), np.arange(120))
    targets = hasher.targets(data)
    sets = CachedFeatures(x, views).pair(np.arange(120), np.random.default_rng(4), 0.0).inputs.numpy()
    (S1, W1), (S2, W2) = (guidance(s, 4) for s in np.split(sets, 2))
    assert (S1 != S2).any()
    np.testing.assert_array_equal(hasher.pairs_, S1)
    np.testing.assert_array_equal(hasher.weights_, W1)
    rows = np.random.default_rng(2).permutation(120)[:11]
    batch = hasher.batches(data.cached).batch(rows, np.random.default_rng(0))
    assert batch.inputs.shape == (22, 20)
    outputs = np.random.default_rng(3).standard_normal((22, 8)).astype(np.float32)
    u1, u2 = np.tanh(outputs[:11]), np.tanh(outputs[11:])
    expected = 0.0
    for u, S, W in ((u1, S1, W1), (u2, S2, W2), (u1, S2, W2), (u2, S1, W1)):
        for a, i in enumerate(rows):
            for b, j in enumerate(rows):
                expected += float(W[i, j]) * abs(S[i, j]) * (u[a] @ u[b] / 8 - S[i, j]) ** 2 / 121
    expected += 0.7 * float(nt_xent(torch.from_numpy(u1), torch.from_numpy(u2), temperature=0.4))
    found = hasher.batch_loss(torch.from_numpy(outputs), batch._replace(targets=targets(rows)))
    assert float(found) == pytest.approx(expected, rel=1e-4)


def test_without_views_the_two_sets_are_noisy_copies() -> None:
    x = clustered()
    exact: Any = make_hasher("cimon", 8, seed=4, epochs=1, noise=0.0).fit(x)
    np.testing.assert_array_equal(exact.pairs_, guidance(x, 4)[0])
    noisy: Any = make_hasher("cimon", 8, seed=4, epochs=1, noise=0.5).fit(x)
    assert (noisy.pairs_ != exact.pairs_).any()


def test_codes_of_a_cluster_end_up_alike() -> None:
    x = clustered()
    signs = make_hasher("cimon", 16).fit(x, views=make_views(x)).encode(x).signs().astype(int)
    same = np.equal.outer(np.arange(120) % 6, np.arange(120) % 6)
    agreement = signs @ signs.T / 16
    assert agreement[same].mean() > agreement[~same].mean() + 0.5


def test_options_are_checked() -> None:
    cases: list[tuple[str, Any, str]] = [
        ("contrast", -1, "contrast must be at least 0"),
        ("noise", -0.1, "noise must be at least 0"),
        ("temperature", 0, "temperature must be above 0, got 0"),
        ("alpha", -1, "alpha must be at least 0"),
    ]
    for name, bad, message in cases:
        with pytest.raises(ParameterError, match=message):
            make_hasher("cimon", 8, **{name: bad})
