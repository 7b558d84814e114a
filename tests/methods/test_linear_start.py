"""The start of a head: ITQ of what a ridge regression predicts, and layers that hold it together with what was learned."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.linear_model import Ridge
from torch import nn

from distillhash.methods import make_hasher
from distillhash.methods.head_hasher import Head
from distillhash.methods.linear_start import StartedHead, add_start, linear_start


def items(n: int = 60, d: int = 10, seed: int = 0) -> NDArray[Any]:
    return np.asarray(
        np.random.default_rng(seed).standard_normal((n, d)) @ np.random.default_rng(9).standard_normal((d, d))
    )


def unit(rows: NDArray[Any]) -> NDArray[Any]:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


@pytest.mark.parametrize("guided", [False, True])
def test_it_is_itq_of_what_a_ridge_regression_predicts(guided: bool) -> None:
    x = items()
    better = np.tanh(x @ np.random.default_rng(3).standard_normal((10, 10)) / 5)
    off, aim = x - x.mean(axis=0), better if guided else x
    ridge = Ridge(alpha=float(np.square(off).sum() / len(x))).fit(x, aim)
    predicted = ridge.predict(x) - aim.mean(axis=0)
    itq = make_hasher("itq", 6, seed=4).fit(unit(predicted).astype(np.float32))
    start = linear_start(x, better if guided else None, 6, spread=3.0, seed=4)
    assert np.std(off @ start) == pytest.approx(3.0)
    expected = predicted @ itq.state()["weight"]
    np.testing.assert_allclose(off @ start, expected * (3.0 / expected.std()), atol=1e-5)


@pytest.mark.parametrize(("n", "n_bits"), [(60, 10), (60, 33), (7, 8), (2, 1), (2, 127)])
def test_any_number_of_bits_has_a_start(n: int, n_bits: int) -> None:
    start = linear_start(items(n), None, n_bits, spread=2.0, seed=0)
    assert start.shape == (10, n_bits) and np.isfinite(start).all()
    x = items(n)
    assert np.std((x - x.mean(axis=0)) @ start) == pytest.approx(2.0)
    if n > 2:
        assert len(np.unique(start, axis=1).T) == n_bits  # no two bits start alike


def test_equal_items_start_from_finite_numbers() -> None:
    assert np.isfinite(linear_start(np.ones((5, 3)), np.ones((5, 3)), 2, spread=3.0, seed=0)).all()


@pytest.mark.parametrize("hidden", [0, 16])
def test_folded_layers_give_what_the_network_gives(hidden: int) -> None:
    x = items().astype(np.float32)
    head = Head(x, hidden)
    start = linear_start(x, None, 6, spread=3.0, seed=0)
    network = StartedHead(head.build(6, 0), head.mean, start)
    off = x - head.mean
    with torch.no_grad():
        np.testing.assert_allclose(network(torch.from_numpy(x)).numpy(), off @ start, atol=1e-4)  # nothing learned yet
        for layer in network.modules():
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight)
                nn.init.normal_(layer.bias)
        expected = network(torch.from_numpy(x)).numpy()
    outputs = off
    for number, (weight, bias) in enumerate(add_start(head.fold(network), start)):
        outputs = (np.maximum(outputs, 0) if number else outputs) @ weight + bias
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-3)
