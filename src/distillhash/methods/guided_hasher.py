"""What DSG and CIMON share: two-way pair labels, weighted by confidence and filtered by clusters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distillhash.errors import DataError, ParameterError
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
class GuidedHasher(HeadHasher):
    """Base of the methods that learn from such pairs. Further hyper-parameters: see :class:`HeadHasher`.

    ``history_`` also records ``thresholds`` and ``diagnosis``; ``initial_pairs_`` and ``pairs_`` are the labels before and after the
    filter, ``weights_`` their confidence.

    Attributes:
        alpha: Similar pairs lie ``alpha`` left standard deviations below the mode of the distances; all others are dissimilar.
        priority: Exponent of the confidence.
        n_clusters: Clusters that the labels must agree with, many more than classes; at most one per 10 rows are made.
        clustering: ``spectral`` (on the neighbour graph) or ``kmeans``.
    """

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
