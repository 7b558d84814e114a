"""NSH: codes that sort a batch so that the first few are right.

Paper: Yu, Zhang, Zhu, Lang, Shen, Zhang, "Learning to Hash Naturally Sorts", IJCAI 2022. https://arxiv.org/abs/2201.13322

Symbols: b -> tanh codes; z -> latent vectors of length 1; s = (b1 b2^T / K + 1) / 2 -> code similarities of the first view with the second.
Each row of s is sorted by SoftSort, a differentiable permutation; the latent vectors of the second view, gathered by it, make a contrastive
loss in which the first ``positives`` places are positives; plus mean (b - sign b)^2.

Departs from the paper in:
1. Linear heads for code and latent vector on standardised features of any backbone; the released ones sit on ResNet50.
2. 15 epochs of Adam at 1e-3 in batches of 64 (released: 200 at 1e-5, batches of 50); a latent vector of 64 (released: 1,024).
3. Gathered latent vectors have length 1, and a positive has the other positives in its denominator; the port in SDC's release does neither.
4. Without views, noise on the features stands in for augmentation (``noise``).
"""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge, Gt

from distillhash.methods.heads import Data, Head, TwoViewHasher
from distillhash.methods.training import Batch
from distillhash.pytorch import Tensor, functional, nn, torch


class NSH(TwoViewHasher):
    """Differentiable sorting by codes. Further hyper-parameters: see :class:`TwoViewHasher`.

    Attributes:
        positives: Sorted places that count as positives.
        temperature: Of the contrastive loss.
        sharpness: Temperature of SoftSort in bits: divided by the code length it is the paper's.
        latent: Width of the latent vector.
        quantisation: Weight of the squared distance of codes from their signs.
    """

    method = "nsh"
    title = "Learning to Hash Naturally Sorts"
    venue, year = "IJCAI", 2022
    kind = "contrastive"
    epochs: Annotated[int, Ge(1)] = 15
    positives: Annotated[int, Ge(1)] = 2
    temperature: Annotated[float, Gt(0)] = 0.3
    sharpness: Annotated[float, Gt(0)] = 1.0
    latent: Annotated[int, Ge(1)] = 64
    quantisation: Annotated[float, Ge(0)] = 1.0

    def network(self, head: Head, data: Data) -> nn.Module:
        """The head, and one for latent vectors."""
        return _Both(head, Head(data.features, self.latent, self.seed + 1))

    def batch_loss(self, outputs: tuple[Tensor, Tensor], _batch: Batch) -> Tensor:
        """Contrast of the sorted latent vectors, and quantisation of the codes."""
        codes = torch.tanh(outputs[0])
        first, second = codes.chunk(2)
        places = soft_sort((first @ second.T / self.n_bits + 1) / 2, self.sharpness / self.n_bits)
        views = functional.normalize(outputs[1]).chunk(2)
        contrast = sorted_contrast(places, views[0], views[1], self.positives, self.temperature)
        return contrast + self.quantisation * functional.mse_loss(codes, torch.where(codes >= 0, 1.0, -1.0))


class _Both(nn.Module):
    def __init__(self, code: nn.Module, latent: nn.Module) -> None:
        super().__init__()
        self.code, self.latent = code, latent

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        return self.code(inputs), self.latent(inputs)


def soft_sort(scores: Tensor, temperature: float) -> Tensor:
    """SoftSort (Prillo and Eisenschlos 2020) of every row of ``(n, m)``: ``(n, m, m)``; row r of a matrix is soft place r, falling."""
    ordered = scores.sort(dim=1, descending=True).values
    return torch.softmax(-(ordered[:, :, None] - scores[:, None, :]).abs() / temperature, dim=2)


def sorted_contrast(places: Tensor, first: Tensor, second: Tensor, positives: int, temperature: float) -> Tensor:
    """Cross-entropy of finding the first sorted places: ``places (n, m, m)``, latent vectors ``first (n, l)`` and ``second (m, l)``."""
    gathered = functional.normalize(places @ second, dim=2)  # (n, m, l)
    logits = (gathered @ first[:, :, None]).squeeze(2) / temperature
    log_shares = logits - logits.logsumexp(dim=1, keepdim=True)
    return -log_shares[:, :positives].mean()
