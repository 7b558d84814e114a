"""DeepBit: bits that lose little by quantisation, split the data evenly, and do not change when the image does.

Paper: Lin, Lu, Chen, Zhou, "Learning Compact Binary Descriptors with Unsupervised Deep Neural Networks", CVPR 2016 (TPAMI 2019).
https://doi.org/10.1109/CVPR.2016.133

Symbols: F -> sg(outputs), in (0, 1); b = [F > 1/2] -> bits. Loss per element: (b - F)^2, the quantisation; (mean_n F_nk - 1/2)^2, even
bits; (F(x) - F(view of x))^2, the invariance.

The terms are those of the authors' release, see docs/methods/deepbit.md.

Departs from the paper in:
1. The equations are implemented, element by element with b held fixed. The released layers write one scalar to all elements with opposite
   signs for two inputs that are the same, so their first two terms have no gradient, and only invariance is trained.
2. Even bits use the mean of F: the mean of hard bits has no gradient.
3. Augmented views stand for rotations by -10, -5, 0, 5 and 10 degrees, whose distances are weighted by exp(-j^2 / 2), j = -2..2; without
   views, noise on the features does.
4. A sigmoid and the threshold 1/2 for every bit; released: ReLU units and one threshold for all bits, their mean activation.
5. A head on standardised features; step size and epochs are ours, and all weights 1. Released: VGG16, whose last layer learns the first
   two terms for 50,000 steps and all three for 5,000, with the weights 1, 1 and .001.
"""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge

from distillhash.methods.heads import TwoViewHasher
from distillhash.methods.training import Batch
from distillhash.pytorch import Tensor, torch


class DeepBit(TwoViewHasher):
    """Quantisation, even bits and invariance; no similarity between images is used. Further hyper-parameters: see :class:`TwoViewHasher`.

    Attributes:
        quantisation: Weight of the distance to the bits.
        even: Weight of the even-bits term.
        invariance: Weight of the distance between views.
    """

    method = "deepbit"
    title = "Learning Compact Binary Descriptors with Unsupervised Deep Neural Networks"
    venue, year = "CVPR", 2016
    kind = "regularised"
    epochs: Annotated[int, Ge(1)] = 10
    quantisation: Annotated[float, Ge(0)] = 1.0
    even: Annotated[float, Ge(0)] = 1.0
    invariance: Annotated[float, Ge(0)] = 1.0

    def batch_loss(self, outputs: Tensor, _batch: Batch) -> Tensor:
        """The three weighted terms."""
        first, second = torch.sigmoid(outputs).chunk(2)
        return (
            self.quantisation * (quantisation_loss(first) + quantisation_loss(second)) / 2
            + self.even * (even_loss(first) + even_loss(second)) / 2
            + self.invariance * (first - second).square().mean()
        )


def quantisation_loss(activations: Tensor) -> Tensor:
    """Mean squared distance of ``(b, K)`` activations in (0, 1) from their bits."""
    return (activations - (activations.detach() > 0.5).to(activations.dtype)).square().mean()


def even_loss(activations: Tensor) -> Tensor:
    """Mean over bits of the squared distance of their mean activation from 1/2."""
    return (activations.mean(dim=0) - 0.5).square().mean()
