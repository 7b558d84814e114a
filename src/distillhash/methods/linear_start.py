"""A head that starts from a linear hash function and learns what to change.

The start is ITQ (Gong et al., CVPR 2011) of what a ridge regression (Hoerl and Kennard, Technometrics 1970) predicts: better features of
the same images where there are any, and otherwise the features themselves, whose directions of little variance it shrinks. A regression
from few images predicts little of others, so with few of them the plain features stand beside what it predicts. The start stays as it
is; layers beside it, whose outputs are 0 at first, are what training moves. The gradient of a sign through tanh vanishes where outputs are
large, so the bits that the start is sure of stay and the others are open: few images change little of it, many images much.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from distillhash.methods.base import sample_rows
from distillhash.methods.itq import ITQ
from distillhash.pairs.similarity import row_blocks, unit_rows

Weight = NDArray[np.float64]
Layers = list[tuple[Weight, Weight]]

ROTATED = 10_000
"""Rows that ITQ looks at, at most: its rotation has n_bits^2 numbers and needs no more of them."""


class LinearStart(NamedTuple):
    """Weights ``(d, n_bits)`` of the features and, unless None, of the plain features, each less their mean."""

    features: Weight
    plain: Weight | None


def linear_start(
    features: NDArray[Any],
    plain: NDArray[Any],
    teacher: NDArray[Any] | None,
    n_bits: int,
    *,
    spread: float,
    plain_share: float,
    seed: int,
) -> LinearStart:
    """A linear hash function of features and plain features, less their means.

    Args:
        features: ``(n, d)``, what the regression is from.
        plain: ``(n, d)``, the same features as they came.
        teacher: ``(n, d)`` better features of the same items; None takes ``features``.
        n_bits: Code length. ITQ gives at most min(n - 1, d) bits; more of them are random directions, all of them.
        spread: Standard deviation of the outputs over all items and bits.
        plain_share: Of the plain features in the squared length of what ITQ is given; the rest is what the regression predicts.
        seed: Draws the rows that ITQ looks at and its first rotation, or the directions.
    """
    n, d = features.shape
    kinds = [(features, features.mean(axis=0))]
    maps = [_regression(features, features if teacher is None else teacher)]
    del teacher  # as large as the features, and the caller's no longer
    if plain_share:
        kinds.append((plain, plain.mean(axis=0)))
        maps.append(_emphasis(plain))
        for number, share in enumerate((1 - plain_share, plain_share)):
            rows, mean = kinds[number]
            lengths = [np.linalg.norm((rows[block] - mean) @ maps[number], axis=1) for block in row_blocks(n)]
            maps[number] *= np.sqrt(share) / (float(np.concatenate(lengths).mean()) or 1.0)
    rng = np.random.default_rng(seed)
    if n_bits <= min(n - 1, d):
        sample = sample_rows(n, ROTATED, rng)
        seen = [(rows[sample] - mean) @ weight for (rows, mean), weight in zip(kinds, maps, strict=True)]
        rotation = ITQ(n_bits, seed=seed).fit(unit_rows(np.hstack(seen))).weight_
    else:
        rotation = rng.standard_normal((len(maps) * d, n_bits))
    weights = [weight @ part for weight, part in zip(maps, np.split(rotation, len(maps)), strict=True)]
    outputs = [
        sum((rows[block] - mean) @ weight for (rows, mean), weight in zip(kinds, weights, strict=True))
        for block in row_blocks(n)
    ]
    scale = spread / (float(np.std(np.concatenate(outputs))) or 1.0)
    return LinearStart(weights[0] * scale, weights[1] * scale if plain_share else None)


def _emphasis(rows: NDArray[Any]) -> Weight:
    """Symmetric ``(d, d)``: every principal direction times the fourth root of its standard deviation, the largest of them 1."""
    from scipy.linalg import eigh

    variances, directions = eigh(_products(rows, rows))
    relative = np.maximum(variances, 0) / (variances[-1] if variances[-1] > 0 else 1.0)
    return np.asarray((directions * relative**0.125) @ directions.T)


def _regression(inputs: NDArray[Any], targets: NDArray[Any]) -> Weight:
    """Ridge regression ``(d, d)`` between rows less their means; the penalty counts as much as one row of mean length."""
    from scipy.linalg import solve

    products = _products(inputs, inputs)
    penalty = np.trace(products) / len(inputs) or 1.0
    return np.asarray(solve(products + penalty * np.eye(len(products)), _products(inputs, targets), assume_a="pos"))


def _products(left: NDArray[Any], right: NDArray[Any]) -> Weight:
    """Of the columns of two sets of rows, each less its mean: ``(d, d)``."""
    means = left.mean(axis=0), right.mean(axis=0)
    products = np.zeros((left.shape[1], right.shape[1]))
    for block in row_blocks(len(left)):
        off = left[block] - means[0]
        products += off.T @ (off if right is left else right[block] - means[1])
    return products


def silent(layers: nn.Sequential) -> nn.Sequential:
    """The layers, the last of which gives 0 until it learns."""
    last = layers[-1]
    assert isinstance(last, nn.Linear)
    nn.init.zeros_(last.weight)
    return layers


class PlusLinear(nn.Module):
    """Outputs of a module, plus those of a linear map that is not trained."""

    mean: Tensor
    weight: Tensor

    def __init__(self, module: nn.Module, mean: NDArray[np.float64], weight: Weight) -> None:
        """``weight (d, n_bits)`` takes inputs less ``mean``, ``module`` the inputs."""
        super().__init__()
        self.module = module
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("weight", torch.tensor(weight, dtype=torch.float32))

    def forward(self, inputs: Tensor) -> Tensor:
        """``(b, d)`` to ``(b, n_bits)``."""
        outputs: Tensor = (inputs - self.mean) @ self.weight + self.module(inputs)
        return outputs


def add_start(layers: Layers, start: NDArray[np.float64]) -> Layers:
    """One or two layers with ReLU between that give what ``layers`` gave plus the start.

    Past a hidden layer it goes as two units a bit, for x = relu(x) - relu(-x).
    """
    (weight, bias), *rest = layers
    if not rest:
        return [(weight + start, bias)]
    (last, last_bias), n_bits = rest[0], start.shape[1]
    return [
        (np.hstack([weight, start, -start]), np.concatenate([bias, np.zeros(2 * n_bits)])),
        (np.vstack([last, np.eye(n_bits), -np.eye(n_bits)]), last_bias),
    ]
