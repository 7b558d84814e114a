"""CIBHash: contrastive learning on binary codes, regularised by an information bottleneck.

Paper: Qiu, Su, Ou, Yu, Chen, "Unsupervised Hashing with Contrastive Information Bottleneck", IJCAI 2021. https://arxiv.org/abs/2105.06138

Symbols: p = sg(outputs) -> bit probabilities; b -> codes; tau -> temperature; beta -> bottleneck. Loss: NT-Xent over the codes of two views
of every image, plus beta times the mean of KL(p_i || p_j) and KL(p_j || p_i), the second argument held fixed, summed over bits.

Departs from the paper in:
1. A hidden layer of 512 (paper: 1,024) on standardised features of any backbone; views are embedded once, six a picture by default,
   instead of anew in every epoch. 30 epochs instead of 60 to 80, and the last one instead of the best on half of the test queries.
2. Bits are drawn as in the paper; ``sampling="threshold"`` cuts the probabilities at 1/2 as released. tau is .5 (paper: .3): it measures
   better on labelled queries from the training side.
3. Without views, noise on the features stands in for augmentation (``noise``).
"""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import Ge, Gt

from distillhash.methods.heads import Data, TwoViewHasher, straight_through_sign
from distillhash.methods.training import Batch, Rows, Targets
from distillhash.pytorch import Tensor, functional, torch
from distillhash.supervision.losses import nt_xent


class CIBHash(TwoViewHasher):
    """Two-view contrastive codes. Further hyper-parameters: see :class:`TwoViewHasher`.

    Attributes:
        temperature: tau of the contrastive loss.
        bottleneck: Weight beta of the divergence between the views' bit probabilities.
        sampling: ``threshold`` the probabilities at 1/2 or draw ``bernoulli`` bits in training.
    """

    method = "cibhash"
    title = "Unsupervised Hashing with Contrastive Information Bottleneck"
    venue, year = "IJCAI", 2021
    kind = "contrastive"
    hidden: Annotated[int, Ge(0)] = 512
    temperature: Annotated[float, Gt(0)] = 0.5
    bottleneck: Annotated[float, Ge(0)] = 1e-3
    sampling: Literal["threshold", "bernoulli"] = "bernoulli"

    def targets(self, _data: Data) -> Targets:
        """Thresholds that turn the probabilities of both views into bits."""
        generator = torch.Generator().manual_seed(self.seed)

        def thresholds(rows: Rows) -> tuple[Tensor, ...]:
            shape = (2 * len(rows), self.n_bits)
            return (torch.rand(shape, generator=generator) if self.sampling == "bernoulli" else torch.full(shape, 0.5),)

        return thresholds

    def batch_loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Contrast of the bits and divergence of their probabilities."""
        (thresholds,) = batch.targets
        codes = straight_through_sign(torch.sigmoid(outputs) - thresholds)
        contrast = nt_xent(*codes.chunk(2), temperature=self.temperature)
        return contrast + self.bottleneck * bottleneck_loss(*outputs.chunk(2))


def bottleneck_loss(first: Tensor, second: Tensor) -> Tensor:
    """Mean over the batch of the symmetric divergence between Bernoulli bits of two views' logits, the target of each half held fixed."""

    def divergence(p: Tensor, q: Tensor) -> Tensor:
        ones = torch.sigmoid(p) * (functional.logsigmoid(p) - functional.logsigmoid(q))
        zeros = torch.sigmoid(-p) * (functional.logsigmoid(-p) - functional.logsigmoid(-q))
        return (ones + zeros).sum(dim=1).mean()

    return (divergence(first, second.detach()) + divergence(second, first.detach())) / 2
