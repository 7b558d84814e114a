"""SDC: code similarities calibrated to a fixed distribution.

Paper: Ng, Ju, Hoe, Chan, Song, Xiang, "Unsupervised Hashing with Similarity Distribution Calibration", BMVC 2023. https://arxiv.org/abs/2302.07669

Symbols: a -> cosines of the features of random pairs; h -> cosines of their outputs; t -> ``calibrated_targets``. Pairs sorted by a should
have cosines that follow a beta distribution stretched to (-1, 1): loss = mean |h_(j) - t_(j)| with t_(j) its (2j - 1) / (2m) quantiles, a
1-d Wasserstein distance, plus 1 - cos(v, sign v).

Departs from the paper in:
1. A hidden layer of 512 (released: as wide as the features) with batch normalisation on the outputs, on standardised features of any
   backbone; 30 epochs of Adam at 1e-3 (released: 100 at 1e-4). Of augmented views one is drawn for every image and batch.
2. Cosines a are of centred features, which changes their order; the release's are not. It also cuts targets below 0 off.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
from annotated_types import Ge, Gt

from distillhash.methods.heads import Data, HeadHasher, half_batch_cosines, unit_features
from distillhash.methods.training import Batch, Schedule, Targets, row_targets
from distillhash.pytorch import Tensor, functional, torch


class SDC(HeadHasher):
    """Codes whose cosines are spread as wanted. Further hyper-parameters: see :class:`HeadHasher`.

    Attributes:
        beta: Both shape parameters of the beta distribution (released: 5).
        quantisation: Weight of 1 - cos(v, sign v).
    """

    method = "sdc"
    title = "Unsupervised Hashing with Similarity Distribution Calibration"
    venue, year = "BMVC", 2023
    kind = "similarity preserving"
    uses_views = True
    activation = "gelu"
    batch_norm = True
    hidden: Annotated[int, Ge(0)] = 512
    batch_size: Annotated[int, Ge(2)] = 128
    schedule: Schedule = "step"
    weight_decay: Annotated[float, Ge(0)] = 1e-5
    beta: Annotated[float, Gt(0)] = 5.0
    quantisation: Annotated[float, Ge(0)] = 1.0

    def targets(self, data: Data) -> Targets:
        """Directions whose cosines order the pairs."""
        return row_targets(unit_features(data.features, centre=True))

    def batch_loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Distance of the outputs' cosines from the distribution, and of the outputs from their signs."""
        (unit,) = batch.targets
        quantisation = (1 - functional.cosine_similarity(outputs, torch.where(outputs >= 0, 1.0, -1.0))).mean()
        calibration = calibration_loss(half_batch_cosines(outputs), half_batch_cosines(unit), self.beta)
        return calibration + self.quantisation * quantisation


def calibration_loss(cosines: Tensor, wanted: Tensor, beta: float) -> Tensor:
    """Mean distance of output cosines ``(m,)``, taken in the order of the feature cosines ``wanted``, from the quantiles."""
    targets = calibrated_targets(len(wanted), beta).to(cosines.device)
    return (cosines[wanted.argsort(stable=True)] - targets).abs().mean()


def calibrated_targets(m: int, beta: float) -> Tensor:
    """``(m,)`` rising quantiles (2j - 1) / (2m) of the beta distribution with both parameters ``beta``, stretched to (-1, 1)."""
    from scipy.stats import beta as beta_distribution

    levels = (2 * np.arange(m) + 1) / (2 * m)
    return torch.from_numpy((2 * beta_distribution.ppf(levels, beta, beta) - 1).astype(np.float32))
