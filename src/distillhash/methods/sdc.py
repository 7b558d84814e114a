"""SDC: code similarities calibrated to a fixed distribution.

Paper: Ng, Ju, Hoe, Chan, Song, Xiang, "Unsupervised Hashing with Similarity Distribution Calibration", BMVC 2023. https://arxiv.org/abs/2302.07669

Symbols: a -> cosines of the features of random pairs; h -> cosines of their outputs; t -> ``calibrated_targets``. Pairs sorted by a should
have cosines that follow a beta distribution stretched to (-1, 1): loss = mean |h_(j) - t_(j)| with t_(j) its (2j - 1) / (2m) quantiles, a
1-d Wasserstein distance, plus 1 - cos(v, sign v).

Departs from the paper in:
1. A hidden layer of 512 (released: as wide as the features) with batch normalisation on the outputs, on standardised features of any
   backbone; 30 epochs of Adam at 1e-3 (released: 100 at 1e-4). Of augmented views one is
   drawn for every image and batch.
2. Cosines a are of centred features; only their order matters.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cosine_similarity

from distillhash.methods.base import TrainingSet
from distillhash.methods.heads import HeadHasher, check_not_negative, check_positive, half_batch_cosines, unit_features
from distillhash.methods.training import Schedule


@dataclass(eq=False, repr=False)
class SDC(HeadHasher):
    """Codes whose cosines are spread as wanted. Further hyper-parameters: see :class:`HeadHasher`.

    Attributes:
        beta: Both shape parameters of the beta distribution (released: 5).
        quantisation: Weight of 1 - cos(v, sign v).
    """

    method = "sdc"
    title = "Unsupervised Hashing with Similarity Distribution Calibration"
    venue = "BMVC"
    year = 2023
    kind = "similarity preserving"
    uses_views = True
    activation = "gelu"
    batch_norm = True
    hidden: int = 512
    batch_size: int = 128
    schedule: Schedule = "step"
    weight_decay: float = 1e-5
    beta: float = 5.0
    quantisation: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "beta")
        check_not_negative(self, "quantisation")

    def _fit(self, given: TrainingSet) -> None:
        data = self._data(given)
        head = self._head(data)
        module = head.build(self.n_bits, self.seed)
        unit = unit_features(data.features, centre=True)

        def loss(outputs: Tensor, rows: NDArray[np.intp]) -> Tensor:
            wanted = half_batch_cosines(unit[rows]).to(outputs.device)
            signs = torch.where(outputs >= 0, 1.0, -1.0)
            quantisation = (1 - cosine_similarity(outputs, signs)).mean()
            return calibration_loss(half_batch_cosines(outputs), wanted, self.beta) + self.quantisation * quantisation

        self.history_["loss"] = self._train(data.network(module), data, loss)
        self._keep(head, module)


def calibration_loss(cosines: Tensor, wanted: Tensor, beta: float) -> Tensor:
    """Mean distance of output cosines ``(m,)``, taken in the order of the feature cosines ``wanted``, from the quantiles."""
    targets = calibrated_targets(len(wanted), beta).to(cosines.device)
    return (cosines[wanted.argsort(stable=True)] - targets).abs().mean()


def calibrated_targets(m: int, beta: float) -> Tensor:
    """``(m,)`` rising quantiles (2j - 1) / (2m) of the beta distribution with both parameters ``beta``, stretched to (-1, 1)."""
    from scipy.stats import beta as beta_distribution

    levels = (2 * np.arange(m) + 1) / (2 * m)
    return torch.from_numpy((2 * beta_distribution.ppf(levels, beta, beta) - 1).astype(np.float32))
