"""SGH: stochastic generative hashing, the shortest description of the features by bits.

Paper: Dai, Guo, Kumar, He, Song, "Stochastic Generative Hashing", ICML 2017. https://arxiv.org/abs/1701.02815

Symbols: z = W^T x + c -> outputs; h in {0, 1}^K, P(h_k = 1) = sg(z_k) -> bits; U -> decoder (K, d); theta -> prior; rho -> noise.
Minimises E_q[||x - U^T h||^2 / (2 rho^2) + d log rho - log p(h) + log q(h | x)], the negative evidence bound. Codes: h_k = [z_k > 0],
the mode of q.

The gradient through bits is the paper's distributional derivative, unbiased: dE/dz_k = E[(H(h, h_k = 1) - H(h, h_k = 0)) sg'(z_k)].
With a linear Gaussian decoder the difference has a closed form, so it costs no extra evaluation. The entropy of q is differentiated
exactly.

Departs from the paper in:
1. Features are standardised first (mean and one scale); the release scales its output per dimension instead.
2. Without a hidden layer and with a frozen backbone, W starts from the principal components turned by a random rotation, and U from
   the regression of the features on those bits: from a random start bits die that the reconstruction never comes to use.
3. Adam at 1e-3 for 30 epochs in batches of 256; released: 1e-2, 5,000 steps of 500, no prior, and the hard threshold instead of a draw.
"""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple

import numpy as np
from annotated_types import Ge

from distillhash.methods.heads import Data, Head, HeadHasher, Standardise
from distillhash.methods.linear_algebra import principal_components
from distillhash.methods.training import Batch, Targets
from distillhash.pytorch import Tensor, functional, nn, torch
from distillhash.supervision.similarity import Floats

Gradient = Literal["distributional", "straight-through"]


class SGH(HeadHasher):
    """A linear encoder and decoder with binary latent variables. Further hyper-parameters: see :class:`HeadHasher`.

    Attributes:
        gradient: ``distributional`` (unbiased) or ``straight-through`` (the cheap biased form of the paper).
    """

    method = "sgh"
    title = "Stochastic Generative Hashing"
    venue, year = "ICML", 2017
    kind = "generative"
    batch_size: Annotated[int, Ge(2)] = 256
    gradient: Gradient = "distributional"

    def targets(self, data: Data) -> Targets:
        """The standardised features, and the draws that decide the bits."""
        x = Standardise(data.features)(torch.from_numpy(data.features))
        generator = torch.Generator().manual_seed(self.seed)
        return lambda rows: (x[rows], torch.rand((len(rows), self.n_bits), generator=generator))

    def network(self, head: Head, data: Data) -> nn.Module:
        """The head as the encoder of a generative model."""
        features = torch.from_numpy(data.features)
        if self.hidden == 0 and data.trunk is None:
            start_from_components(head, data.features, self.seed)
        generative = Generative(head, self.n_bits, features.shape[1])
        with torch.no_grad():
            x = head[0](features)
            generative.regress((head(features) >= 0).to(x), x)
        return generative

    def batch_loss(self, outputs: Description, batch: Batch) -> Tensor:
        """The description length."""
        x, uniform = batch.targets
        return description_length(outputs, x, uniform, self.gradient)


class Description(NamedTuple):
    """Logits of the bits ``z (b, K)``, and what describes features by bits: decoder ``(K, d)``, shift ``(d,)``, prior ``(K,)``, log rho."""

    z: Tensor
    decoder: Tensor
    shift: Tensor
    prior: Tensor
    log_rho: Tensor


class Generative(nn.Module):
    """Encoder, linear decoder, prior and noise."""

    def __init__(self, encoder: nn.Module, n_bits: int, n_features: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = nn.Parameter(torch.zeros(n_bits, n_features))
        self.shift = nn.Parameter(torch.zeros(n_features))
        self.prior = nn.Parameter(torch.zeros(n_bits))
        self.log_rho = nn.Parameter(torch.zeros(()))

    def forward(self, inputs: Tensor) -> Description:
        """Everything that the description length depends on."""
        return Description(self.encoder(inputs), self.decoder, self.shift, self.prior, self.log_rho)

    def regress(self, bits: Tensor, x: Tensor) -> None:
        """Least squares of ``x (n, d)`` on ``bits (n, K)`` as the decoder's start, and its error as the noise."""
        design = torch.cat([bits, torch.ones(len(bits), 1)], dim=1).double()
        ridge = 1e-3 * len(bits) * torch.eye(design.shape[1], dtype=torch.float64)
        solution = torch.linalg.solve(design.T @ design + ridge, design.T @ x.double())
        self.decoder.copy_(solution[:-1])
        self.shift.copy_(solution[-1])
        self.log_rho.copy_((design @ solution - x).square().mean().clamp(min=1e-8).sqrt().log())


def description_length(model: Description, x: Tensor, uniform: Tensor, gradient: Gradient) -> Tensor:
    """Mean over rows of the negative bound per feature, for bits [sg(z) > uniform]; its gradient estimates that of the expectation."""
    z = model.z
    p = torch.sigmoid(z)
    bits = (p > uniform).to(x)
    if gradient == "straight-through":
        bits = p + (bits - p).detach()
    residual = x - model.shift - bits @ model.decoder  # (b, d)
    precision = torch.exp(-2 * model.log_rho)
    cost = residual.square().sum(dim=1) * precision / 2 + x.shape[1] * model.log_rho
    cost = cost - (bits * functional.logsigmoid(model.prior) + (1 - bits) * functional.logsigmoid(-model.prior)).sum(
        dim=1
    )
    cost = cost + (p * functional.logsigmoid(z) + (1 - p) * functional.logsigmoid(-z)).sum(dim=1)  # E_q log q, exactly
    if gradient == "distributional":
        # Adds nothing to the value: its gradient with respect to z is difference * sg'(z).
        difference = bit_differences(model, residual.detach(), bits, precision).detach()
        cost = cost + ((p - p.detach()) * difference).sum(dim=1)
    return cost.mean() / x.shape[1]


def bit_differences(model: Description, residual: Tensor, bits: Tensor, precision: Tensor) -> Tensor:
    """``(b, K)``: reconstruction and prior cost with bit k set minus with it cleared, the other bits as they are."""
    squares = model.decoder.square().sum(dim=1)
    without = residual @ model.decoder.T + bits * squares  # u_k . (residual with bit k cleared)
    return (squares - 2 * without) * precision / 2 - model.prior


def start_from_components(head: Head, features: Floats, seed: int) -> None:
    """Set the linear layer to the principal components, rotated at random, with outputs of variance 1."""
    layer = head[-1]
    assert isinstance(layer, nn.Linear)
    k = layer.out_features
    _, components = principal_components(features, k)
    rotation, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((k, k)))
    outputs = (features - head.mean) / head.scale @ components @ rotation
    scale = np.where(outputs.std(axis=0) > 0, outputs.std(axis=0), 1)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy((components @ rotation / scale).T))
