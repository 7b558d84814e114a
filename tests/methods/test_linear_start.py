"""The start of a head: ITQ of what a ridge regression predicts, and layers that hold it together with what was learned."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from torch import nn

from distillhash.methods import make_hasher
from distillhash.methods.distillhash_contrast import LinearStart, PlusLinear, add_start, linear_start, zero_last_layer
from distillhash.methods.heads import Head


def items(n: int = 60, d: int = 10, seed: int = 0) -> NDArray[Any]:
    return np.asarray(
        np.random.default_rng(seed).standard_normal((n, d)) @ np.random.default_rng(9).standard_normal((d, d))
    )


def unit(rows: NDArray[Any]) -> NDArray[Any]:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def started(x: NDArray[Any], n_bits: int, *, teacher: NDArray[Any] | None = None, **options: Any) -> LinearStart:
    return linear_start(x, x, teacher, n_bits, **{"spread": 3.0, "plain_share": 0.0, "seed": 0, **options})


def predictions(x: NDArray[Any], aim: NDArray[Any]) -> NDArray[Any]:
    off = x - x.mean(axis=0)
    ridge = Ridge(alpha=float(np.square(off).sum() / len(x))).fit(x, aim)
    return np.asarray(ridge.predict(x) - aim.mean(axis=0))


@pytest.mark.parametrize("guided", [False, True])
def test_it_is_itq_of_what_a_ridge_regression_predicts(guided: bool) -> None:
    x = items()
    better = np.tanh(x @ np.random.default_rng(3).standard_normal((10, 10)) / 5)
    off, aim = x - x.mean(axis=0), better if guided else x
    predicted = predictions(x, aim)
    itq = make_hasher("itq", 6, seed=4).fit(unit(predicted).astype(np.float32))
    start, plain = started(x, 6, teacher=better if guided else None, seed=4)
    assert plain is None
    assert np.std(off @ start) == pytest.approx(3.0)
    expected = predicted @ itq.state()["weight"]
    np.testing.assert_allclose(off @ start, expected * (3.0 / expected.std()), atol=1e-5)


def test_plain_features_stand_beside_the_prediction() -> None:
    x, better = items(), items(seed=1)
    plain = np.exp(x / 4)
    predicted, off = predictions(x, better), plain - plain.mean(axis=0)
    # Scores along principal directions, each times the fourth root of its deviation, and back.
    principal = PCA().fit(plain)
    deviations = principal.singular_values_ / principal.singular_values_[0]
    weighted = (off @ principal.components_.T) * deviations**0.25
    emphasised = weighted @ principal.components_
    both = np.hstack(
        [
            np.sqrt(0.3) * predicted / np.linalg.norm(predicted, axis=1).mean(),
            np.sqrt(0.7) * emphasised / np.linalg.norm(emphasised, axis=1).mean(),
        ]
    )
    start = linear_start(x, plain, better, 6, spread=2.0, plain_share=0.7, seed=4)
    assert start.plain is not None
    outputs = (x - x.mean(axis=0)) @ start.features + off @ start.plain
    assert np.std(outputs) == pytest.approx(2.0)
    itq = make_hasher("itq", 6, seed=4).fit(unit(both).astype(np.float32))
    expected = both @ itq.state()["weight"]
    np.testing.assert_allclose(outputs, expected * (2.0 / expected.std()), atol=1e-4)


@pytest.mark.parametrize("plain_share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("n", "n_bits"), [(60, 10), (60, 33), (7, 8), (2, 1), (2, 127)])
def test_any_number_of_bits_has_a_start(n: int, n_bits: int, plain_share: float) -> None:
    start = started(items(n), n_bits, spread=2.0, plain_share=plain_share)
    weight = start.features if start.plain is None else start.features + start.plain
    assert weight.shape == (10, n_bits) and np.isfinite(weight).all()
    x = items(n)
    assert np.std((x - x.mean(axis=0)) @ weight) == pytest.approx(2.0)
    if n > 2:
        assert len(np.unique(weight, axis=1).T) == n_bits  # no two bits start alike


@pytest.mark.parametrize("plain_share", [0.0, 0.5])
def test_equal_items_start_from_finite_numbers(plain_share: float) -> None:
    start = started(np.ones((5, 3)), 2, teacher=np.ones((5, 3)), plain_share=plain_share)
    assert all(np.isfinite(weight).all() for weight in start if weight is not None)


def test_of_many_rows_itq_looks_at_some(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distillhash.methods.distillhash_contrast.ROTATED", 40)
    x = items()
    predicted = predictions(x, x)
    rows = np.sort(np.random.default_rng(4).choice(60, 40, replace=False))
    itq = make_hasher("itq", 6, seed=4).fit(unit(predicted[rows]).astype(np.float32))
    expected = predicted @ itq.state()["weight"]
    start = started(x, 6, seed=4).features
    np.testing.assert_allclose((x - x.mean(axis=0)) @ start, expected * (3.0 / expected.std()), atol=1e-5)


def test_blocks_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x = items(100)
    whole = started(x, 6, plain_share=0.5)
    monkeypatch.setattr(
        "distillhash.methods.distillhash_contrast.row_blocks", lambda n: [slice(0, 33), slice(33, 66), slice(66, n)]
    )
    np.testing.assert_allclose(started(x, 6, plain_share=0.5).features, whole.features, rtol=1e-6)


@pytest.mark.parametrize("hidden", [0, 16])
def test_folded_layers_give_what_the_network_gives(hidden: int) -> None:
    x = items().astype(np.float32)
    head = Head(x, 6, 0, hidden)
    start = started(x, 6).features
    zero_last_layer(head)
    network = PlusLinear(head, head.mean, start)
    off = x - head.mean
    with torch.no_grad():
        np.testing.assert_allclose(network(torch.from_numpy(x)).numpy(), off @ start, atol=1e-4)  # nothing learned yet
        for layer in network.modules():
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight)
                nn.init.normal_(layer.bias)
        expected = network(torch.from_numpy(x)).numpy()
    outputs = off
    for number, (weight, bias) in enumerate(add_start(head.fold(), start)):
        outputs = (np.maximum(outputs, 0) if number else outputs) @ weight + bias
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-3)
