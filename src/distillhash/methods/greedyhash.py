"""GreedyHash: sign in the forward pass, the identity in the backward pass.

Paper: Su, Zhang, Han, Tian, "Greedy Hash: Towards Fast Optimization for Accurate Hash Coding in CNN", NeurIPS 2018; its unsupervised
variant, of which the released code is the full description.

Symbols: h -> outputs; b = sign(h) -> codes. Loss over pairs (i, i + B/2) of a batch: mean (cos(b_i, b_j) - cos(x_i, x_j))^2
+ penalty * mean | |h| - 1 |^3.

Departs from the paper in:
1. A linear head on standardised features of any backbone, 100 epochs of Adam in batches of 256; released: VGG16 with dropout on, SGD
   1e-4, 60 to 300 epochs, batches of 32, the best epoch on the test queries. Here the last epoch counts.
2. The penalty is off: at these step sizes it dominates, and .1 measures worse on labelled queries from the training side.
3. Augmented views, one drawn for every image and batch, stand in for the dropout that the release keeps on.
4. Cosines are of centred features (``centre=False``: as released). Features after a ReLU have cosines in a narrow positive band, which
   codes can only meet by collapsing.
"""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge

from distillhash.methods.heads import Data, HeadHasher, half_batch_cosines, straight_through_sign, unit_features
from distillhash.methods.training import Batch, Schedule, Targets, row_targets
from distillhash.pytorch import Tensor, functional


class GreedyHash(HeadHasher):
    """Cosines of features kept by codes through a straight-through sign. Further hyper-parameters: see :class:`HeadHasher`.

    Attributes:
        penalty: Weight of the cubic quantisation penalty (released: .1).
        centre: Take the cosines of centred features.
    """

    method = "greedyhash"
    title = "Greedy Hash: Towards Fast Optimization for Accurate Hash Coding in CNN"
    venue, year = "NeurIPS", 2018
    kind = "similarity preserving"
    uses_views = True
    batch_size: Annotated[int, Ge(2)] = 256
    epochs: Annotated[int, Ge(1)] = 100
    schedule: Schedule = "step"
    penalty: Annotated[float, Ge(0)] = 0.0
    centre: bool = True

    def targets(self, data: Data) -> Targets:
        """Directions whose cosines the codes are to keep."""
        return row_targets(unit_features(data.features, centre=self.centre))

    def batch_loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """:func:`greedy_loss` of the pairs of a batch."""
        (unit,) = batch.targets
        return greedy_loss(outputs, half_batch_cosines(unit), self.penalty)


def greedy_loss(outputs: Tensor, cosines: Tensor, penalty: float) -> Tensor:
    """Squared error of half-batch code cosines, and the cubic penalty on what the sign changes."""
    error = functional.mse_loss(half_batch_cosines(straight_through_sign(outputs)), cosines)
    return error + penalty * ((outputs.abs() - 1).abs() ** 3).mean()
