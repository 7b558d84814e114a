"""Bi-half: every bit splits every batch into two equal halves.

Paper: Li, van Gemert, "Deep Unsupervised Image Hashing by Maximizing Bit Entropy", AAAI 2021. https://arxiv.org/abs/2012.12334

Symbols: u -> outputs; b -> balanced codes; gamma -> pull. Forward: per bit, the upper half of the batch becomes +1, the rest -1, which
is the optimal transport of u to the balanced two-point distribution. Backward: dL/du = dL/db + gamma (u - b) / (number of elements).
Loss over pairs (i, i + B/2): mean (cos(b_i, b_j) - cos(x_i, x_j))^2. Codes at test time: sign(u).

Departs from the paper in:
1. A linear head on standardised features of any backbone, 100 epochs of Adam in batches of 256; released: VGG16 with dropout on, SGD 1e-4,
   60 to 300 epochs, batches of 32. ``preset="paper"`` has those, with 300 epochs and a step of 1e-3: on standardised features 1e-4 hardly
   turns a bit.
2. Cosines are of centred features (``centre=False``: as released); see :mod:`distillhash.methods.greedyhash`.
3. Augmented views, one drawn for every image and batch, stand in for the dropout that the release keeps on. Training does not settle
   without random inputs; where there are no views, lower learning_rate.
4. sign(u) splits at 0 but batches are split at their median; the median of the training outputs moves into the bias, so that the codes
   of the training set are balanced too (``recentre=False``: as released).
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import numpy as np
from annotated_types import Ge

from distillhash.methods.heads import Data, HeadHasher, half_batch_cosines, unit_features
from distillhash.methods.training import Batch, Schedule, Targets, row_targets
from distillhash.pytorch import Tensor, functional, nn, torch


class BiHalf(HeadHasher):
    """Balanced bits that keep the cosines of features. Further hyper-parameters: see :class:`HeadHasher`.

    Attributes:
        pull: Weight gamma of the pull of outputs towards their bits (released: 6; the text: 3).
        centre: Take the cosines of centred features.
        recentre: Put the threshold of every bit at the median of the training outputs.
    """

    method = "bihalf"
    title = "Deep Unsupervised Image Hashing by Maximizing Bit Entropy"
    venue, year = "AAAI", 2021
    kind = "similarity preserving"
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {"optimizer": "sgd", "learning_rate": 1e-3, "batch_size": 32, "epochs": 300, "weight_decay": 5e-4}
    }
    TABLE_NAMES: ClassVar[dict[str, str]] = {"": "bihalf, 100 passes of Adam", "paper": "bihalf"}
    uses_views = True
    batch_size: Annotated[int, Ge(2)] = 256
    epochs: Annotated[int, Ge(1)] = 100
    schedule: Schedule = "step"
    pull: Annotated[float, Ge(0)] = 6.0
    centre: bool = True
    recentre: bool = True

    def targets(self, data: Data) -> Targets:
        """Directions whose cosines the codes are to keep."""
        return row_targets(unit_features(data.features, centre=self.centre))

    def batch_loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Squared error of the cosines of balanced codes."""
        (unit,) = batch.targets
        return functional.mse_loss(half_batch_cosines(bi_half(outputs, self.pull)), half_batch_cosines(unit))

    def finish(self, data: Data, network: nn.Module) -> None:
        """Move the median of the training outputs into the bias."""
        if self.recentre:
            weight, bias = self.layers_[-1]
            self.layers_[-1] = weight, bias - np.median(data.outputs(network), axis=0)


def bi_half(outputs: Tensor, pull: float) -> Tensor:
    """Balanced signs of a batch ``(b, K)``, the larger half +1 (of an odd batch the smaller share), with the paper's gradient."""
    codes: Tensor = _BiHalf.apply(outputs, pull)  # type: ignore[no-untyped-call]  # torch's apply has no types
    return codes


class _BiHalf(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, outputs: Tensor, pull: float) -> Tensor:
        ranks = outputs.argsort(dim=0, descending=True, stable=True).argsort(dim=0)
        codes = torch.where(ranks < len(outputs) // 2, 1.0, -1.0)
        ctx.save_for_backward(outputs, codes)
        ctx.pull = pull
        return codes

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        outputs, codes = ctx.saved_tensors
        return gradients[0] + ctx.pull * (outputs - codes) / outputs.numel(), None
