"""NSH: codes that sort a batch so that the first few are right.

Paper: Yu, Zhang, Zhu, Lang, Shen, Zhang, "Learning to Hash Naturally Sorts", IJCAI 2022. https://arxiv.org/abs/2201.13322

Symbols: b -> tanh codes; z -> latent vectors of length 1; s = (b1 b2^T / K + 1) / 2 -> code similarities of the first view with the second.
Each row of s is sorted by SoftSort, a differentiable permutation; the latent vectors of the second view, gathered by it, make a contrastive
loss in which the first ``positives`` places are positives; plus mean (b - sign b)^2.

Departs from the paper in:
1. Linear heads for code and latent vector on standardised features of any backbone; the released ones sit on ResNet50.
2. 15 epochs of Adam at 1e-3 in batches of 64 (released: 200 at 1e-5, batches of 50); a latent vector of 64 (released: 1,024).
3. Without views, noise on the features stands in for augmentation (``noise``).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import mse_loss, normalize

from distillhash.methods.base import TrainingSet
from distillhash.methods.heads import Head, HeadHasher, check_not_negative, check_positive


@dataclass(eq=False, repr=False)
class NSH(HeadHasher):
    """Differentiable sorting by codes. Further hyper-parameters: see :class:`HeadHasher`.

    Attributes:
        positives: Sorted places that count as positives.
        temperature: Of the contrastive loss.
        sharpness: Temperature of SoftSort in bits: divided by the code length it is the paper's.
        latent: Width of the latent vector.
        quantisation: Weight of the squared distance of codes from their signs.
        noise: Standard deviation of the noise that makes views where there are none, in units of that of the features.
    """

    method = "nsh"
    title = "Learning to Hash Naturally Sorts"
    venue = "IJCAI"
    year = 2022
    kind = "contrastive"
    uses_views = True
    epochs: int = 15
    positives: int = 2
    temperature: float = 0.3
    sharpness: float = 1.0
    latent: int = 64
    quantisation: float = 1.0
    noise: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "positives", "temperature", "sharpness", "latent")
        check_not_negative(self, "quantisation", "noise")

    def _fit(self, given: TrainingSet) -> None:
        data = self._data(given)
        head = self._head(data)
        code = head.build(self.n_bits, self.seed)
        latent = Head(data.features).build(self.latent, self.seed + 1)

        def loss(outputs: tuple[Tensor, Tensor], rows: NDArray[np.intp]) -> Tensor:
            del rows
            codes = torch.tanh(outputs[0])
            first, second = codes.chunk(2)
            places = soft_sort((first @ second.T / self.n_bits + 1) / 2, self.sharpness / self.n_bits)
            views = normalize(outputs[1]).chunk(2)
            contrast = sorted_contrast(places, views[0], views[1], self.positives, self.temperature)
            return contrast + self.quantisation * mse_loss(codes, torch.where(codes >= 0, 1.0, -1.0))

        network = data.network(_Both(code, latent))
        self.history_["loss"] = self._train(network, data, loss, inputs=data.two_views(self.noise))
        self._keep(head, code)


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
    gathered = normalize(places @ second, dim=2)  # (n, m, l)
    logits = (gathered @ first[:, :, None]).squeeze(2) / temperature
    log_shares = logits - logits.logsumexp(dim=1, keepdim=True)
    return -log_shares[:, :positives].mean()
