"""What the pair-label methods share: rows to learn from, a linear head, and training on labelled pairs.

A subclass says which pair labels to train on (:meth:`PairHasher._pairs`) and which loss; the rest is here.
The paper's network is VGG16 with its last layer replaced by one of ``n_bits`` units. On cached features that last layer is
all there is to train: a linear head on standardised features. With ``fine_tune`` the backbone below it is trained too.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from distillhash.errors import ParameterError
from distillhash.methods.base import AffineHasher, sample_rows
from distillhash.pairs.diagnosis import describe_pairs
from distillhash.pairs.losses import PairLoss, pair_loss, relax
from distillhash.pairs.similarity import (
    Floats,
    LabelRule,
    ModeRule,
    PairLabels,
    cosine_distances,
    fit_half_gaussians,
    label_pairs,
    pair_thresholds,
)
from distillhash.training import CachedFeatures, Inputs, Optimizer, TrainableImages, TrainingSettings, one_thread, train


@dataclass(eq=False, repr=False)
class PairHasher(AffineHasher):
    """Base of the methods that learn from pair labels.

    ``history_`` records ``loss`` (per epoch), ``thresholds``, ``diagnosis`` (label-free facts of every set of pair labels) and
    ``rows`` (which rows were learned from); ``pairs_`` keeps the pair labels trained on, ``initial_pairs_`` the first ones.

    Attributes:
        labels: ``three-way`` or ``two-way`` initial labels (:func:`distillhash.pairs.similarity.label_pairs`).
        alpha: Similar pairs lie ``alpha`` left standard deviations below the mode of the distances (released: 2).
        beta: Dissimilar pairs lie ``beta`` right standard deviations above it (released: 2).
        mode: Mode at the ``left-edge`` (released) or ``centre`` of the fullest bin.
        self_distances: Count the zero distances of items to themselves in the fit, as released.
        loss: ``likelihood`` (DistillHash Eq. 10-11) or ``squared`` (SSDH).
        scale: Factor c of the inner product in the likelihood.
        relaxation: ``tanh`` or ``none`` between outputs and loss.
        self_pairs: Count (i, i) as a similar pair in the loss, as released.
        max_train: Rows learned from at most, drawn by the seed; memory is about 10 bytes times its square.
        epochs: Passes over the rows.
        batch_size: Rows a step; all pairs of a batch are used.
        learning_rate: Step size.
        optimizer: ``sgd`` (momentum .9) or ``adam``.
        adam_eps: Adam's epsilon.
        weight_decay: L2 penalty.
        device: torch device to train on.
    """

    fine_tunes: ClassVar[bool] = True

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
    epochs: int = 30
    batch_size: int = 64
    learning_rate: float = 1e-3
    optimizer: Optimizer = "adam"
    adam_eps: float = 1e-8
    weight_decay: float = 0.0
    device: str = "cpu"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("labels", self.labels, LabelRule)
        check_choice("mode", self.mode, ModeRule)
        check_choice("loss", self.loss, PairLoss)
        check_choice("relaxation", self.relaxation, Literal["tanh", "none"])
        if self.max_train < 2:
            raise ParameterError(f"max_train must be at least 2, got {self.max_train}")
        if not self.scale > 0:
            raise ParameterError(f"scale must be positive, got {self.scale}")
        self._settings(self.epochs)

    def _settings(self, epochs: int) -> TrainingSettings:
        return TrainingSettings(
            epochs, self.batch_size, self.learning_rate, self.optimizer, self.weight_decay, self.adam_eps
        )

    def _fit(self, features: NDArray[Any], views: NDArray[Any] | None, images: TrainableImages | None) -> None:
        rows = sample_rows(len(features), self.max_train, np.random.default_rng(self.seed))
        sample = np.asarray(features[rows], np.float32)
        sample_views = None if views is None else np.asarray(views[:, rows], np.float32)
        distances = cosine_distances(sample)
        self.history_ = {"rows": rows, "diagnosis": []}
        self.initial_pairs_: PairLabels = self._initial_pairs(distances)
        self._record("initial pairs", self.initial_pairs_)
        head = Head(sample)
        data = Data(sample, sample_views, rows, images)
        self.pairs_: PairLabels = self._pairs(distances, head, data)
        trained = self._train_on(self.pairs_, self.n_bits, head, data, self.epochs, seed=self.seed)
        self.history_["loss"] = trained.losses
        self._set_affine(*head.fold(trained.linear))

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
        linear = head.build(n_outputs, seed)
        trunk = copy.deepcopy(data.trunk) if fresh_trunk else data.trunk
        network = nn.Sequential(*([] if trunk is None else [trunk]), head.standardise, linear)
        inputs = data.inputs if rows is None else Rows(data.inputs, rows)

        def loss(outputs: Tensor, batch: NDArray[np.intp]) -> Tensor:
            chosen = batch if rows is None else rows[batch]
            block = pairs[np.ix_(chosen, chosen)]
            if self.self_pairs:
                np.fill_diagonal(block, 1)
            targets = torch.from_numpy(block).to(outputs.device)
            return pair_loss(relax(outputs, self.relaxation), targets, kind=self.loss, scale=self.scale)

        with one_thread() if trunk is None else nullcontext():
            losses = train(network, inputs, loss, self._settings(epochs), seed=seed, device=self.device)
        return Trained(network, linear, losses)


class Trained(NamedTuple):
    """A trained network, its last layer, and the mean loss of each epoch."""

    network: nn.Module
    linear: nn.Linear
    losses: list[float]


class Head:
    """A linear layer on standardised features, and its folding into one affine map."""

    def __init__(self, sample: Floats) -> None:
        self.mean = sample.mean(axis=0, dtype=np.float64)
        # One scale for all features: it conditions the optimisation and keeps the angles that the pair labels come from.
        self.scale = float(np.sqrt(np.mean((sample - self.mean) ** 2))) or 1.0
        self.n_features = sample.shape[1]
        self.standardise = _Standardise(self.mean, self.scale)

    def build(self, n_outputs: int, seed: int) -> nn.Linear:
        """A fresh layer; its weights are drawn from ``seed`` alone."""
        linear = nn.Linear(self.n_features, n_outputs)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            nn.init.normal_(linear.weight, std=self.n_features**-0.5, generator=generator)
            nn.init.zeros_(linear.bias)
        return linear

    def fold(self, linear: nn.Linear) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        """Mean, weight and bias of the affine map from raw features to outputs."""
        weight = linear.weight.detach().cpu().double().numpy().T / self.scale
        return self.mean, weight, linear.bias.detach().cpu().double().numpy()


class _Standardise(nn.Module):
    """(x - mean) / scale, with numbers that are not trained."""

    mean: Tensor

    def __init__(self, mean: NDArray[Any], scale: float) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32))
        self.scale = scale

    def forward(self, features: Tensor) -> Tensor:
        return (features - self.mean) / self.scale


class Data:
    """Where training inputs come from: cached features and views, or images through ``trunk``."""

    def __init__(
        self, features: Floats, views: Floats | None, rows: NDArray[np.intp], images: TrainableImages | None
    ) -> None:
        self.trunk = None if images is None else images.trunk
        self.inputs: Inputs = CachedFeatures(features, views) if images is None else Rows(images.inputs, rows)
        self._plain: Inputs = CachedFeatures(features) if images is None else self.inputs

    def outputs(self, network: nn.Module) -> Floats:
        """Outputs of a trained network for every row, in order; plain features where there are some."""
        device = next(network.parameters()).device
        rng = np.random.default_rng(0)
        blocks = []
        with torch.inference_mode():
            for start in range(0, len(self._plain), 64):
                rows = np.arange(start, min(start + 64, len(self._plain)))
                blocks.append(network(self._plain.batch(rows, rng).to(device)).cpu().numpy())
        return np.concatenate(blocks)


class Rows:
    """A subset of other inputs."""

    def __init__(self, inputs: Inputs, rows: NDArray[np.intp]) -> None:
        self._inputs, self._rows = inputs, rows

    def __len__(self) -> int:
        return len(self._rows)

    def batch(self, rows: NDArray[np.intp], rng: np.random.Generator) -> Tensor:
        """The inputs of ``rows`` of the subset."""
        return self._inputs.batch(self._rows[rows], rng)


def check_choice(name: str, value: object, choices: Any) -> None:
    """Raise :class:`ParameterError` unless ``value`` is one of the literals of the type ``choices``."""
    known = get_args(choices)
    if value not in known:
        raise ParameterError(f"{name} must be one of {', '.join(known)}, got {value!r}")
