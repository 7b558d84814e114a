"""What the methods trained by gradient descent share: a head on features, its training data, and its folding into plain layers.

The deep methods' networks are a pretrained backbone with its last layer replaced. On cached features that last part, the head, is all there
is to train: one linear layer on standardised features, or a hidden layer below it. With ``images`` the backbone is trained too, after the
head: gradients of a random head would undo what the backbone knows (Kumar et al., "Fine-Tuning can Distort Pretrained Features",
ICLR 2022). It keeps the statistics of its batch normalisation, for those of augmented batches are others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal, get_args

import numpy as np
import torch
from annotated_types import Ge, Gt
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, normalize

from distillhash.errors import ParameterError
from distillhash.methods.base import Hasher, TrainingSet, sample_rows
from distillhash.methods.training import (
    CachedFeatures,
    Inputs,
    Optimizer,
    Schedule,
    TrainableImages,
    TrainingSettings,
    TwoViews,
    one_thread,
    train,
)
from distillhash.supervision.similarity import row_blocks

# Binarisation with a gradient, and the pair targets that go with it.


def straight_through_sign(outputs: Tensor) -> Tensor:
    """Signs in {-1, +1}, 0 -> +1; the gradient passes as if they were ``outputs``."""
    signs = torch.where(outputs >= 0, 1.0, -1.0)
    return outputs + (signs - outputs).detach()


def tanh_through_sign(outputs: Tensor) -> Tensor:
    """Signs in {-1, +1}, 0 -> +1; the gradient passes as if they were ``tanh(outputs)``, so bits far from 0 hold still."""
    smooth = torch.tanh(outputs)
    return smooth + (torch.where(outputs >= 0, 1.0, -1.0) - smooth).detach()


def half_batch_cosines(rows: Tensor) -> Tensor:
    """Cosines of each row of the first half of a batch with its partner in the second, ``(b // 2,)``; an odd row is left out."""
    half = len(rows) // 2
    return cosine_similarity(rows[:half], rows[half : 2 * half])


def unit_features(features: NDArray[Any], *, centre: bool) -> Tensor:
    """Rows of length 1, ``(n, d)``, whose products are the cosines that codes are to keep; ``centre`` removes the mean first."""
    values = np.asarray(features, np.float32)
    if centre:
        values = values - values.mean(axis=0)
    return normalize(torch.from_numpy(values))


Floats = NDArray[np.float32]
Activation = Literal["relu", "gelu"]


@dataclass(eq=False, repr=False)
class HeadHasher(Hasher):
    """Base of the methods that train a head. ``history_`` records ``loss`` per epoch and ``rows``, the rows learned from.

    Attributes:
        hidden: Width of a hidden layer; 0 trains one linear layer.
        max_train: Rows learned from at most, drawn by the seed.
        epochs: Passes over the rows.
        batch_size: Rows a step.
        learning_rate: Step size.
        optimizer: ``sgd`` (momentum .9), ``adam``, or ``adamw`` (weight decay apart from the gradient).
        schedule: How the step size falls: ``constant``, ``step`` (to a tenth for the last fifth) or ``cosine`` (to zero).
        adam_eps: Adam's epsilon.
        weight_decay: L2 penalty.
        fine_tune_epochs: Passes over the images that train backbone and head together, once the head has learned from the features.
        fine_tune_rate: Step size there.
        fine_tune_batch: Rows a step there, at most ``batch_size``; the default backbone takes about 30 MB an image at 128 pixels.
        device: torch device to train on.
        layers_: Weights ``(in, out) float64`` and biases of each layer, first to last.
        mean_: ``(d,) float64``, subtracted first.
    """

    fine_tunes: ClassVar[bool] = True
    activation: ClassVar[Activation] = "relu"
    batch_norm: ClassVar[bool] = False

    hidden: Annotated[int, Ge(0)] = 0
    max_train: Annotated[int, Ge(2)] = 50_000
    epochs: Annotated[int, Ge(1)] = 30
    batch_size: Annotated[int, Ge(2)] = 64
    learning_rate: Annotated[float, Gt(0)] = 1e-3
    optimizer: Optimizer = "adam"
    schedule: Schedule = "constant"
    adam_eps: Annotated[float, Gt(0)] = 1e-8
    weight_decay: Annotated[float, Ge(0)] = 0.0
    fine_tune_epochs: Annotated[int, Ge(1)] = 3
    fine_tune_rate: Annotated[float, Gt(0)] = 1e-4
    fine_tune_batch: Annotated[int, Ge(2)] = 64
    device: str = "cpu"

    def _fine_tune_settings(self) -> TrainingSettings:
        return replace(
            self._settings(self.fine_tune_epochs),
            learning_rate=self.fine_tune_rate,
            batch_size=min(self.batch_size, self.fine_tune_batch),
        )

    def _settings(self, epochs: int) -> TrainingSettings:
        return TrainingSettings(
            epochs,
            self.batch_size,
            self.learning_rate,
            self.optimizer,
            self.weight_decay,
            self.adam_eps,
            self.schedule,
        )

    def _data(self, given: TrainingSet) -> Data:
        """The rows to learn from, at most ``max_train``; recorded as ``history_["rows"]``."""
        rows = sample_rows(len(given.features), self.max_train, np.random.default_rng(self.seed))
        self.history_["rows"] = rows
        return Data(given, rows)

    def _head(self, data: Data) -> Head:
        return Head(data.features, self.hidden, self.activation, self.batch_norm)

    def _train(
        self,
        network: nn.Module,
        data: Data,
        loss: Callable[[Any, NDArray[np.intp]], Tensor],
        *,
        inputs: Inputs | None = None,
        epochs: int | None = None,
        seed: int | None = None,
    ) -> list[float]:
        """Train ``network`` (which ends in a head) on ``inputs``, the data's own by default; the mean loss of each epoch.

        Where the backbone is to be trained too, the head alone comes first, on cached features, and then both on images.
        """
        inputs = data.inputs if inputs is None else inputs
        seed = self.seed if seed is None else seed
        settings = self._settings(self.epochs if epochs is None else epochs)
        data.use_images(network, False)
        with one_thread():
            losses = train(network, inputs, loss, settings, seed=seed, device=self.device)
        if data.trunk is not None:
            data.use_images(network, True)
            losses += train(network, inputs, loss, self._fine_tune_settings(), seed=seed, device=self.device)
        return losses

    def _keep(self, head: Head, network: nn.Module) -> None:
        """Keep a trained head (made by ``head.build``) as the hash function."""
        self.mean_: NDArray[np.float64] = head.mean
        self.layers_: list[tuple[NDArray[np.float64], NDArray[np.float64]]] = head.fold(network)

    def _project(self, features: NDArray[np.float64]) -> NDArray[np.float64]:
        outputs = features - self.mean_
        for index, (weight, bias) in enumerate(self.layers_):
            outputs = (activate(outputs, self.activation) if index else outputs) @ weight + bias
        return outputs

    def state(self) -> dict[str, NDArray[Any]]:
        """The mean and each layer's weight and bias."""
        layers = {
            f"{name}_{index}": array
            for index, layer in enumerate(self.layers_)
            for name, array in zip(("weight", "bias"), layer, strict=True)
        }
        return {"mean": self.mean_, **layers}

    def _set_state(self, state: dict[str, NDArray[Any]]) -> None:
        mean, n_layers = state["mean"], 2 if self.hidden else 1
        layers = [(state[f"weight_{index}"], state[f"bias_{index}"]) for index in range(n_layers)]
        widths = [len(mean), *[weight.shape[1] for weight, _ in layers]]
        for index, (weight, bias) in enumerate(layers):
            if weight.shape != (widths[index], widths[index + 1]) or bias.shape != (widths[index + 1],):
                raise ValueError(f"weight {index} of shape {weight.shape}")
        if widths[-1] != self.n_bits:
            raise ValueError(f"{widths[-1]} outputs for {self.n_bits} bits")
        self.mean_, self.layers_ = mean, layers


class Head:
    """Layers on standardised features, and their folding into affine maps of the raw features."""

    def __init__(
        self, sample: Floats, hidden: int = 0, activation: Activation = "relu", batch_norm: bool = False
    ) -> None:
        self.mean = np.asarray(sample.mean(axis=0, dtype=np.float64))
        # One scale for all features: it conditions the optimisation and keeps the angles that the targets come from.
        squares = [
            np.mean((sample[block] - self.mean) ** 2) * (len(sample[block]) / len(sample))
            for block in row_blocks(len(sample))
        ]
        self.scale = float(np.sqrt(np.sum(squares))) or 1.0
        self.n_features = sample.shape[1]
        self.hidden, self.activation, self.batch_norm = hidden, activation, batch_norm
        self.standardise = _Standardise(self.mean, self.scale)

    def build(self, n_outputs: int, seed: int) -> nn.Sequential:
        """Fresh layers on standardised features; their weights are drawn from ``seed`` alone."""
        generator = torch.Generator().manual_seed(seed)
        layers: list[nn.Module] = []
        if self.hidden:
            layers.append(linear(self.n_features, self.hidden, generator, gain=2.0))
            layers.append(nn.ReLU() if self.activation == "relu" else nn.GELU())
        layers.append(linear(self.hidden or self.n_features, n_outputs, generator))
        if self.batch_norm:
            layers.append(nn.BatchNorm1d(n_outputs))
        return nn.Sequential(self.standardise, *layers)

    def fold(self, network: nn.Module) -> list[tuple[NDArray[np.float64], NDArray[np.float64]]]:
        """Weight ``(in, out)`` and bias of each layer; the scale goes into the first, batch normalisation into the last."""
        folded = [
            (_double(layer.weight).T, _double(layer.bias))
            for layer in network.modules()
            if isinstance(layer, nn.Linear)
        ]
        weight, bias = folded[0]
        folded[0] = (weight / self.scale, bias)
        if self.batch_norm:
            norm = next(layer for layer in network.modules() if isinstance(layer, nn.BatchNorm1d))
            assert norm.running_var is not None and norm.running_mean is not None
            factor = _double(norm.weight) / np.sqrt(_double(norm.running_var) + norm.eps)
            weight, bias = folded[-1]
            folded[-1] = (weight * factor, (bias - _double(norm.running_mean)) * factor + _double(norm.bias))
        return folded


def linear(n_inputs: int, n_outputs: int, generator: torch.Generator, gain: float = 1.0) -> nn.Linear:
    """A linear layer whose outputs have variance ``gain`` on inputs of variance 1; zero bias."""
    layer = nn.Linear(n_inputs, n_outputs)
    with torch.no_grad():
        nn.init.normal_(layer.weight, std=(gain / n_inputs) ** 0.5, generator=generator)
        nn.init.zeros_(layer.bias)
    return layer


def activate(values: NDArray[np.float64], activation: Activation) -> NDArray[np.float64]:
    """ReLU, or the exact GELU x Phi(x)."""
    if activation == "relu":
        return np.maximum(values, 0)
    from scipy.special import ndtr

    return np.asarray(values * ndtr(values))


def _double(tensor: Tensor) -> NDArray[np.float64]:
    return np.asarray(tensor.detach().cpu().double().numpy())


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
    """The rows learned from: plain features, and inputs from cached features and views, or from images through ``trunk``.

    Attributes:
        features: ``(m, d) float32`` plain features.
        views: ``(n_views, m, d) float32`` or None.
        teacher: ``(m, d) float32`` better features of the same images, or None.
        labels: ``(m,)`` or ``(m, n_labels)``, or None.
        trunk: The backbone's network when it is trained too.
        inputs: What training draws batches from: features, and images after :meth:`use_images`.
    """

    def __init__(self, given: TrainingSet, rows: NDArray[np.intp]) -> None:
        images: TrainableImages | None = given.images
        chosen = slice(None) if len(rows) == len(given.features) else rows  # all of them are not copied
        self.features: Floats = _floats(given.features[chosen])
        self.views = None if given.views is None else _floats(given.views[:, chosen])
        self.teacher = None if given.teacher is None else _floats(given.teacher[chosen])
        self.labels = None if given.labels is None else given.labels[rows]
        self.trunk = None if images is None else images.trunk
        self.inputs = _Staged(
            CachedFeatures(self.features, self.views), None if images is None else Rows(images.inputs, rows)
        )

    def two_views(self, noise: float) -> Inputs:
        """Batches of two views of every row, stacked: ``(2 b, ...)``. Features without views get ``noise`` instead."""
        return TwoViews(self.inputs, noise)

    def network(self, head: nn.Module, trunk: nn.Module | None = None) -> nn.Module:
        """``head`` on the data's inputs: on top of ``trunk`` (the data's own by default) when images are trained on."""
        if self.trunk is None:
            return head
        return nn.Sequential(_Trunk(self.trunk if trunk is None else trunk), head)

    def use_images(self, network: nn.Module, use: bool) -> None:
        """Feed ``network`` images through its trunk, or features past it; without a trunk there are features only."""
        self.inputs.on_images = use and self.trunk is not None
        for module in network.modules():
            if isinstance(module, _Trunk):
                module.skipped = not use
                module.requires_grad_(use)

    def outputs(self, network: nn.Module) -> Floats:
        """Outputs of a trained network for every row, in order; plain features where there are some."""
        device = next(network.parameters()).device
        rng = np.random.default_rng(0)
        plain: Inputs = self.inputs if self.inputs.on_images else CachedFeatures(self.features)
        blocks = []
        with torch.inference_mode():
            for start in range(0, len(plain), 64):
                rows = np.arange(start, min(start + 64, len(plain)))
                blocks.append(network(plain.batch(rows, rng).to(device)).cpu().numpy())
        return np.concatenate(blocks)


def _floats(values: NDArray[Any]) -> Floats:
    """float32 that torch can share: a copy only where the values are of another type or may not be written."""
    return np.require(values, np.float32, "W")


class _Trunk(nn.Module):
    """A backbone's network, which cached features skip."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.skipped = network, False

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs if self.skipped else self.network(inputs)

    def train(self, mode: bool = True) -> _Trunk:
        """The network stays in eval mode while its weights are trained: no dropout, and fixed statistics of batch normalisation.

        Statistics of augmented batches would replace those that the weights were learned with: MAP then falls instead of rising
        (docs/distillhash-contrast.md).
        """
        super().train(mode)
        self.network.eval()
        return self


class _Staged:
    """Batches of cached features, or of images once ``on_images`` is set."""

    def __init__(self, features: Inputs, images: Inputs | None) -> None:
        self._features, self._images, self.on_images = features, images, False

    def _current(self) -> Inputs:
        return self._images if self.on_images and self._images is not None else self._features

    def __len__(self) -> int:
        return len(self._features)

    def batch(self, rows: NDArray[np.intp], rng: np.random.Generator) -> Tensor:
        return self._current().batch(rows, rng)

    def pair(self, rows: NDArray[np.intp], rng: np.random.Generator, noise: float) -> tuple[Tensor, Tensor]:
        return self._current().pair(rows, rng, noise)


class Rows:
    """A subset of other inputs."""

    def __init__(self, inputs: Inputs, rows: NDArray[np.intp]) -> None:
        self._inputs, self._rows = inputs, rows

    def __len__(self) -> int:
        return len(self._rows)

    def batch(self, rows: NDArray[np.intp], rng: np.random.Generator) -> Tensor:
        """The inputs of ``rows`` of the subset."""
        return self._inputs.batch(self._rows[rows], rng)

    def pair(self, rows: NDArray[np.intp], rng: np.random.Generator, noise: float) -> tuple[Tensor, Tensor]:
        """Two views of ``rows`` of the subset."""
        return self._inputs.pair(self._rows[rows], rng, noise)


def check_choice(name: str, value: object, choices: Any) -> None:
    """Raise :class:`ParameterError` unless ``value`` is one of the literals of the type ``choices``."""
    known = get_args(choices)
    if value not in known:
        raise ParameterError(f"{name} must be one of {', '.join(known)}, got {value!r}")


def check_positive(hasher: object, *names: str) -> None:
    """Raise :class:`ParameterError` unless the named attributes are above 0."""
    for name in names:
        if not getattr(hasher, name) > 0:
            raise ParameterError(f"{name} must be above 0, got {getattr(hasher, name)}")


def check_not_negative(hasher: object, *names: str) -> None:
    """Raise :class:`ParameterError` unless the named attributes are 0 or above."""
    for name in names:
        if not getattr(hasher, name) >= 0:
            raise ParameterError(f"{name} must be at least 0, got {getattr(hasher, name)}")
