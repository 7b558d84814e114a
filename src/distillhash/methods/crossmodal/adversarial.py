"""The terms of UGACH's game as plain functions: distances, the hinge, rewards, sampling, and the policy gradient."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import softplus

Reward = Literal["sigmoid", "softplus"]
Baseline = Literal["mean", "none"]


def squared_distances(queries: Tensor, candidates: Tensor) -> Tensor:
    """``q(a, b) = ||a - b||^2`` of every row of ``(b, K)`` with every row of ``(p, K)``: ``(b, p)``, never below 0."""
    squares = (queries**2).sum(dim=1)[:, None] + (candidates**2).sum(dim=1)
    return (squares - 2 * queries @ candidates.T).clamp(min=0)


def triplet_hinge(query: Tensor, positive: Tensor, negative: Tensor, margin: float) -> Tensor:
    """``max(0, m + q(query, positive) - q(query, negative))`` row by row, ``(b,)``: 0 where the positive is m nearer."""
    near, far = ((query - positive) ** 2).sum(dim=-1), ((query - negative) ** 2).sum(dim=-1)
    return torch.relu(margin + near - far)


def reward(losses: Tensor, kind: Reward) -> Tensor:
    """What a generated negative earns for the discriminator's hinge on it: ``sg(l)`` (release) or ``log(1 + exp(l))`` (paper)."""
    return torch.sigmoid(losses) if kind == "sigmoid" else softplus(losses)


def sample_candidates(
    scores: NDArray[np.float64], excluded: NDArray[np.bool_], k: int, rng: np.random.Generator
) -> NDArray[np.intp]:
    """``k`` candidates for each query with the probabilities ``softmax(scores)``, drawn with replacement.

    Args:
        scores: ``(b, p)``.
        excluded: ``(b, p)``, candidates that must not be drawn; a query that has no other draws among all.
        k: Draws a query.
        rng: Draws.

    Returns:
        ``(b, k)`` columns.
    """
    allowed = ~excluded | excluded.all(axis=1, keepdims=True)
    masked = np.where(allowed, scores, -np.inf)
    weights = np.exp(masked - masked.max(axis=1, keepdims=True))
    cumulative = np.cumsum(weights, axis=1)
    drawn = rng.random((len(scores), k)) * cumulative[:, -1:]
    columns = (cumulative[:, None, :] <= drawn[:, :, None]).sum(axis=2)
    return np.asarray(np.minimum(columns, scores.shape[1] - 1))


def policy_loss(log_probabilities: Tensor, rewards: Tensor, baseline: Baseline) -> Tensor:
    """REINFORCE: ``-mean(log p(sample) (reward - b))``, whose gradient is that of the expected reward, negated.

    Args:
        log_probabilities: ``(b, k)`` of the samples of each query under the generator.
        rewards: ``(b, k)``; no gradient passes through them.
        baseline: ``mean`` subtracts the batch's mean reward (a variant: every reward is positive, so that without it every sample is
            pushed up); ``none`` is the release.
    """
    rewards = rewards.detach()
    if baseline == "mean":
        rewards = rewards - rewards.mean()
    return -(log_probabilities * rewards).mean()
