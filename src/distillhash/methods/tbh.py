"""TBH: an auto-encoder with two bottlenecks, binary codes that make a graph, and continuous ones that are passed along it.

Paper: Shen, Qin, Chen, Yu, Liu, Zhu, Shen, Shao, "Auto-Encoding Twin-Bottleneck Hashing", CVPR 2020. https://arxiv.org/abs/2002.11930

Symbols: b in {0, 1}^K -> binary bottleneck; z -> continuous bottleneck; A = (1 - d_H / K)^1.4 -> code graph of the batch; a graph
convolution sg(D^-1/2 A D^-1/2 z W) feeds the decoder. Loss: squared reconstruction error, plus two critics that tell b from fair coins
and the convolved z from uniform draws, which the encoder tries to fool. The gradient through the threshold of sg(.) at 1/2 is that of
sg(.).

Departs from the paper in:
1. Encoder and decoder have a hidden layer of 512 (paper: 1,024) and the continuous bottleneck 256 (512); features are standardised, so
   the decoder ends in a linear layer where the paper's, on features after a ReLU, ends in a ReLU.
2. Critics and encoder are trained in one step through a gradient reversal layer; the paper alternates them.
3. 30 epochs of Adam at 1e-3 in batches of 256; released: 100,000 steps of 400 at 1e-4.
4. ``adversarial`` weighs the critics: the paper adds their terms to squares summed over some thousand features, of which the mean is
   taken here. On cached features critics of one layer drive all images to the same bits from a weight of 1e-3 on.
"""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge, Gt

from distillhash.methods.heads import Data, Head, HeadHasher, Standardise, linear
from distillhash.methods.training import Batch, Targets, row_targets
from distillhash.pytorch import Tensor, functional, nn, torch


class TBH(HeadHasher):
    """Twin bottlenecks. Further hyper-parameters: see :class:`HeadHasher`.

    Attributes:
        latent: Width of the continuous bottleneck.
        exponent: Of the code similarities in the graph.
        adversarial: Weight of the critics.
    """

    method = "tbh"
    title = "Auto-Encoding Twin-Bottleneck Hashing"
    venue, year = "CVPR", 2020
    kind = "generative"
    hidden: Annotated[int, Ge(1)] = 512
    batch_size: Annotated[int, Ge(2)] = 256
    latent: Annotated[int, Ge(1)] = 256
    exponent: Annotated[float, Gt(0)] = 1.4
    adversarial: Annotated[float, Ge(0)] = 1e-5

    def targets(self, data: Data) -> Targets:
        """The standardised features."""
        return row_targets(Standardise(data.features)(torch.from_numpy(data.features)))

    def network(self, head: Head, data: Data) -> nn.Module:
        """The head as the encoder of an auto-encoder."""
        *below, binary = head
        generator = torch.Generator().manual_seed(self.seed + 1)
        width = data.features.shape[1]
        return TwinBottleneck(nn.Sequential(*below), binary, self.latent, width, self.exponent, generator)

    def batch_loss(self, outputs: tuple[Tensor, Tensor], batch: Batch) -> Tensor:
        """Reconstruction error and critics."""
        rebuilt, critics = outputs
        return functional.mse_loss(rebuilt, batch.targets[0]) + self.adversarial * critics


class TwinBottleneck(nn.Module):
    """Encoder, both bottlenecks, graph convolution, decoder and critics."""

    def __init__(
        self, trunk: nn.Module, binary: nn.Module, latent: int, width: int, exponent: float, generator: torch.Generator
    ) -> None:
        super().__init__()
        n_bits, hidden = int(binary.out_features), int(binary.in_features)  # type: ignore[arg-type]  # a linear layer's
        self.trunk, self.binary, self.exponent, self.generator = trunk, binary, exponent, generator
        self.continuous = linear(hidden, latent, generator)
        self.convolution = linear(latent, latent, generator)
        self.decoder = nn.Sequential(
            linear(latent, hidden, generator, gain=2.0), nn.ReLU(), linear(hidden, width, generator)
        )
        self.bit_critic, self.latent_critic = linear(n_bits, 1, generator), linear(latent, 1, generator)

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """The reconstruction ``(b, d)``, and the loss of the critics."""
        bits, convolved, _ = self.bottlenecks(inputs)
        coins = (torch.rand(bits.shape, generator=self.generator) < 0.5).to(bits)
        uniform = torch.rand(convolved.shape, generator=self.generator).to(bits)
        critics = self.critic_loss(coins, bits, self.bit_critic)
        critics = critics + self.critic_loss(uniform, convolved, self.latent_critic)
        return self.decoder(convolved), critics

    def bottlenecks(self, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Bits in {0, 1}, the convolved latent vectors, and the graph."""
        hidden = self.trunk(inputs)
        shares = torch.sigmoid(self.binary(hidden))
        bits = shares + ((shares >= 0.5).to(shares) - shares).detach()
        graph = code_graph(bits, self.exponent)
        return bits, torch.sigmoid(graph @ self.convolution(torch.sigmoid(self.continuous(hidden)))), graph

    @staticmethod
    def critic_loss(wanted: Tensor, found: Tensor, critic: nn.Module) -> Tensor:
        """How badly ``critic`` tells ``wanted`` from ``found``; its gradient on ``found`` is reversed, so the encoder makes it worse."""
        reversed_found = 2 * found.detach() - found  # the same value with the gradient negated
        real, fake = critic(wanted), critic(reversed_found)
        loss = functional.binary_cross_entropy_with_logits(real, torch.ones_like(real))
        return (loss + functional.binary_cross_entropy_with_logits(fake, torch.zeros_like(fake))) / 2


def code_graph(bits: Tensor, exponent: float) -> Tensor:
    """D^-1/2 A D^-1/2 with A_ij = (1 - d_H(b_i, b_j) / K)^exponent, from bits ``(b, K)`` in {0, 1}; differentiable in the bits."""
    agreeing = bits @ bits.T + (1 - bits) @ (1 - bits).T
    # The floor keeps the gradient of the power finite where codes are opposite.
    affinity = (agreeing / bits.shape[1]).clamp(min=1e-6) ** exponent
    scale = affinity.sum(dim=1).rsqrt()
    return scale[:, None] * affinity * scale[None, :]
