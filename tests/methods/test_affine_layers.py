"""The layers that trained hash functions are kept as, against torch."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from distillhash.methods.base import Activation, AffineLayers

RNG = np.random.default_rng(0)
MEAN = RNG.standard_normal(5)
LAYERS: list[tuple[NDArray[Any], NDArray[Any]]] = [
    (RNG.standard_normal((5, 7)), RNG.standard_normal(7)),
    (RNG.standard_normal((7, 3)), RNG.standard_normal(3)),
]
TORCH = {"relu": torch.relu, "gelu": torch.nn.functional.gelu, "tanh": torch.tanh}


@pytest.mark.parametrize("activation", ["relu", "gelu", "tanh"])
def test_outputs_are_those_of_torch(activation: Activation) -> None:
    rows = RNG.standard_normal((11, 5))
    (first, first_bias), (last, last_bias) = [[torch.from_numpy(array) for array in layer] for layer in LAYERS]
    hidden = TORCH[activation](torch.from_numpy(rows - MEAN) @ first + first_bias)
    expected = (hidden @ last + last_bias).numpy()
    np.testing.assert_allclose(AffineLayers(MEAN, LAYERS, activation)(rows), expected, atol=1e-12)
    one = AffineLayers(MEAN, LAYERS[:1], activation)(rows)  # no activation after the last layer
    np.testing.assert_allclose(one, (rows - MEAN) @ LAYERS[0][0] + LAYERS[0][1], atol=1e-12)


def test_state_names_every_array_and_is_read_back() -> None:
    layers = AffineLayers(MEAN, LAYERS, "relu")
    assert set(layers.state()) == {"mean", "weight_0", "bias_0", "weight_1", "bias_1"}
    state = layers.state("text.")
    assert set(state) == {f"text.{name}" for name in layers.state()}
    rows = RNG.standard_normal((4, 5))
    np.testing.assert_array_equal(AffineLayers.from_state(state, 2, 3, "relu", "text.")(rows), layers(rows))


@pytest.mark.parametrize(
    ("change", "n_bits", "message"),
    [
        ({"mean": np.zeros(6)}, 3, r"weight_0 of shape \(5, 7\) after 6 values"),
        ({"weight_1": np.zeros((6, 3))}, 3, r"weight_1 of shape \(6, 3\) after 7 values"),
        ({"bias_1": np.zeros(4)}, 3, "weight_1 of shape"),
        ({}, 4, "3 outputs for 4 bits"),
    ],
)
def test_shapes_are_checked(change: dict[str, NDArray[Any]], n_bits: int, message: str) -> None:
    state = AffineLayers(MEAN, LAYERS, "relu").state() | change
    with pytest.raises(ValueError, match=message):
        AffineLayers.from_state(state, 2, n_bits, "relu")
