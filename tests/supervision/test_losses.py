import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from distillhash.errors import DataError
from distillhash.supervision.losses import likelihood_loss, pair_loss, squared_loss
from distillhash.supervision.similarity import confusion, describe_pairs, judge_pairs, probability_histogram


def random_pairs(n: int, seed: int = 0) -> NDArray[Any]:
    half = np.triu(np.random.default_rng(seed).integers(-1, 2, (n, n)), 1)
    return (half + half.T).astype(np.int8)


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("n", [2, 7, 33, 600])
def test_diagnosis_equals_a_loop(n: int, multi_label: bool) -> None:
    rng = np.random.default_rng(n)
    pairs = random_pairs(n)
    labels = (rng.random((n, 3)) < 0.4).astype(int) if multi_label else rng.integers(0, 3, n)
    counts = {"+": 0, "-": 0, "+right": 0, "-right": 0, "similar": 0}
    for i in range(n):
        for j in range(n):
            if i == j:
                continue
            similar = bool((labels[i] & labels[j]).any()) if multi_label else labels[i] == labels[j]
            counts["similar"] += similar
            counts["+"] += pairs[i, j] > 0
            counts["-"] += pairs[i, j] < 0
            counts["+right"] += pairs[i, j] > 0 and similar
            counts["-right"] += pairs[i, j] < 0 and not similar
    total = n * (n - 1)
    facts, verdict = describe_pairs(pairs), judge_pairs(pairs, labels)
    assert facts["coverage_positive"] == pytest.approx(counts["+"] / total)
    assert facts["coverage_negative"] == pytest.approx(counts["-"] / total)
    assert facts["without_positive"] == pytest.approx(np.mean([not (row > 0).any() for row in pairs]))
    assert verdict["precision_positive"] == pytest.approx(counts["+right"] / max(counts["+"], 1))
    assert verdict["precision_negative"] == pytest.approx(counts["-right"] / max(counts["-"], 1))
    if counts["similar"]:
        prevalence = counts["similar"] / total
        assert verdict["lift_positive"] == pytest.approx(verdict["precision_positive"] / prevalence)


def test_histogram_and_confusion_count_every_off_diagonal_pair() -> None:
    logits = np.array([[9, 0.1, -30], [0.1, 9, 3], [-30, 3, 9]], np.float32)
    counts = probability_histogram(logits)
    assert sum(counts) == 6
    assert counts[0] == 2  # sg(-30)
    assert counts[10] == 2  # sg(.1) = .525
    assert counts[19] == 2  # sg(3) = .953
    before, after = random_pairs(20, 1), random_pairs(20, 2)
    table = confusion(before, after)
    assert sum(sum(row.values()) for row in table.values()) == 380
    assert table["+1"]["-1"] == sum(before[i, j] == 1 and after[i, j] == -1 for i in range(20) for j in range(20))


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
    found = pair_loss(codes, torch.from_numpy(pairs), kind="likelihood", scale=scale)
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


def test_judging_needs_matching_labels() -> None:
    with pytest.raises(DataError, match="2 labels for 3 items"):
        judge_pairs(random_pairs(3), np.zeros(2, int))
