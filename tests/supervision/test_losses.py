import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from distillhash.supervision.losses import likelihood_loss, squared_loss


def random_pairs(n: int, seed: int = 0) -> NDArray[Any]:
    half = np.triu(np.random.default_rng(seed).integers(-1, 2, (n, n)), 1)
    return (half + half.T).astype(np.int8)


@pytest.mark.parametrize("scale", [0.5, 1.0])
def test_likelihood_equals_a_plain_loop(scale: float) -> None:
    codes = torch.tanh(torch.randn(7, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    pairs = random_pairs(7)
    total, labelled = 0.0, 0
    for i in range(7):
        for j in range(7):
            if pairs[i, j]:
                p = 1 / (1 + math.exp(-scale * float(codes[i] @ codes[j])))
                total += -math.log(p if pairs[i, j] > 0 else 1 - p)
                labelled += 1
    found = likelihood_loss(codes, torch.from_numpy(pairs), scale=scale)
    assert float(found) == pytest.approx(total / labelled, rel=1e-12)


def test_squared_equals_a_plain_loop() -> None:
    codes = torch.tanh(torch.randn(7, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    pairs = random_pairs(7)
    total = sum((float(codes[i] @ codes[j]) / 12 - pairs[i, j]) ** 2 for i in range(7) for j in range(7) if pairs[i, j])
    assert float(squared_loss(codes, torch.from_numpy(pairs).double())) == pytest.approx(total / 49, rel=1e-12)


def test_a_batch_without_labelled_pairs_has_no_loss_and_no_gradient() -> None:
    codes = torch.randn(4, 3, requires_grad=True)
    loss = likelihood_loss(codes, torch.zeros(4, 4), scale=1.0)
    torch.autograd.backward(loss)
    assert float(loss.detach()) == 0 and codes.grad is not None and not codes.grad.any()


def test_pairs_of_the_first_rows_with_the_last() -> None:
    rng = np.random.default_rng(0)
    codes, pairs = rng.standard_normal((7, 5)), np.array([[1, 0, -1, 1, 0], [0, -1, 1, 0, 0]])
    found = likelihood_loss(torch.from_numpy(codes), torch.from_numpy(pairs), scale=0.5)
    squared = squared_loss(torch.from_numpy(codes), torch.from_numpy(pairs))
    losses, errors = [], 0.0
    for i, j in zip(*np.nonzero(pairs), strict=True):
        product = float(codes[i] @ codes[2 + j])
        losses.append(np.log1p(np.exp(-pairs[i, j] * product / 2)))
        errors += (product / 5 - pairs[i, j]) ** 2
    assert float(found) == pytest.approx(np.mean(losses))
    assert float(squared) == pytest.approx(errors / 10)
