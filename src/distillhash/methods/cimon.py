"""CIMON: comprehensive similarity mining and consistency learning.

Paper: Luo, Wu, Ma, Chen, Deng, Ma, Jin, Huang, Hua, "CIMON: Towards High-quality Hash Codes", IJCAI 2021.
https://arxiv.org/abs/2010.07804

Symbols: (S1, W1), (S2, W2) -> labels and weights from two augmented feature sets, made as in
:mod:`.guided_hasher`; u1, u2 -> relaxed codes of two
augmented views; L(u; S, W) -> sum w_ij |S_ij| (<u_i, u_j> / K - S_ij)^2 over a batch; eta -> ``contrast``.
Loss: L(u1; S1, W1) + L(u2; S2, W2), in parallel, + L(u1; S2, W2) + L(u2; S1, W1), crosswise, + eta NT-Xent(u1, u2), u = tanh(outputs).

Departs from the paper in:
1. The backbone is whatever the features come from, frozen unless fine-tuned; the paper trains VGG16 end to end.
2. Every training row has a few views, embedded once; the two feature sets take two of them per row, each step takes two anew.
3. The threshold between + and - lies ``alpha`` left standard deviations below the mode of the distances (released: .1 for its features).
4. Optimiser, batch size and epochs are for a head on standardised features (released: SGD 1e-3, batch 24, 150 epochs).
5. Self-pairs and self-distances are left out. More than ``max_train`` rows are sampled down, because S is n x n.
6. Without views, noise on the features stands in for augmentation (``noise``).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distillhash.methods.base import TrainingSet
from distillhash.methods.dsg import GuidedHasher
from distillhash.methods.heads import check_not_negative, check_positive
from distillhash.methods.training import CachedFeatures
from distillhash.supervision.losses import nt_xent


@dataclass(eq=False, repr=False)
class CIMON(GuidedHasher):
    """Guidance from two views, crosswise, and contrast between them. Further hyper-parameters: see :class:`GuidedHasher`.

    ``initial_pairs_``, ``pairs_`` and ``weights_`` are those of the first feature set. The memory for all pairs of both sets is about 14
    bytes times the square of the rows.

    Attributes:
        contrast: Weight eta of the contrastive loss.
        temperature: Its temperature.
        noise: Standard deviation of the noise that makes views where there are none, in units of that of the features.
    """

    method = "cimon"
    title = "CIMON: Towards High-quality Hash Codes"
    venue = "IJCAI"
    year = 2021
    kind = "pair labels"
    uses_views = True
    contrast: float = 0.3
    temperature: float = 0.5
    noise: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "temperature")
        check_not_negative(self, "contrast", "noise")

    def _fit(self, given: TrainingSet) -> None:
        data = self._data(given)
        rows = np.arange(len(data.features))
        sets = CachedFeatures(data.features, data.views).pair(rows, np.random.default_rng(self.seed), self.noise)
        # The first set goes last: what is kept of the guidance for inspection is its own.
        guidance = [self._guidance(features.numpy()) for features in reversed(sets)]
        head = self._head(data)
        module = head.build(self.n_bits, self.seed)

        def loss(outputs: Tensor, rows: NDArray[np.intp]) -> Tensor:
            first, second = torch.tanh(outputs).chunk(2)
            terms = [guide.loss(codes, rows) for guide in guidance for codes in (first, second)]
            return torch.stack(terms).sum() + self.contrast * nt_xent(first, second, temperature=self.temperature)

        self.history_["loss"] = self._train(data.network(module), data, loss, inputs=data.two_views(self.noise))
        self._keep(head, module)
