"""GreedyHash, Bi-half, CIBHash, SDC, CroVCA and NSH: each loss against its formula, and what each promises of its codes."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import expit
from scipy.stats import beta as beta_distribution

from distillhash.errors import ParameterError
from distillhash.methods import make_hasher
from distillhash.methods.base import TrainingSet
from distillhash.methods.bihalf import bi_half
from distillhash.methods.cibhash import bottleneck_loss
from distillhash.methods.crovca import alignment_loss, coding_rate
from distillhash.methods.greedyhash import greedy_loss
from distillhash.methods.heads import Data, half_batch_cosines, straight_through_sign, unit_features
from distillhash.methods.nsh import soft_sort, sorted_contrast
from distillhash.methods.registry import hasher_from
from distillhash.methods.sdc import calibrated_targets, calibration_loss


def clustered(n: int = 120, d: int = 24, seed: int = 0) -> NDArray[Any]:
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((6, d))
    return np.maximum(centres[np.arange(n) % 6] + 0.5 * rng.standard_normal((n, d)), 0).astype(np.float32)


def draw(*shape: int, seed: int = 0) -> NDArray[Any]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def cosine(a: NDArray[Any], b: NDArray[Any]) -> float:
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def test_the_papers_preset_of_crovca_is_the_released_network() -> None:
    hasher: Any = make_hasher("crovca", 8, preset="paper")
    parameters = hasher.get_params()
    released = {
        "epochs": 5,
        "batch_size": 256,
        "learning_rate": 1e-3,
        "weight_decay": 0.01,
        "diversity": 0.1,
        "precision": 0.05,
    }
    assert parameters | released == parameters
    x = clustered(400, 60)
    weights = [
        layer.weight.detach().numpy()
        for layer in hasher._head(Data(TrainingSet(x), np.arange(400)), 8, seed=1)
        if isinstance(layer, torch.nn.Linear)
    ]
    assert [weight.shape for weight in weights] == [(60, 60), (8, 60)]
    for weight in weights:
        assert weight.std() == pytest.approx(0.02, rel=0.1) and np.abs(weight.mean()) < 0.004
    assert [weight.shape for weight, _ in hasher.fit(x).layers_] == [(60, 60), (60, 8)]
    assert hasher_from(hasher.config(), hasher.tensors()).encode(x) == hasher.encode(x)


def test_straight_through_sign() -> None:
    outputs = torch.tensor([[-0.3, 0.0, 2.0]], requires_grad=True)
    signs = straight_through_sign(outputs)
    assert signs.tolist() == [[-1, 1, 1]]
    torch.autograd.backward(signs, torch.tensor([[1.0, 2.0, 3.0]]))
    assert outputs.grad is not None and outputs.grad.tolist() == [[1, 2, 3]]


@pytest.mark.parametrize("b", [2, 7, 10])
def test_half_batch_cosines_and_centred_features(b: int) -> None:
    x = draw(b, 5)
    expected = [cosine(x[i], x[i + b // 2]) for i in range(b // 2)]
    np.testing.assert_allclose(half_batch_cosines(torch.from_numpy(x)), expected, atol=1e-5)
    centred = x - x.mean(axis=0)
    unit = unit_features(x, centre=True).numpy()
    np.testing.assert_allclose(unit[0] @ unit[1], cosine(centred[0], centred[1]), atol=1e-5)
    unit = unit_features(x, centre=False).numpy()
    np.testing.assert_allclose(unit[0] @ unit[1], cosine(x[0], x[1]), atol=1e-5)


def test_greedy_loss() -> None:
    h, wanted = draw(6, 8), draw(3)
    b = np.where(h >= 0, 1.0, -1.0)
    expected = np.mean([(b[i] @ b[i + 3] / 8 - wanted[i]) ** 2 for i in range(3)])
    expected += 0.1 * np.mean(np.abs(np.abs(h) - 1) ** 3)
    assert float(greedy_loss(torch.from_numpy(h), torch.from_numpy(wanted), 0.1)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("n", [2, 7, 32])
def test_bi_half_is_balanced_and_has_the_papers_gradient(n: int) -> None:
    u = torch.from_numpy(draw(n, 5)).requires_grad_()
    codes = bi_half(u, 6.0)
    b = codes.detach().numpy()
    for k in range(5):
        order = np.argsort(-u.detach().numpy()[:, k])
        expected = np.where(np.arange(n) < n // 2, 1, -1)
        np.testing.assert_array_equal(b[order, k], expected)
    upstream = draw(n, 5, seed=1)
    torch.autograd.backward(codes, torch.from_numpy(upstream))
    assert u.grad is not None
    np.testing.assert_allclose(u.grad, upstream + 6 * (u.detach().numpy() - b) / (n * 5), rtol=1e-5)


def test_bi_half_codes_of_the_training_set_are_balanced() -> None:
    x = clustered()
    signs = make_hasher("bihalf", 16, epochs=3).fit(x).encode(x).signs().astype(int)
    assert np.abs(signs.sum(axis=0)).max() <= 2  # 120 rows, of which the median splits 60 from 60
    released = make_hasher("bihalf", 16, epochs=3, recentre=False).fit(x).encode(x).signs().astype(int)
    assert np.abs(released.sum(axis=0)).max() > 2


def test_bottleneck_is_the_symmetric_divergence_of_the_bits() -> None:
    first, second = draw(4, 3), draw(4, 3, seed=1)
    expected = 0.0
    for a, b in zip(expit(first.astype(float)), expit(second.astype(float)), strict=True):
        for p, q in zip(a, b, strict=True):
            expected += p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
            expected += q * np.log(q / p) + (1 - q) * np.log((1 - q) / (1 - p))
    found = bottleneck_loss(torch.from_numpy(first), torch.from_numpy(second))
    assert float(found) == pytest.approx(expected / 2 / 4, rel=1e-4)
    assert float(bottleneck_loss(torch.from_numpy(first), torch.from_numpy(first))) == pytest.approx(0, abs=1e-6)


def test_bottleneck_holds_its_targets_fixed() -> None:
    first, second = (torch.from_numpy(draw(4, 3, seed=s)).requires_grad_() for s in (0, 1))
    torch.autograd.backward(bottleneck_loss(first, second))
    p, q = expit(first.detach().numpy().astype(float)), expit(second.detach().numpy().astype(float))
    # d KL(p || q) / d logit(p) with q fixed = p (1 - p) (logit(p) - logit(q)); halved, and averaged over 4 rows.
    expected = p * (1 - p) * (first.detach().numpy() - second.detach().numpy()) / 8
    assert first.grad is not None
    np.testing.assert_allclose(first.grad, expected, atol=1e-6)
    assert q.shape == p.shape


@pytest.mark.parametrize("m", [1, 7, 32])
def test_calibration_targets_and_loss(m: int) -> None:
    targets = calibrated_targets(m, 5).numpy()
    assert (np.diff(targets) > 0).all() and np.abs(targets + targets[::-1]).max() < 1e-6
    np.testing.assert_allclose(
        beta_distribution.cdf((targets + 1) / 2, 5, 5), (2 * np.arange(1, m + 1) - 1) / (2 * m), atol=1e-6
    )
    cosines, wanted = draw(m), draw(m, seed=1)
    expected = np.mean([abs(cosines[i] - t) for i, t in zip(np.argsort(wanted), targets, strict=True)])
    assert float(calibration_loss(torch.from_numpy(cosines), torch.from_numpy(wanted), 5)) == pytest.approx(
        expected, rel=1e-5
    )


def test_alignment_is_the_cross_entropy_against_the_other_views_bits() -> None:
    first, second = draw(5, 4), draw(5, 4, seed=1)
    p, q = expit(first.astype(float)), expit(second.astype(float))
    forth = -np.mean(np.where(second > 0, np.log(p), np.log(1 - p)))
    back = -np.mean(np.where(first > 0, np.log(q), np.log(1 - q)))
    found = alignment_loss(torch.from_numpy(first), torch.from_numpy(second))
    assert float(found) == pytest.approx((forth + back) / 2, rel=1e-5)


def test_coding_rate() -> None:
    v = draw(9, 4)
    unit = v / np.linalg.norm(v, axis=1, keepdims=True)
    sign, logdet = np.linalg.slogdet(np.eye(4) + 4 / (9 * 0.05) * unit.T @ unit)
    assert sign == 1
    assert float(coding_rate(torch.from_numpy(v), 0.05)) == pytest.approx(0.5 * logdet * (4 + 9) / (4 * 9), rel=1e-5)
    collapsed = np.ones((9, 4), np.float32)
    assert float(coding_rate(torch.from_numpy(collapsed), 0.05)) < float(coding_rate(torch.from_numpy(v), 0.05))


def test_soft_sort_becomes_the_permutation_that_sorts() -> None:
    scores = draw(3, 8)
    places = soft_sort(torch.from_numpy(scores), 1e-4).numpy()
    np.testing.assert_allclose(places.sum(axis=2), 1, atol=1e-5)
    for row, matrix in zip(scores, places, strict=True):
        np.testing.assert_allclose(matrix @ row, np.sort(row)[::-1], atol=1e-4)
    warm = soft_sort(torch.from_numpy(scores), 0.7).numpy()
    ordered = np.sort(scores[1])[::-1]
    weights = np.exp(-np.abs(ordered[2] - scores[1]) / 0.7)
    np.testing.assert_allclose(warm[1, 2], weights / weights.sum(), atol=1e-5)


def test_sorted_contrast() -> None:
    places = torch.softmax(torch.from_numpy(draw(3, 5, 5)), dim=2)
    first, second = draw(3, 4, seed=1), draw(5, 4, seed=2)
    expected = []
    for i in range(3):
        gathered = places[i].numpy() @ second
        logits = np.array([g / np.linalg.norm(g) @ first[i] for g in gathered]) / 0.3
        expected += [-(logits[r] - np.log(np.exp(logits).sum())) for r in range(2)]
    found = sorted_contrast(places, torch.from_numpy(first), torch.from_numpy(second), 2, 0.3)
    assert float(found) == pytest.approx(np.mean(expected), rel=1e-4)


@pytest.mark.parametrize("method", ["greedyhash", "bihalf", "cibhash", "sdc", "crovca", "nsh"])
def test_training_lowers_the_loss(method: str) -> None:
    x = clustered()
    hasher: Any = make_hasher(method, 16, epochs=40, batch_size=32).fit(x, views=np.stack([x + 0.05, x * 1.1]))
    losses = hasher.history_["loss"]
    assert len(losses) == 40
    assert np.mean(losses[-5:]) < np.mean(losses[:5])
    assert all(bias.dtype == np.float64 for _, bias in hasher.layers_)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("greedyhash", {"penalty": 0.1}),
        ("greedyhash", {"centre": False}),
        ("bihalf", {"pull": 0.0}),
        ("bihalf", {"centre": False}),
        ("cibhash", {"temperature": 0.1}),
        ("cibhash", {"bottleneck": 0.5}),
        ("cibhash", {"sampling": "threshold"}),
        ("cibhash", {"noise": 0.1}),
        ("cibhash", {"hidden": 0}),
        ("cibhash", {"optimizer": "adamw", "weight_decay": 0.1}),
        ("cibhash", {"schedule": "cosine"}),
        ("cibhash", {"schedule": "step"}),
        ("sdc", {"beta": 1.0}),
        ("sdc", {"quantisation": 0.0}),
        ("crovca", {"diversity": 0.0}),
        ("crovca", {"precision": 1.0}),
        ("nsh", {"positives": 1}),
        ("nsh", {"temperature": 1.0}),
        ("nsh", {"sharpness": 5.0}),
        ("nsh", {"latent": 8}),
        ("nsh", {"quantisation": 0.0}),
    ],
)
def test_every_option_changes_what_is_learned(method: str, options: dict[str, Any]) -> None:
    x = clustered()
    base = {"epochs": 5, "batch_size": 32}
    plain: Any = make_hasher(method, 8, **base).fit(x)
    changed: Any = make_hasher(method, 8, **base, **options).fit(x)
    assert not np.array_equal(plain.project(x), changed.project(x))


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("greedyhash", {"penalty": -1}, "penalty must be at least 0, got -1"),
        ("cibhash", {"temperature": 0}, "temperature must be above 0, got 0"),
        ("cibhash", {"sampling": "odd"}, "sampling must be one of threshold, bernoulli, got 'odd'"),
        ("cibhash", {"hidden": -1}, "hidden must be at least 0, got -1"),
        ("cibhash", {"schedule": "odd"}, "schedule must be one of constant, step, cosine, got 'odd'"),
        ("crovca", {"optimizer": "odd"}, "optimizer must be one of sgd, adam, adamw, got 'odd'"),
        ("sdc", {"beta": 0}, "beta must be above 0"),
        ("nsh", {"latent": 0}, "latent must be at least 1"),
    ],
)
def test_options_are_checked(method: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        make_hasher(method, 8, **options)


def test_gelu_and_batch_norm_fold_into_plain_layers() -> None:
    x = clustered()
    hasher: Any = make_hasher("sdc", 8, epochs=2, hidden=16).fit(x)
    (weight, bias), (last, shift) = hasher.layers_
    hidden = torch.nn.functional.gelu(torch.from_numpy((x - hasher.mean_) @ weight + bias)).numpy()
    np.testing.assert_allclose(hasher.project(x), hidden @ last + shift, rtol=1e-5, atol=1e-5)
    assert np.abs(hasher.project(x).mean(axis=0)).max() < 1.5  # batch normalisation keeps outputs near standard
