"""Binarisation with a gradient, and the pair targets that go with it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize


def straight_through_sign(outputs: Tensor) -> Tensor:
    """Signs in {-1, +1}, 0 -> +1; the gradient passes as if they were ``outputs``."""
    signs = torch.where(outputs >= 0, 1.0, -1.0)
    return outputs + (signs - outputs).detach()


def tanh_through_sign(outputs: Tensor) -> Tensor:
    """Signs in {-1, +1}, 0 -> +1; the gradient passes as if they were ``tanh(outputs)``, so bits far from 0 hold still."""
    smooth = torch.tanh(outputs)
    return smooth + (torch.where(outputs >= 0, 1.0, -1.0) - smooth).detach()


def half_batch_cosines(rows: Tensor) -> Tensor:
    """Cosines of each row of the first half of a batch with its partner in the second, ``(b // 2,)``; an odd row is left out."""
    half = len(rows) // 2
    return cosine_similarity(rows[:half], rows[half : 2 * half])


def unit_features(features: NDArray[Any], *, centre: bool) -> Tensor:
    """Rows of length 1, ``(n, d)``, whose products are the cosines that codes are to keep; ``centre`` removes the mean first."""
    values = np.asarray(features, np.float32)
    if centre:
        values = values - values.mean(axis=0)
    return normalize(torch.from_numpy(values))
