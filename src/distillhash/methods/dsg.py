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
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distillhash.errors import DataError, ParameterError
from distillhash.methods.base import TrainingSet
from distillhash.methods.head_hasher import HeadHasher, check_choice, check_not_negative
from distillhash.pairs.clusters import Clustering, assign_clusters, drop_contradictions
from distillhash.pairs.confidence import Weights, pair_confidence
from distillhash.pairs.diagnosis import describe_pairs
from distillhash.pairs.losses import weighted_squared_loss
from distillhash.pairs.similarity import (
    PairLabels,
    cosine_distances,
    fit_half_gaussians,
    label_pairs,
    pair_thresholds,
)


class Guidance(NamedTuple):
    """Pair labels that agree with the clusters, and their weights."""

    pairs: PairLabels
    weights: Weights

    def loss(self, codes: Tensor, rows: NDArray[np.intp]) -> Tensor:
        """The weighted squared loss of relaxed codes of ``rows``."""
        block = np.ix_(rows, rows)
        pairs, weights = (torch.from_numpy(values[block]).to(codes) for values in self)
        return weighted_squared_loss(codes, pairs, weights)


@dataclass(eq=False, repr=False)
class DSG(HeadHasher):
    """Two-way pair labels, weighted by confidence and filtered by clusters. Further hyper-parameters: see :class:`HeadHasher`.

    ``history_`` also records ``thresholds`` and ``diagnosis``; ``initial_pairs_`` and ``pairs_`` are the labels before and after the
    filter, ``weights_`` their confidence.

    Attributes:
        alpha: Similar pairs lie ``alpha`` left standard deviations below the mode of the distances; all others are dissimilar.
        priority: Exponent of the confidence.
        n_clusters: Clusters that the labels must agree with, many more than classes; at most one per 10 rows are made.
        clustering: ``spectral`` (on the neighbour graph) or ``kmeans``.
    """

    method = "dsg"
    alpha: float = 1.0
    priority: float = 1.0
    n_clusters: int = 70
    clustering: Clustering = "spectral"
    max_train: int = 10_000
    """The memory for all pairs is about 10 bytes times its square."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_not_negative(self, "alpha", "priority")
        check_choice("clustering", self.clustering, Clustering)
        if self.n_clusters < 1:
            raise ParameterError(f"n_clusters must be at least 1, got {self.n_clusters}")

    def _fit(self, given: TrainingSet) -> None:
        data = self._data(given)
        guidance = self._guidance(data.features)
        head = self._head(data)
        module = head.build(self.n_bits, self.seed)

        def loss(outputs: Tensor, rows: NDArray[np.intp]) -> Tensor:
            return guidance.loss(torch.tanh(outputs), rows)

        self.history_["loss"] = self._train(data.network(module), data, loss)
        self._keep(head, module)

    def _guidance(self, features: NDArray[Any]) -> Guidance:
        distances = cosine_distances(features)
        fit = fit_half_gaussians(distances)
        thresholds = pair_thresholds(distances, fit, alpha=self.alpha, beta=0.0)
        self.initial_pairs_: PairLabels = label_pairs(distances, thresholds, rule="two-way")
        self.weights_: Weights = pair_confidence(distances, fit, thresholds.similar, power=self.priority)
        clusters = assign_clusters(features, distances, self.n_clusters, method=self.clustering, seed=self.seed)
        self.pairs_: PairLabels = drop_contradictions(self.initial_pairs_, clusters)
        self.history_["thresholds"] = {**vars(fit), "similar": thresholds.similar, "fallback": thresholds.fallback}
        self.history_["diagnosis"] = [
            describe_pairs(self.initial_pairs_, "initial pairs"),
            describe_pairs(self.pairs_, "pairs that agree with the clusters"),
        ]
        for name, sign in (("similar", 1), ("dissimilar", -1)):
            if not any(
                ((pairs == sign) & (weights > 0)).any()
                for pairs, weights in zip(self.pairs_, self.weights_, strict=True)
            ):
                raise DataError(
                    f"no {name} pairs are left of {len(features)} items after clustering, so there is nothing to learn from: "
                    f"change alpha ({self.alpha}) or n_clusters ({self.n_clusters}), or use another method (itq)"
                )
        return Guidance(self.pairs_, self.weights_)
