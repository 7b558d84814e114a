"""A head that starts from a linear hash function and learns what to change.

The start is ITQ (Gong et al., CVPR 2011) of what a ridge regression (Hoerl and Kennard, Technometrics 1970) predicts: better features of
the same images where there are any, and otherwise the features themselves, whose directions of little variance it shrinks. It stays as it
is; layers beside it, whose outputs are 0 at first, are what training moves. The gradient of a sign through tanh vanishes where outputs are
large, so the bits that the start is sure of stay and the others are open: few images change little of it, many images much.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from distillhash.methods.itq import ITQ
from distillhash.pairs.similarity import unit_rows

Layers = list[tuple[NDArray[np.float64], NDArray[np.float64]]]


def linear_start(
    features: NDArray[Any], teacher: NDArray[Any] | None, n_bits: int, *, spread: float, seed: int
) -> NDArray[np.float64]:
    """A linear hash function of features less their mean, ``(d, n_bits)``.

    Args:
        features: ``(n, d)``.
        teacher: ``(n, d)`` better features of the same items; None takes the features.
        n_bits: Code length. ITQ gives at most min(n - 1, d) bits; more of them are random directions, all of them.
        spread: Standard deviation of the outputs over all items and bits.
        seed: Draws ITQ's first rotation, or the directions.
    """
    n, d = features.shape
    off = features - features.mean(axis=0)
    to_teacher = _regression(off, off if teacher is None else teacher - teacher.mean(axis=0))
    if n_bits <= min(n - 1, d):
        weight = to_teacher @ ITQ(n_bits, seed=seed).fit(unit_rows(off @ to_teacher)).weight_
    else:
        weight = to_teacher @ np.random.default_rng(seed).standard_normal((d, n_bits))
    return np.asarray(weight * (spread / (float((off @ weight).std()) or 1.0)))


def _regression(inputs: NDArray[Any], targets: NDArray[Any]) -> NDArray[np.float64]:
    """Ridge regression ``(d, d)`` between centred rows; the penalty counts as much as one row of mean length."""
    from scipy.linalg import solve

    products = np.asarray(inputs.T @ inputs, np.float64)
    penalty = np.trace(products) / len(inputs) or 1.0
    return np.asarray(solve(products + penalty * np.eye(len(products)), inputs.T @ targets, assume_a="pos"))


class StartedHead(nn.Module):
    """Outputs of a linear map that stays, plus those of layers that learn and give 0 at first."""

    mean: Tensor
    start: Tensor

    def __init__(self, learned: nn.Sequential, mean: NDArray[np.float64], start: NDArray[np.float64]) -> None:
        """``start (d, n_bits)`` takes features less ``mean``, ``learned`` the features; the last of ``learned`` is set to 0."""
        super().__init__()
        last = learned[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        self.learned = learned
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("start", torch.tensor(start, dtype=torch.float32))

    def forward(self, features: Tensor) -> Tensor:
        """``(b, d)`` to ``(b, n_bits)``."""
        outputs: Tensor = (features - self.mean) @ self.start + self.learned(features)
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
