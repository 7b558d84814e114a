"""DMUH: momentum uncertainty says which bits and images to attend to. Supervised.

Paper: Fu, Wang, Wu, Zhang, He, "Deep Momentum Uncertainty Hashing", Pattern Recognition 2022. https://arxiv.org/abs/2009.08012

Symbols: u -> outputs; v -> outputs of the momentum network, whose weights follow theta' <- mu theta' + (1 - mu) theta; U_ik = |u_ik
- v_ik| -> bit uncertainty; U_i -> its mean over bits, image uncertainty. Loss: mean over pairs of a_ij (softplus(T_ij) - S_ij
T_ij), T = scale <u_i, u_j> / K, S_ij = 1 for images that share a label, plus quantisation times the mean of g_ik (u_ik - sign
u_ik)^2. g and a grow with the uncertainties and have mean 1.

RECONSTRUCTED: of the paper only the abstract was found. U rests on "we model bit-level uncertainty via measuring the discrepancy between
the output of a hashing network and that of a momentum-updated network" and "the mean discrepancy of all bits in a hashing code can be
regarded as image-level uncertainty", a and g on "the hashing bit and image with higher uncertainty are paid more attention during
optimization". The forms of a and g and all numbers are our interpretation.

Departs from the paper in:
1. A head on standardised features; the paper trains a network end to end.
2. mu is .95: training takes some hundred steps, and a slower momentum network would measure progress instead of uncertainty.
3. T is <u_i, u_j> / 2 in the papers of this family, whose logits grow with K until a few bits decide every pair: at 128 bits the codes
   are worse than at 32. The default has the same range of logits at every length; ``scale = K / 2`` is theirs.
4. Uncertainties count relative to their mean, because outputs are unbounded; no gradient flows into them.
5. More than ``max_train`` rows are sampled down, because S is n x n.
"""

from __future__ import annotations

import copy
from typing import Annotated

import numpy as np
from annotated_types import Ge, Gt, Interval
from numpy.typing import NDArray

from distillhash.errors import DataError
from distillhash.methods.heads import Data, Head, HeadHasher
from distillhash.methods.training import Batch, Targets, pair_targets
from distillhash.pytorch import Tensor, functional, nn, torch


class DMUH(HeadHasher):
    """Labelled pairs, weighted by momentum uncertainty. Further hyper-parameters: see :class:`HeadHasher`.

    Attributes:
        momentum: mu of the momentum network.
        attention: How much the uncertain count: weights are 1 + attention * uncertainty / mean uncertainty, scaled to mean 1; 0 for none.
        scale: The logit of a pair whose outputs are the same signs.
        quantisation: Weight of the distance from the signs.
    """

    method = "dmuh"
    title = "Deep Momentum Uncertainty Hashing"
    venue, year = "Pattern Recognition", 2022
    kind = "supervised"
    reconstructed = "forms of the weights and all numbers"
    needs_labels = True
    momentum: Annotated[float, Interval(ge=0, lt=1)] = 0.95
    attention: Annotated[float, Ge(0)] = 1.0
    scale: Annotated[float, Gt(0)] = 4.0
    quantisation: Annotated[float, Ge(0)] = 0.1
    takes_many = False
    max_train: Annotated[int, Ge(2)] = 10_000

    def targets(self, data: Data) -> Targets:
        """Which images share a label."""
        assert data.labels is not None  # needs_labels
        same = shared_labels(data.labels)
        if same.all() or not (same & ~np.eye(len(same), dtype=bool)).any():
            raise DataError(
                "dmuh needs images that share a label and images that do not; the labels given have only one kind of pair"
            )
        return pair_targets(same)

    def network(self, head: Head, _data: Data) -> nn.Module:
        """The head and its momentum copy."""
        return _WithMomentum(head, copy.deepcopy(head), self.momentum)

    def above(self, trunk: nn.Module, network: nn.Module) -> nn.Module:
        """The momentum network has its own trunk, which follows as well."""
        assert isinstance(network, _WithMomentum)
        online, follower = nn.Sequential(trunk, network.online), nn.Sequential(copy.deepcopy(trunk), network.follower)
        return _WithMomentum(online, follower, self.momentum)

    def batch_loss(self, outputs: tuple[Tensor, Tensor], batch: Batch) -> Tensor:
        """The weighted loss of the head's outputs."""
        u, v = outputs
        (same,) = batch.targets
        by_bit, by_image = attention_weights(u.detach(), v, self.attention)
        return uncertain_loss(u, same.to(u), by_bit, by_image, self.scale, self.quantisation)


class _WithMomentum(nn.Module):
    """A network and its momentum copy, which follows it a step behind and takes no gradient."""

    def __init__(self, online: nn.Module, follower: nn.Module, momentum: float) -> None:
        super().__init__()
        self.online, self.momentum = online, momentum
        self.follower = follower.requires_grad_(False)

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            for slow, fast in zip(self.follower.parameters(), self.online.parameters(), strict=True):
                slow.lerp_(fast, 1 - self.momentum)
            followed = self.follower(inputs)
        return self.online(inputs), followed


def shared_labels(labels: NDArray[np.generic]) -> NDArray[np.bool_]:
    """Who shares a label with whom ``(n, n)``, from classes ``(n,)`` or indicators ``(n, n_labels)``."""
    if labels.ndim == 1:
        return np.asarray(np.equal.outer(labels, labels))
    indicators = labels.astype(np.float32)
    return np.asarray(indicators @ indicators.T > 0)


def attention_weights(u: Tensor, v: Tensor, attention: float) -> tuple[Tensor, Tensor]:
    """Weights with mean 1 of every bit ``(b, K)`` and every pair of images ``(b, b)``."""
    uncertainty = (u - v).abs()
    mean = uncertainty.mean().clamp(min=1e-12)
    by_bit = 1 + attention * uncertainty / mean
    image = uncertainty.mean(dim=1)
    by_image = 1 + attention * (image[:, None] + image[None, :]) / (2 * mean)
    return by_bit / by_bit.mean(), by_image / by_image.mean()


def uncertain_loss(
    u: Tensor, pairs: Tensor, by_bit: Tensor, by_image: Tensor, scale: float, quantisation: float
) -> Tensor:
    """Weighted negative log-likelihood of all pairs of different images in a batch, and the weighted quantisation error."""
    logits = scale / u.shape[1] * (u @ u.T)
    others = 1 - torch.eye(len(u), device=u.device)
    likelihood = (by_image * (functional.softplus(logits) - pairs * logits) * others).sum() / others.sum()
    signs = torch.where(u >= 0, 1.0, -1.0)
    return likelihood + quantisation * (by_bit * (u - signs).square()).mean()
