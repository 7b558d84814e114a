"""CroVCA: each view's code is the other view's target.

Paper: Moummad et al., "Image Hashing via Cross-View Code Alignment in the Age of Foundation Models", arXiv 2510.27584, 2025.

Symbols: l1, l2 -> logits of two views. Alignment: half the sum of the binary cross-entropies of l1 against [l2 > 0] and of l2
against [l1 > 0], targets held fixed. Diversity: minus .1 times the mean coding rate of the row-normalised logits of each view, rate(V) =
1/2 logdet(I + K / (B eps) V^T V) (K + B) / (K B), eps = .05.

Departs from the paper in:
1. RECONSTRUCTED from a description of the method, not from the paper's code: initialisation and the exact form of the rate are as above.
2. A frozen backbone (the paper's main rows adapt it) and symmetric Hamming distance (the paper's are asymmetric).
3. A hidden layer of 512 (paper: as wide as the features); 30 epochs, because 5,000 images are few steps of 256.
4. Without views, noise on the features stands in for augmentation (``noise``).
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge, Gt
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, normalize

from distillhash.methods.heads import TwoViewHasher
from distillhash.methods.training import Batch, Optimizer, Schedule


class CroVCA(TwoViewHasher):
    """Cross-view alignment of codes with a coding-rate term. Further hyper-parameters: see :class:`TwoViewHasher`.

    Attributes:
        diversity: Weight of the coding rate.
        precision: eps of the coding rate.
    """

    method = "crovca"
    title = "Image Hashing via Cross-View Code Alignment in the Age of Foundation Models"
    venue, year = "arXiv", 2025
    kind = "contrastive"
    reconstructed = "initialisation and the exact form of the rate"
    batch_norm = True
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {"paper": {"hidden": None, "epochs": 5}}
    hidden: Annotated[int, Ge(0)] | None = 512
    batch_size: Annotated[int, Ge(2)] = 256
    optimizer: Optimizer = "adamw"
    schedule: Schedule = "cosine"
    weight_decay: Annotated[float, Ge(0)] = 0.01
    diversity: Annotated[float, Ge(0)] = 0.1
    precision: Annotated[float, Gt(0)] = 0.05

    def batch_loss(self, outputs: Tensor, _batch: Batch) -> Tensor:
        """Alignment of the views, less their coding rates."""
        first, second = outputs.chunk(2)
        rates = coding_rate(first, self.precision) + coding_rate(second, self.precision)
        return alignment_loss(first, second) - self.diversity * rates / 2


def alignment_loss(first: Tensor, second: Tensor) -> Tensor:
    """Half the sum of the cross-entropies of each view's logits against the other's bits."""
    forth = binary_cross_entropy_with_logits(first, (second > 0).to(first.dtype))
    back = binary_cross_entropy_with_logits(second, (first > 0).to(first.dtype))
    return (forth + back) / 2


def coding_rate(outputs: Tensor, precision: float) -> Tensor:
    """How much volume the directions of ``(B, K)`` outputs fill."""
    b, k = outputs.shape
    unit = normalize(outputs)
    gram = torch.eye(k, device=outputs.device) + k / (b * precision) * (unit.T @ unit)
    return torch.logdet(gram) * (k + b) / (2 * k * b)
