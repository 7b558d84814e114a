"""SSDH: semantic structure-based unsupervised deep hashing.

Paper: Yang, Deng, Liu, Liu, Tao, "Semantic Structure-based Unsupervised Deep Hashing", IJCAI 2018, pp. 1064-1070.
https://doi.org/10.24963/ijcai.2018/148

Symbols: D -> cosine distances; d_l, d_r -> thresholds; S -> pairs_; u -> relaxed codes; K -> n_bits.
Loss: sum |S_ij| (<u_i, u_j> / K - S_ij)^2 over a batch, u = tanh(outputs).

Departs from the paper in:
1. The backbone is whatever the features come from, frozen unless fine-tuned, and then without dropout and
   with the batch normalisation it was learned with; the paper fine-tunes a VGG network end to end.
2. Batch size, epochs and step size are for a head on standardised features (released: Adam 1e-3 with epsilon 1, batch 24, 10 epochs).
3. beta is 0, not the released 2: on frozen features more dissimilar pairs measure better, on queries carved from the database side.
4. Self-pairs and self-distances are left out (``self_pairs``, ``self_distances`` bring them back).
5. More than ``max_train`` rows are sampled down, because D is n x n.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from distillhash.methods.base import TrainingSet
from distillhash.methods.heads import Data, Head, HeadHasher, Rows, check_choice, check_positive
from distillhash.supervision.losses import PairLoss, pair_loss, relax
from distillhash.supervision.similarity import (
    Floats,
    LabelRule,
    ModeRule,
    PairLabels,
    cosine_distances,
    describe_pairs,
    fit_half_gaussians,
    label_pairs,
    pair_thresholds,
)

# What SSDH, DistillHash and DistillHash* share: pair labels from feature distances, and a head trained on labelled pairs.
#
# A subclass says which pair labels to train on (:meth:`PairHasher._pairs`) and which loss; the rest is here.


@dataclass(eq=False, repr=False)
class PairHasher(HeadHasher):
    """Base of the methods that learn from pair labels.

    ``history_`` records ``loss`` (per epoch), ``thresholds``, ``diagnosis`` (label-free facts of every set of pair labels) and
    ``rows`` (which rows were learned from); ``pairs_`` keeps the pair labels trained on, ``initial_pairs_`` the first ones.

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

    labels: LabelRule = "three-way"
    alpha: float = 2.0
    beta: float = 0.0
    mode: ModeRule = "left-edge"
    self_distances: bool = False
    loss: PairLoss = "likelihood"
    scale: float = 0.5
    relaxation: Literal["tanh", "none"] = "tanh"
    self_pairs: bool = False
    max_train: int = 10_000
    """The memory for all pairs is about 10 bytes times its square."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("labels", self.labels, LabelRule)
        check_choice("mode", self.mode, ModeRule)
        check_choice("loss", self.loss, PairLoss)
        check_choice("relaxation", self.relaxation, Literal["tanh", "none"])
        check_positive(self, "scale")

    def _fit(self, given: TrainingSet) -> None:
        data = self._data(given)
        distances = cosine_distances(data.features)
        self.history_["diagnosis"] = []
        self.initial_pairs_: PairLabels = self._initial_pairs(distances)
        self._record("initial pairs", self.initial_pairs_)
        head = self._head(data)
        self.pairs_: PairLabels = self._pairs(distances, head, data)
        trained = self._train_on(self.pairs_, self.n_bits, head, data, self.epochs, seed=self.seed)
        self.history_["loss"] = trained.losses
        self._keep(head, trained.head)

    @abstractmethod
    def _pairs(self, distances: Floats, head: Head, data: Data) -> PairLabels:
        """The pair labels to train the hash function on, given ``initial_pairs_``."""

    def _initial_pairs(self, distances: Floats) -> PairLabels:
        fit = fit_half_gaussians(distances, mode=self.mode, include_self=self.self_distances)
        thresholds = pair_thresholds(distances, fit, alpha=self.alpha, beta=self.beta)
        self.history_["thresholds"] = {**vars(fit), **vars(thresholds)}
        return label_pairs(distances, thresholds, rule=self.labels)

    def _record(self, step: str, pairs: PairLabels) -> None:
        self.history_["diagnosis"].append(describe_pairs(pairs, step))

    def _train_on(
        self,
        pairs: PairLabels,
        n_outputs: int,
        head: Head,
        data: Data,
        epochs: int,
        *,
        seed: int,
        rows: NDArray[np.intp] | None = None,
        fresh_trunk: bool = False,
    ) -> Trained:
        """Train a new head of ``n_outputs`` on ``pairs`` (among ``rows`` if given), and the trunk below it if there is one.

        ``fresh_trunk`` trains a copy of the trunk, so that the network trained next starts from the pretrained weights again.
        """
        module = head.build(n_outputs, seed)
        network = data.network(module, copy.deepcopy(data.trunk) if fresh_trunk else None)
        inputs = data.inputs if rows is None else Rows(data.inputs, rows)

        def loss(outputs: Tensor, batch: NDArray[np.intp]) -> Tensor:
            chosen = batch if rows is None else rows[batch]
            block = pairs[np.ix_(chosen, chosen)]
            if self.self_pairs:
                np.fill_diagonal(block, 1)
            targets = torch.from_numpy(block).to(outputs.device)
            return pair_loss(relax(outputs, self.relaxation), targets, kind=self.loss, scale=self.scale)

        losses = self._train(network, data, loss, inputs=inputs, epochs=epochs, seed=seed)
        return Trained(network, module, losses)


class Trained(NamedTuple):
    """A trained network, the head it ends in, and the mean loss of each epoch."""

    network: nn.Module
    head: nn.Module
    losses: list[float]


@dataclass(eq=False, repr=False)
class SSDH(PairHasher):
    """Half-Gaussian pair labels and the squared loss. Hyper-parameters: see :class:`PairHasher`."""

    method = "ssdh"
    title = "Semantic Structure-based Unsupervised Deep Hashing"
    venue = "IJCAI"
    year = 2018
    kind = "pair labels"
    loss: PairLoss = "squared"

    def _pairs(self, distances: Floats, head: Head, data: Data) -> PairLabels:
        del distances, head, data  # SSDH trains on the initial labels as they are
        return self.initial_pairs_
