"""CroVCA: each view's code is the other view's target.

Paper: Moummad, Zaher, Goeau, Joly, "Image Hashing via Cross-View Code Alignment in the Age of Foundation Models", arXiv 2510.27584, 2025.
https://arxiv.org/abs/2510.27584; equations and numbers from the authors' release.

Symbols: l1, l2 -> logits of two views. Alignment: half the sum of the binary cross-entropies of l1 against [l2 > 0] and of l2
against [l1 > 0], targets held fixed. Diversity: minus .1 times the mean coding rate of the row-normalised logits of each view, rate(V) =
1/2 logdet(I + K / (B eps) V^T V) (K + B) / (K B), eps = .05.

The coding rate is largest where all directions of the logits have the same variance. With more bits than there are directions that mean
something, it raises noise: see docs/methods/crovca.md for MAP by code length.

Departs from the paper in:
1. A frozen backbone (the paper's main rows adapt it) and symmetric Hamming distance (the paper's numbers compare sigmoids of the query's
   logits with bits).
2. By default a hidden layer of 512, weights drawn to keep the variance, and 30 epochs. ``preset="paper"`` has the paper's: a hidden layer
   as wide as the features, weights from a normal distribution of deviation .02 cut at +-2, and 5 epochs.
3. Features are standardised by one scale. The step size falls to zero (released: 1e-6), and a last batch that is not full is used.
4. Without views, noise on the features stands in for augmentation (``noise``).
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from annotated_types import Ge, Gt

from distillhash.methods.heads import Data, Head, TwoViewHasher
from distillhash.methods.training import Batch, Optimizer, Schedule
from distillhash.pytorch import Tensor, functional, nn, torch


class CroVCA(TwoViewHasher):
    """Cross-view alignment of codes with a coding-rate term. Further hyper-parameters: see :class:`TwoViewHasher`.

    Attributes:
        diversity: Weight of the coding rate.
        precision: eps of the coding rate.
        deviation: Standard deviation of the weights before training; None makes it fall with the width, so that outputs have variance 1.
    """

    method = "crovca"
    title = "Image Hashing via Cross-View Code Alignment in the Age of Foundation Models"
    venue, year = "arXiv", 2025
    kind = "contrastive"
    batch_norm = True
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {"paper": {"hidden": None, "epochs": 5, "deviation": 0.02}}
    TABLE_NAMES: ClassVar[dict[str, str]] = {"": "crovca, 30 passes", "paper": "crovca"}
    hidden: Annotated[int, Ge(0)] | None = 512
    batch_size: Annotated[int, Ge(2)] = 256
    optimizer: Optimizer = "adamw"
    schedule: Schedule = "cosine"
    weight_decay: Annotated[float, Ge(0)] = 0.01
    diversity: Annotated[float, Ge(0)] = 0.1
    precision: Annotated[float, Gt(0)] = 0.05
    deviation: Annotated[float, Gt(0)] | None = None

    def _head(self, data: Data, n_outputs: int, seed: int) -> Head:
        head = super()._head(data, n_outputs, seed)
        if self.deviation is not None:
            generator = torch.Generator().manual_seed(seed)
            for layer in head:
                if isinstance(layer, nn.Linear):
                    nn.init.trunc_normal_(layer.weight, std=self.deviation, generator=generator)
        return head

    def batch_loss(self, outputs: Tensor, _batch: Batch) -> Tensor:
        """Alignment of the views, less their coding rates."""
        first, second = outputs.chunk(2)
        rates = coding_rate(first, self.precision) + coding_rate(second, self.precision)
        return alignment_loss(first, second) - self.diversity * rates / 2


def alignment_loss(first: Tensor, second: Tensor) -> Tensor:
    """Half the sum of the cross-entropies of each view's logits against the other's bits."""
    forth = functional.binary_cross_entropy_with_logits(first, (second > 0).to(first.dtype))
    back = functional.binary_cross_entropy_with_logits(second, (first > 0).to(first.dtype))
    return (forth + back) / 2


def coding_rate(outputs: Tensor, precision: float) -> Tensor:
    """How much volume the directions of ``(B, K)`` outputs fill."""
    b, k = outputs.shape
    unit = functional.normalize(outputs)
    gram = torch.eye(k, device=outputs.device) + k / (b * precision) * (unit.T @ unit)
    return torch.logdet(gram) * (k + b) / (2 * k * b)
