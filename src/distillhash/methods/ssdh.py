"""SSDH: semantic structure-based unsupervised deep hashing.

Paper: Yang, Deng, Liu, Liu, Tao, "Semantic Structure-based Unsupervised Deep Hashing", IJCAI 2018, pp. 1064-1070.
https://doi.org/10.24963/ijcai.2018/148

Symbols: D -> cosine distances; d_l, d_r -> thresholds; S -> pairs_; u -> relaxed codes; K -> n_bits.
Loss: sum |S_ij| (<u_i, u_j> / K - S_ij)^2 over a batch, u = tanh(outputs).

Departs from the paper in:
1. The backbone is whatever the features come from, frozen unless fine-tuned, and then without dropout and
   with the batch normalisation it was learned with; the paper fine-tunes a VGG network end to end.
2. Batch size, epochs and step size are for a head on standardised features (released: Adam 1e-3 with epsilon 1, batch 24, 10 epochs).
3. beta is 0, not the released 2 (preset ``paper``): on frozen features more dissimilar pairs measure better, on labelled queries from the
   database side.
4. Self-pairs and self-distances are left out (``self_pairs``, ``self_distances`` bring them back).
5. More than ``max_train`` rows are sampled down, because D is n x n. Where that allows more than 50,000, the thresholds are those of 10,000
   rows, and the labels of a batch are computed when it is drawn.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from annotated_types import Ge, Gt

from distillhash.methods.base import sample_rows
from distillhash.methods.heads import MANY, Data, HeadHasher
from distillhash.methods.training import Batch, Rows, Targets, pair_targets
from distillhash.pytorch import Tensor, torch
from distillhash.supervision import similarity
from distillhash.supervision.losses import likelihood_loss, squared_loss
from distillhash.supervision.similarity import Floats, PairLabels

_SAMPLED = 10_000


class PairHasher(HeadHasher):
    """Base of the methods that learn from pair labels: SSDH, DistillHash and DistillHash*.

    ``history_`` records ``loss`` (per epoch), ``thresholds``, ``diagnosis`` (label-free facts of every set of pair labels) and
    ``rows`` (which rows were learned from); ``pairs_`` keeps the pair labels trained on, ``initial_pairs_`` the first ones. Of more than
    50,000 rows, ``initial_pairs_`` are those among a sample of 10,000, and ``pairs_`` too unless a subclass says otherwise.

    Attributes:
        labels: ``three-way`` or ``two-way`` initial labels (:func:`distillhash.supervision.similarity.label_pairs`).
        alpha: Similar pairs lie ``alpha`` left standard deviations below the mode of the distances (released: 2).
        beta: Dissimilar pairs lie ``beta`` right standard deviations above it (released: 2).
        mode: Mode at the ``left-edge`` (released) or ``centre`` of the fullest bin.
        self_distances: Count the zero distances of items to themselves in the fit, as released.
        loss: ``likelihood`` (DistillHash Eq. 10-11) or ``squared`` (SSDH).
        scale: Factor c of the inner product in the likelihood.
        relaxation: ``tanh`` or ``none`` between outputs and loss.
        self_pairs: Count (i, i) as a similar pair in the loss, as released.
    """

    labels: similarity.LabelRule = "three-way"
    alpha: Annotated[float, Ge(0)] = 2.0
    beta: Annotated[float, Ge(0)] = 0.0
    mode: similarity.ModeRule = "left-edge"
    self_distances: bool = False
    loss: Literal["likelihood", "squared"] = "likelihood"
    scale: Annotated[float, Gt(0)] = 0.5
    relaxation: Literal["tanh", "none"] = "tanh"
    self_pairs: bool = False
    max_train: Annotated[int, Ge(2)] = 10_000  # memory for all pairs is about 10 bytes times its square, up to 50,000

    def targets(self, data: Data) -> Targets | None:
        """The pair labels to train on."""
        many = len(data.features) > MANY
        rows = sample_rows(len(data.features), _SAMPLED, np.random.default_rng(self.seed)) if many else slice(None)
        distances = similarity.cosine_distances(data.features[rows])
        self.history_["diagnosis"] = []
        fit = similarity.fit_half_gaussians(distances, mode=self.mode, include_self=self.self_distances)
        thresholds = similarity.pair_thresholds(distances, fit, alpha=self.alpha, beta=self.beta)
        self.history_["thresholds"] = {**vars(fit), **vars(thresholds)}
        self.initial_pairs_: PairLabels = similarity.label_pairs(distances, thresholds, rule=self.labels)
        self._record("initial pairs", self.initial_pairs_)
        if many:
            return self._many_targets(data, thresholds)
        self.pairs_: PairLabels = self._pairs(distances, data)
        return pair_targets(self.pairs_)

    def batch_loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """The pair loss of relaxed codes."""
        (pairs,) = batch.targets
        if self.self_pairs:
            pairs.fill_diagonal_(1)
        codes = torch.tanh(outputs) if self.relaxation == "tanh" else outputs
        targets = pairs.to(codes.dtype)
        return (
            likelihood_loss(codes, targets, scale=self.scale)
            if self.loss == "likelihood"
            else squared_loss(codes, targets)
        )

    def _pairs(self, _distances: Floats, _data: Data) -> PairLabels:
        """The pair labels to train the hash function on: by default ``initial_pairs_``."""
        return self.initial_pairs_

    def _many_targets(self, data: Data, thresholds: similarity.Thresholds) -> Targets | None:
        """As :meth:`_pairs`, where there are too many rows for ``(n, n)`` labels: by default those of each batch, when it is drawn."""
        self.pairs_, features, rule = self.initial_pairs_, data.features, self.labels

        def labels(rows: Rows) -> tuple[Tensor, ...]:
            distances = similarity.cosine_distances(features[rows])
            return (torch.from_numpy(similarity.label_pairs(distances, thresholds, rule=rule)),)

        return labels

    def _record(self, step: str, pairs: PairLabels) -> None:
        self.history_["diagnosis"].append(similarity.describe_pairs(pairs, step))


class SSDH(PairHasher):
    """Half-Gaussian pair labels and the squared loss. Hyper-parameters: see :class:`PairHasher`.

    The preset ``paper`` has its beta of 2.
    """

    method = "ssdh"
    title = "Semantic Structure-based Unsupervised Deep Hashing"
    venue, year = "IJCAI", 2018
    kind = "pair labels"
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {"paper": {"beta": 2.0}}
    TABLE_NAMES: ClassVar[dict[str, str]] = {"": "ssdh, beta = 0", "paper": "ssdh"}
    loss: Literal["likelihood", "squared"] = "squared"
