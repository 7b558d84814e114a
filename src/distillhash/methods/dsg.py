"""DSG: distilled smooth guidance.

Paper: Luo, Ma, Wu, Zhong, Chen, Ma, Deng, "Unsupervised Deep Hashing via Distilled Smooth Guidance", ICME 2021.
https://arxiv.org/abs/2105.06125

Symbols: D -> cosine distances; t -> the threshold, in ``history_``; S -> pairs_; w -> weights_; u -> relaxed codes; K -> n_bits.
Loss: sum w_ij |S_ij| (<u_i, u_j> / K - S_ij)^2 over a batch, u = tanh(outputs).

RECONSTRUCTED: the paper's abstract says that smooth confidence weights are computed from noisy similarity signals, that a priority loss
uses them, and that global clustering removes contradictory signals. Threshold, weights and filter are those of CIMON, by the same first
author; the exponent ``priority`` is a guess at the name of the loss (1 leaves the weights as they are).

Departs from the paper in:
1. The backbone is whatever the features come from, frozen unless fine-tuned; the paper trains a network end to end.
2. t lies ``alpha`` left standard deviations below the mode of the distances, where CIMON gives a number (.1) for its own features.
3. Optimiser, batch size and epochs are for a head on standardised features (CIMON: SGD 1e-3, batch 24, 150 epochs).
4. Self-pairs and self-distances are left out. More than ``max_train`` rows are sampled down, because D is n x n.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distillhash.methods.base import TrainingSet
from distillhash.methods.guided_hasher import GuidedHasher


@dataclass(eq=False, repr=False)
class DSG(GuidedHasher):
    """Two-way pair labels, weighted by confidence and filtered by clusters. Hyper-parameters: see :class:`GuidedHasher`."""

    method = "dsg"

    def _fit(self, given: TrainingSet) -> None:
        data = self._data(given)
        guidance = self._guidance(data.features)
        head = self._head(data)
        module = head.build(self.n_bits, self.seed)

        def loss(outputs: Tensor, rows: NDArray[np.intp]) -> Tensor:
            return guidance.loss(torch.tanh(outputs), rows)

        self.history_["loss"] = self._train(data.network(module), data, loss)
        self._keep(head, module)
