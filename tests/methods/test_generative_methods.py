"""SGH, DeepBit, TBH, URPH and DMUH: each formula typed again, and what each promises."""

import copy
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import expit

from distillhash.errors import DataError, ParameterError
from distillhash.methods import load_hasher, make_hasher
from distillhash.methods.deepbit import even_loss, quantisation_loss
from distillhash.methods.dmuh import _WithMomentum, attention_weights, shared_labels, uncertain_loss
from distillhash.methods.registry import hasher_from
from distillhash.methods.sgh import Generative, bit_differences, description_length
from distillhash.methods.tbh import TwinBottleneck, code_graph
from distillhash.methods.urph import listwise_loss, nearest_loss, pairwise_loss


def clustered(n: int = 120, d: int = 24, seed: int = 0) -> NDArray[Any]:
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((6, d))
    return np.maximum(centres[np.arange(n) % 6] + 0.5 * rng.standard_normal((n, d)), 0).astype(np.float32)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


# SGH


def generative(k: int, d: int) -> Generative:
    model = Generative(torch.nn.Identity(), k, d).double()
    with torch.no_grad():
        model.decoder.copy_(draw(k, d))
        model.shift.copy_(draw(d, seed=1))
        model.prior.copy_(draw(k, seed=2))
        model.log_rho.fill_(0.3)
    return model


def exact_bound(model: Generative, x: NDArray[Any], z: NDArray[Any]) -> float:
    """E_q[-log p(x, h) + log q(h | x)] by enumeration of all codes of one row, without the constant of the Gaussian."""
    U, shift, theta = (t.detach().numpy() for t in (model.decoder, model.shift, torch.sigmoid(model.prior)))
    rho, p, total = torch.exp(model.log_rho).item(), expit(z), 0.0
    for bits in product([0, 1], repeat=len(z)):
        h = np.array(bits)
        q = np.prod(np.where(h, p, 1 - p))
        log_prior = np.log(np.where(h, theta, 1 - theta)).sum()
        error = np.square(x - shift - h @ U).sum()
        total += q * (error / (2 * rho**2) + len(x) * np.log(rho) - log_prior + np.log(q))
    return total


@pytest.mark.parametrize("k", [1, 4])
def test_sgh_estimates_bound_and_gradient_without_bias(k: int) -> None:
    model, d, n = generative(k, 5), 5, 40_000
    x, z = draw(1, d, seed=3).double(), draw(1, k, seed=4).double()
    uniform = torch.from_numpy(np.random.default_rng(5).random((n, k)))
    logits = z.expand(n, k).clone().requires_grad_()
    value = description_length(model(logits), x.expand(n, d), uniform, "distributional")
    assert value.item() * d == pytest.approx(exact_bound(model, x[0].numpy(), z[0].numpy()), rel=0.01)
    torch.autograd.backward(value)
    assert logits.grad is not None
    estimate = logits.grad.sum(dim=0).numpy() * d
    step = 1e-5
    for bit in range(k):
        shifted = [z[0].numpy() + sign * step * np.eye(k)[bit] for sign in (1, -1)]
        slope = (exact_bound(model, x[0].numpy(), shifted[0]) - exact_bound(model, x[0].numpy(), shifted[1])) / (
            2 * step
        )
        assert estimate[bit] == pytest.approx(slope, abs=0.02 * max(1, abs(slope)))


def test_sgh_bit_differences_equal_recomputation() -> None:
    model, x, bits = generative(4, 5), draw(3, 5).double(), (draw(3, 4, seed=1) > 0).double()
    precision = torch.exp(-2 * model.log_rho)

    def cost(h: torch.Tensor) -> torch.Tensor:
        error = (x - model.shift - h @ model.decoder).square().sum(dim=1) * precision / 2
        return error - (h * model.prior).sum(dim=1)  # log p(h) up to a constant

    found = bit_differences(model(bits), x - model.shift - bits @ model.decoder, bits, precision)
    for bit in range(4):
        on, off = bits.clone(), bits.clone()
        on[:, bit], off[:, bit] = 1, 0
        torch.testing.assert_close(found[:, bit], cost(on) - cost(off))


def test_sgh_describes_better_as_it_learns_and_with_more_bits() -> None:
    x = clustered()
    losses = [
        make_hasher("sgh", k, epochs=60, batch_size=32, learning_rate=0.01).fit(x).history_["loss"] for k in (1, 4)
    ]
    assert all(loss[-1] < loss[0] for loss in losses)
    assert losses[1][-1] < losses[0][-1]
    with pytest.raises(DataError, match="25 bits need at least 25 features"):
        make_hasher("sgh", 25).fit(x)
    hidden: Any = make_hasher("sgh", 30, hidden=8, epochs=2).fit(x)  # a hidden layer has no such limit
    assert hidden.encode(x).n_bits == 30


# DeepBit


def test_deepbit_terms() -> None:
    f = torch.sigmoid(draw(6, 4)).requires_grad_()
    values = f.detach().numpy()
    bits = (values > 0.5).astype(float)
    assert float(quantisation_loss(f)) == pytest.approx(np.mean((values - bits) ** 2), rel=1e-5)
    assert float(even_loss(f)) == pytest.approx(np.mean((values.mean(axis=0) - 0.5) ** 2), rel=1e-5)
    (gradient,) = torch.autograd.grad(quantisation_loss(f), f)
    np.testing.assert_allclose(
        gradient, 2 * (values - bits) / 24, rtol=1e-5
    )  # element by element: what the release lacks
    assert float(even_loss(torch.ones(5, 3))) == 0.25


def test_deepbit_bits_are_even_and_survive_a_change_of_view() -> None:
    x = clustered(300)
    views = np.stack([x + 0.1 * np.random.default_rng(s).standard_normal(x.shape).astype(np.float32) for s in (1, 2)])
    options: dict[str, Any] = {"epochs": 30, "batch_size": 64}
    hasher = make_hasher("deepbit", 16, **options).fit(x, views=views)
    uneven = make_hasher("deepbit", 16, even=0.0, **options).fit(x, views=views)
    means = [np.abs(h.encode(x).signs().astype(float).mean(axis=0)).mean() for h in (hasher, uneven)]
    assert means[0] < means[1]
    changing = make_hasher("deepbit", 16, invariance=0.0, **options).fit(x, views=views)
    unseen = x + 0.1 * np.random.default_rng(9).standard_normal(x.shape).astype(np.float32)
    flips = [(h.encode(x).signs() != h.encode(unseen).signs()).mean() for h in (hasher, changing)]
    assert flips[0] < flips[1]


# TBH


def test_tbh_graph() -> None:
    bits = (draw(5, 8) > 0).float()
    affinity = np.array([[(1 - (a != b).mean()) ** 1.4 for b in bits.numpy()] for a in bits.numpy()])
    degree = affinity.sum(axis=1)
    expected = affinity / np.sqrt(np.outer(degree, degree))
    np.testing.assert_allclose(code_graph(bits, 1.4), expected, atol=1e-4)


def test_tbh_forward_and_gradient_of_the_threshold() -> None:
    generator = torch.Generator().manual_seed(0)
    binary = torch.nn.Linear(6, 4)
    net = TwinBottleneck(torch.nn.Identity(), binary, 3, 5, 1.4, generator)
    x = draw(7, 6)
    bits, convolved, graph = net.bottlenecks(x)
    p = torch.sigmoid(binary(x))
    np.testing.assert_allclose(bits.detach(), (p >= 0.5).float(), atol=1e-6)
    z = torch.sigmoid(net.continuous(x))
    np.testing.assert_allclose(
        convolved.detach(),
        torch.sigmoid(graph @ (z @ net.convolution.weight.T + net.convolution.bias)).detach(),
        atol=1e-6,
    )
    rebuilt, critics = net(x)
    torch.testing.assert_close(rebuilt, net.decoder(convolved))
    assert rebuilt.shape == (7, 5) and critics.shape == ()
    (gradient,) = torch.autograd.grad(bits.sum(), binary.bias)
    np.testing.assert_allclose(gradient, (p * (1 - p)).sum(dim=0).detach(), rtol=1e-5)


def test_tbh_critics_learn_while_the_encoder_is_pushed_the_other_way() -> None:
    critic = torch.nn.Linear(3, 1)
    found = draw(4, 3).requires_grad_()
    loss = TwinBottleneck.critic_loss(draw(4, 3, seed=1), found, critic)
    torch.autograd.backward(loss)
    plain = found.detach().clone().requires_grad_()
    fake = critic(plain)
    torch.autograd.backward(torch.nn.functional.softplus(fake).mean() / 2)
    assert found.grad is not None and plain.grad is not None
    np.testing.assert_allclose(found.grad, -plain.grad, rtol=1e-5)


# URPH


def test_urph_listwise_loss() -> None:
    wanted, found = draw(5, 5), draw(5, 5, seed=1)
    expected = []
    for q in range(5):
        others = [i for i in range(5) if i != q]
        p = np.exp(wanted[q, others].numpy() / 0.1)
        s = np.exp(found[q, others].numpy() / 0.2)
        p, s = p / p.sum(), s / s.sum()
        expected.append(np.sum(p * np.log(p / s)))
    assert float(listwise_loss(wanted, found, 0.1, 0.2)) == pytest.approx(np.mean(expected), rel=1e-4)
    assert float(listwise_loss(wanted, 2 * wanted, 0.1, 0.2)) == pytest.approx(0, abs=1e-5)  # the same ranking


def test_urph_pairwise_loss() -> None:
    wanted, found = draw(5, 5), draw(5, 5, seed=1)
    expected = []
    for q in range(5):
        order = sorted((i for i in range(5) if i != q), key=lambda i: -float(wanted[q, i]))
        weights = [1 / np.log2(2 + rank) for rank in range(2)]
        hinges = [max(0.0, 0.1 - float(found[q, order[r]] - found[q, order[r + 2]])) for r in range(2)]
        expected.append(np.dot(weights, hinges) / np.sum(weights))
    assert float(pairwise_loss(wanted, found, 0.1)) == pytest.approx(np.mean(expected), rel=1e-4)
    assert float(pairwise_loss(wanted, wanted * 100, 0.01)) == 0


def test_urph_nearest_loss() -> None:
    wanted, found = draw(3, 5), draw(3, 5, seed=1)
    expected = []
    for q in range(3):
        others = [i for i in range(5) if i != q]
        nearest = sorted(others, key=lambda i: -float(wanted[q, i]))[:2]
        total = sum(np.exp(float(found[q, i])) for i in others)
        expected += [-np.log(np.exp(float(found[q, i])) / total) for i in nearest]
    assert float(nearest_loss(wanted, found, 2)) == pytest.approx(np.mean(expected), rel=1e-4)
    assert np.isfinite(float(nearest_loss(wanted, found, 100)))  # no more than there are


def nearest_kept(hasher: Any, x: NDArray[Any]) -> float:
    """Of each row's 10 nearest by cosine, the share among the first 10 by Hamming distance (ties by row)."""
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    signs = hasher.encode(x).signs().astype(int)
    kept = []
    for i in range(len(x)):
        others = np.delete(np.arange(len(x)), i)
        wanted = others[np.argsort(-(unit[others] @ unit[i]))[:10]]
        found = others[np.argsort(-(signs[others] @ signs[i]), kind="stable")[:10]]
        kept.append(np.isin(wanted, found).mean())
    return float(np.mean(kept))


def test_urph_nearest_keeps_more_neighbours_than_itq(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    mixing = rng.standard_normal((48, 48)) * 0.9 ** np.arange(48)[:, None]
    x = (rng.standard_normal((800, 48)) @ mixing + 3).astype(np.float32)
    hasher: Any = make_hasher("urph", 40, preset="nearest", epochs=5).fit(x[:500])
    assert nearest_kept(hasher, x[500:]) > nearest_kept(make_hasher("itq", 40).fit(x[:500]), x[500:])
    assert {"width", "power", "share", "trained"} == set(hasher.history_["choice"])
    assert hasher.encode(5 * x) == hasher.encode(x)  # lengths do not count
    hasher.save(tmp_path / "urph")
    assert load_hasher(tmp_path / "urph").encode(x) == hasher.encode(x)


@pytest.mark.parametrize(("n", "n_bits"), [(2, 4), (30, 64)])
def test_urph_nearest_of_few_rows_and_more_bits_than_features(n: int, n_bits: int) -> None:
    x = np.random.default_rng(0).standard_normal((n, 12))
    assert make_hasher("urph", n_bits, preset="nearest").fit(x).encode(x).n_bits == n_bits


def test_urph_refuses_what_does_not_go_together() -> None:
    with pytest.raises(ParameterError, match="start='itq' does not go with rank_loss='listwise'"):
        make_hasher("urph", 8, start="itq")
    with pytest.raises(ParameterError, match="leave out hidden=4"):
        make_hasher("urph", 8, preset="nearest", hidden=4)
    with pytest.raises(DataError, match="all features point the same way"):
        make_hasher("urph", 8, preset="nearest").fit(np.ones((20, 16)))


def test_urph_models_with_a_trained_decoder_load() -> None:
    x = clustered(240)
    hasher = make_hasher("urph", 8, epochs=2).fit(x)
    config, tensors = hasher.config(), hasher.state()
    config["parameters"] |= {"decoder_hidden": 4, "decoder_epochs": 10}
    for name in ("start", "neighbours"):
        del config["parameters"][name]
    shapes = {"weight_0": (8, 32), "bias_0": (32,), "weight_1": (32, x.shape[1]), "bias_1": (x.shape[1],)}
    old = hasher_from(config, tensors | {f"decoder_{name}": np.zeros(shape) for name, shape in shapes.items()})
    assert old.encode(x) == hasher.encode(x)
    assert old.fit_decoder(x).reconstruct(old.encode(x)).shape == x.shape


# DMUH


@pytest.mark.parametrize("labels", [np.array([0, 1, 1, 2]), np.array([[1, 0], [1, 1], [0, 1], [0, 0]], bool)])
def test_dmuh_shared_labels(labels: NDArray[Any]) -> None:
    for i in range(4):
        for j in range(4):
            wanted = labels[i] == labels[j] if labels.ndim == 1 else (labels[i] & labels[j]).any()
            assert shared_labels(labels)[i, j] == wanted


def test_dmuh_loss_and_weights() -> None:
    u, v = draw(5, 3), draw(5, 3, seed=1)
    pairs = (draw(5, 5, seed=2) > 0).float()
    by_bit, by_image = attention_weights(u, v, 1.0)
    uncertainty = np.abs(u.numpy() - v.numpy()) / np.abs(u.numpy()).mean()
    wanted = 1 + uncertainty / uncertainty.mean()
    np.testing.assert_allclose(by_bit, wanted / wanted.mean(), rtol=1e-5)
    assert float(by_image.mean()) == pytest.approx(1)
    assert (by_bit.numpy().argmax() == uncertainty.argmax()) and float(by_image[0, 1]) == pytest.approx(
        float(by_image[1, 0])
    )
    total, count = 0.0, 0
    for i in range(5):
        for j in range(5):
            if i != j:
                t = 4 * float(u[i] @ u[j]) / 3
                total += float(by_image[i, j]) * (np.log1p(np.exp(t)) - float(pairs[i, j]) * t)
                count += 1
    quantisation = np.mean(by_bit.numpy() * (u.numpy() - np.where(u.numpy() >= 0, 1, -1)) ** 2)
    found = uncertain_loss(u, pairs, by_bit, by_image, 4.0, 0.1)
    assert float(found) == pytest.approx(total / count + 0.1 * quantisation, rel=1e-4)
    even_bit, even_image = attention_weights(u, u, 1.0)  # no uncertainty: all weights 1
    np.testing.assert_allclose(even_bit, 1, rtol=1e-5)
    np.testing.assert_allclose(even_image, 1, rtol=1e-5)


def test_dmuh_momentum_network_follows_without_gradient() -> None:
    online = torch.nn.Linear(2, 1, bias=False)
    network = _WithMomentum(online, copy.deepcopy(online), 0.9)
    start = online.weight.detach().clone()
    with torch.no_grad():
        online.weight.add_(1.0)
    _, followed = network(draw(3, 2))
    assert not followed.requires_grad
    np.testing.assert_allclose(network.follower.weight, start + 0.1, rtol=1e-5)  # type: ignore[arg-type]  # a tensor


def test_dmuh_learns_the_labels_it_is_given() -> None:
    x = np.random.default_rng(0).standard_normal((200, 30)).astype(np.float32)
    labels = (x[:, 0] > 0).astype(int) + 2 * (x[:, 1] > 0)  # nothing that the features' structure shows
    signs = make_hasher("dmuh", 16, epochs=60, learning_rate=0.01).fit(x, labels=labels).encode(x).signs().astype(int)
    distances = (16 - signs @ signs.T) / 2
    same = np.equal.outer(labels, labels)
    assert distances[same].mean() < 0.75 * distances[~same].mean()
    with pytest.raises(ParameterError, match="dmuh is supervised: it needs labels"):
        make_hasher("dmuh", 8).fit(x)
    with pytest.raises(DataError, match="only one kind of pair"):
        make_hasher("dmuh", 8).fit(x, labels=np.zeros(200, int))
    with pytest.raises(ParameterError, match="itq learns without labels"):
        make_hasher("itq", 8).fit(x, labels=labels)
    with pytest.raises(DataError, match=r"labels must be \(200,\)"):
        make_hasher("dmuh", 8).fit(x, labels=labels[:5])


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("sgh", {"gradient": "straight-through"}),
        ("deepbit", {"quantisation": 0.0}),
        ("deepbit", {"even": 0.0}),
        ("deepbit", {"invariance": 0.0}),
        ("deepbit", {"noise": 0.1}),
        ("tbh", {"latent": 8}),
        ("tbh", {"exponent": 3.0}),
        ("tbh", {"adversarial": 0.5}),
        ("urph", {"rank_loss": "pairwise"}),
        ("urph", {"feature_temperature": 1.0}),
        ("urph", {"code_temperature": 1.0}),
        ("urph", {"quantisation": 1.0}),
        ("urph", {"balance": 10.0}),
        ("dmuh", {"momentum": 0.5}),
        ("dmuh", {"attention": 0.0}),
        ("dmuh", {"quantisation": 0.0}),
    ],
)
def test_every_option_changes_what_is_learned(method: str, options: dict[str, Any]) -> None:
    x = clustered()
    base: dict[str, Any] = {"epochs": 5, "batch_size": 32}
    labels = np.arange(120) % 6 if method == "dmuh" else None
    plain = make_hasher(method, 8, **base).fit(x, labels=labels)
    changed = make_hasher(method, 8, **base, **options).fit(x, labels=labels)
    assert not np.array_equal(plain.project(x), changed.project(x))


def test_urph_margin() -> None:
    x = clustered()
    plain, changed = (
        make_hasher("urph", 8, epochs=5, rank_loss="pairwise", margin=margin).fit(x).project(x) for margin in (0.1, 0.5)
    )
    assert not np.array_equal(plain, changed)


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("sgh", {"gradient": "exact"}, "gradient must be one of distributional, straight-through"),
        ("deepbit", {"even": -1}, "even must be at least 0, got -1"),
        ("tbh", {"hidden": 0}, "hidden must be at least 1, got 0"),
        ("tbh", {"exponent": 0}, "exponent must be above 0"),
        ("urph", {"rank_loss": "odd"}, "rank_loss must be one of listwise, pairwise, nearest"),
        ("urph", {"neighbours": 0}, "neighbours must be at least 1"),
        ("dmuh", {"momentum": 1.0}, "momentum must be at least 0 and below 1, got 1.0"),
    ],
)
def test_options_are_checked(method: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        make_hasher(method, 8, **options)
