"""CIMON: comprehensive similarity mining and consistency learning.

Paper: Luo, Wu, Ma, Chen, Deng, Ma, Jin, Huang, Hua, "CIMON: Towards High-quality Hash Codes", IJCAI 2021.
https://arxiv.org/abs/2010.07804

Symbols: (S1, W1), (S2, W2) -> labels and weights from two augmented feature sets, made as in :mod:`.dsg`; u1, u2 -> relaxed codes of
two augmented views; L(u; S, W) -> sum w_ij |S_ij| (<u_i, u_j> / K - S_ij)^2 over a batch; eta -> ``contrast``.
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

from typing import Annotated

import numpy as np
from annotated_types import Ge, Gt

from distillhash.methods.dsg import GuidedHasher
from distillhash.methods.heads import Data, TwoViewHasher
from distillhash.methods.training import Batch, Targets, pair_targets
from distillhash.pytorch import Tensor, torch
from distillhash.supervision.losses import nt_xent, squared_loss


class CIMON(GuidedHasher, TwoViewHasher):
    """Guidance from two views, crosswise, and contrast between them.

    ``initial_pairs_``, ``pairs_`` and ``weights_`` are those of the first feature set. The memory for all pairs of both sets is about 14
    bytes times the square of the rows. Further hyper-parameters: see :class:`GuidedHasher` and :class:`TwoViewHasher`.

    Attributes:
        contrast: Weight eta of the contrastive loss.
        temperature: Its temperature.
    """

    method = "cimon"
    title = "CIMON: Towards High-quality Hash Codes"
    venue, year = "IJCAI", 2021
    kind = "pair labels"
    contrast: Annotated[float, Ge(0)] = 0.3
    temperature: Annotated[float, Gt(0)] = 0.5

    def targets(self, data: Data) -> Targets:
        """Pair labels and weights of both feature sets, those of the second first."""
        everything = np.arange(len(data.features))
        sets = data.cached.pair(everything, np.random.default_rng(self.seed), self.noise).inputs.numpy()
        # The first set goes last: what is kept of the guidance for inspection is its own.
        second, first = (self._guidance(features) for features in reversed(np.split(sets, 2)))
        return pair_targets(*second, *first)

    def batch_loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """The four weighted terms and the contrast."""
        codes = torch.tanh(outputs).chunk(2)
        second_pairs, second_weights, first_pairs, first_weights = (target.to(outputs) for target in batch.targets)
        terms = [
            squared_loss(view, pairs, weights)
            for pairs, weights in ((second_pairs, second_weights), (first_pairs, first_weights))
            for view in codes
        ]
        return torch.stack(terms).sum() + self.contrast * nt_xent(*codes, temperature=self.temperature)
