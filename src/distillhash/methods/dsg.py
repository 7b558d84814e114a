"""DSG: distilled smooth guidance.

Paper: Luo, Ma, Wu, Zhong, Chen, Ma, Deng, "Unsupervised Deep Hashing via Distilled Smooth Guidance", ICME 2021.
https://arxiv.org/abs/2105.06125

Symbols: D -> cosine distances; t -> the threshold, in ``history_``; S -> pairs_; w -> weights_; u -> relaxed codes; K -> n_bits.
Loss: sum w_ij |S_ij| (<u_i, u_j> / K - S_ij)^2 over a batch, u = tanh(outputs).

RECONSTRUCTED: of the paper only the abstract was found. Each part rests on a sentence of it. Weights and loss: "we obtain the similarity
confidence weights based on the initial noisy similarity signals learned from local structures and construct a priority loss function for
smooth similarity-preserving learning". Filter: "global information based on clustering is utilized to distill the image pairs by removing
contradictory similarity signals". Threshold, weights and filter are those of CIMON, by the same first author; the exponent ``priority`` is
a guess at the name of the loss (1 leaves the weights as they are).

Departs from the paper in:
1. The backbone is whatever the features come from, frozen unless fine-tuned; the paper trains a network end to end.
2. t lies ``alpha`` left standard deviations below the mode of the distances, where CIMON gives a number (.1) for its own features.
3. Optimiser, batch size and epochs are for a head on standardised features (CIMON: SGD 1e-3, batch 24, 150 epochs).
4. Self-pairs and self-distances are left out. More than ``max_train`` rows are sampled down, because D is n x n.
"""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from annotated_types import Ge
from numpy.typing import NDArray

from distillhash.errors import DataError
from distillhash.methods.heads import Data, HeadHasher
from distillhash.methods.training import Batch, Targets, pair_targets
from distillhash.pytorch import Tensor, torch
from distillhash.supervision import similarity
from distillhash.supervision.clusters import Clustering, assign_clusters, drop_contradictions
from distillhash.supervision.losses import squared_loss
from distillhash.supervision.similarity import Floats, HalfGaussians, PairLabels, describe_pairs

Weights = NDArray[np.float16]
_BLOCK = 512
_FARTHEST = 2.0


def pair_confidence(distances: Floats, fit: HalfGaussians, threshold: float, *, power: float = 1.0) -> Weights:
    """Confidence of two-way pair labels: the mass of a half Gaussian between the label's threshold and the pair's distance.

    With Phi_l and Phi_r the distribution functions of the two half Gaussians, and t the threshold between + and -::

        D <= t:  w = (Phi_l(t) - Phi_l(D)) / (Phi_l(t) - Phi_l(0))        D > t:  w = (Phi_r(D) - Phi_r(t)) / (Phi_r(2) - Phi_r(t))

    so that w is 0 at the threshold and 1 at the ends 0 and 2 of the cosine distance (Luo et al., DSG and CIMON). Weights are raised to
    ``power``: above 1 stresses the surest pairs, 0 makes all weights 1. ``(n, n) float16``, because two bytes a pair is what a large
    training set can afford. A side of no width (equal distances) says nothing and weighs 0.
    """
    left, right = _side(fit.mode, fit.sigma_left), _side(fit.mode, fit.sigma_right)
    near = float(left(threshold) - left(0.0))
    far = float(right(_FARTHEST) - right(threshold))
    weights = np.zeros(distances.shape, np.float16)
    for start in range(0, len(distances), _BLOCK):
        block = distances[start : start + _BLOCK]
        similar = block <= threshold
        found = np.zeros(block.shape, np.float32)
        if near > 0:
            found[similar] = (left(threshold) - left(block[similar])) / near
        if far > 0:
            found[~similar] = (right(block[~similar]) - right(threshold)) / far
        weights[start : start + len(block)] = np.clip(found, 0, 1) ** power
    return weights


def _side(mode: float, sigma: float) -> Any:
    """The distribution function of N(mode, sigma^2); constant, and so without any mass, at sigma = 0."""
    from scipy.special import ndtr

    if sigma == 0:
        return lambda x: np.zeros_like(x)
    return lambda x: ndtr((x - mode) / sigma)


class GuidedHasher(HeadHasher):
    """Base of the methods that learn from weighted pair labels that agree with clusters. Further hyper-parameters: see :class:`HeadHasher`.

    ``history_`` also records ``thresholds`` and ``diagnosis``; ``initial_pairs_`` and ``pairs_`` are the labels before and after the
    filter, ``weights_`` their confidence.

    Attributes:
        alpha: Similar pairs lie ``alpha`` left standard deviations below the mode of the distances; all others are dissimilar.
        priority: Exponent of the confidence.
        n_clusters: Clusters that the labels must agree with, many more than classes; at most one per 10 rows are made.
        clustering: ``spectral`` (on the neighbour graph) or ``kmeans``.
    """

    alpha: Annotated[float, Ge(0)] = 1.0
    priority: Annotated[float, Ge(0)] = 1.0
    n_clusters: Annotated[int, Ge(1)] = 70
    clustering: Clustering = "spectral"
    takes_many = False
    max_train: Annotated[int, Ge(2)] = 10_000  # memory for all pairs is about 10 bytes times its square

    def _guidance(self, features: NDArray[Any]) -> tuple[PairLabels, Weights]:
        """Pair labels that agree with the clusters, and their weights."""
        distances = similarity.cosine_distances(features)
        fit = similarity.fit_half_gaussians(distances)
        thresholds = similarity.pair_thresholds(distances, fit, alpha=self.alpha, beta=0.0)
        self.initial_pairs_: PairLabels = similarity.label_pairs(distances, thresholds, rule="two-way")
        self.weights_: Weights = pair_confidence(distances, fit, thresholds.similar, power=self.priority)
        clusters = assign_clusters(features, distances, self.n_clusters, method=self.clustering, seed=self.seed)
        self.pairs_: PairLabels = drop_contradictions(self.initial_pairs_, clusters)
        self.history_["thresholds"] = {**vars(fit), "similar": thresholds.similar, "fallback": thresholds.fallback}
        self.history_["diagnosis"] = [
            describe_pairs(self.initial_pairs_, "initial pairs"),
            describe_pairs(self.pairs_, "pairs that agree with the clusters"),
        ]
        for name, sign in (("similar", 1), ("dissimilar", -1)):
            rows = zip(self.pairs_, self.weights_, strict=True)
            if not any(((pairs == sign) & (weights > 0)).any() for pairs, weights in rows):
                raise DataError(
                    f"no {name} pairs are left of {len(features)} items after clustering, so there is nothing to learn from: "
                    f"change alpha ({self.alpha}) or n_clusters ({self.n_clusters}), or use another method (itq)"
                )
        return self.pairs_, self.weights_


class DSG(GuidedHasher):
    """Two-way pair labels, weighted by confidence and filtered by clusters. Hyper-parameters: see :class:`GuidedHasher`."""

    method = "dsg"
    title = "Unsupervised Deep Hashing via Distilled Smooth Guidance"
    venue, year = "ICME", 2021
    kind = "pair labels"
    reconstructed = "threshold, weights and filter"

    def targets(self, data: Data) -> Targets:
        """Pair labels and weights."""
        return pair_targets(*self._guidance(data.features))

    def batch_loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """The weighted squared loss of relaxed codes."""
        pairs, weights = (target.to(outputs) for target in batch.targets)
        return squared_loss(torch.tanh(outputs), pairs, weights)
