"""Two small networks side by side, one for images and one for texts, and their training inputs."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from distillhash.methods.crossmodal.base import Activation, Side, TrainingPairs
from distillhash.methods.crossmodal.canonical import canonical_directions
from distillhash.methods.head_hasher import linear
from distillhash.pairs.agreement import scatter_of_views

InputKind = Literal["correlated", "features"]


class Standardised:
    """What a network sees of a modality: features less their mean, along all directions or some, over one scale.

    One scale for all columns conditions the optimisation and keeps the angles.
    """

    def __init__(self, features: NDArray[Any], directions: NDArray[np.float64] | None = None) -> None:
        """Measure ``(n, d)`` features; with ``directions (d, k)`` the network sees those combinations of them."""
        values = np.asarray(features, np.float64)
        self.mean = values.mean(axis=0)
        self.directions = directions
        centred = values - self.mean
        seen = centred if directions is None else centred @ directions
        self.scale = float(np.sqrt(np.mean(seen**2))) or 1.0
        self.width = seen.shape[1]

    def __call__(self, features: NDArray[Any]) -> NDArray[np.float32]:
        """``(n, k) float32`` of mean 0 and mean square 1."""
        centred = np.asarray(features, np.float64) - self.mean
        seen = centred if self.directions is None else centred @ self.directions
        return np.asarray(seen / self.scale, np.float32)

    def fold(self, weight: NDArray[np.float64]) -> NDArray[np.float64]:
        """The weight ``(d, m)`` on centred features that equals ``weight (k, m)`` on what the network sees."""
        return np.asarray((weight if self.directions is None else self.directions @ weight) / self.scale)


def standardise(pairs: TrainingPairs, kind: InputKind, ridge: float) -> tuple[Standardised, Standardised]:
    """The inputs of both networks.

    ``features`` are the features; ``correlated`` are all canonical variables of images and texts (regularised CCA, see
    :mod:`distillhash.methods.crossmodal.canonical`), scaled by their correlations: directions that say nothing about the other modality
    shrink, which is what keeps networks from learning a few hundred pairs by heart. Where images have views, an image is the mean of its
    own, and directions in which they differ shrink too.
    """
    if kind == "features":
        return Standardised(pairs.images), Standardised(pairs.texts)
    centres, within = np.asarray(pairs.images, np.float64), None
    if pairs.views is not None:
        mean = (pairs.images + pairs.views.sum(axis=0)) / (len(pairs.views) + 1)
        within = scatter_of_views(mean, (pairs.images, *pairs.views))
        centres = (centres + pairs.views.sum(axis=0, dtype=np.float64)) / (len(pairs.views) + 1)
    images, texts = centres[pairs.owners], np.asarray(pairs.texts, np.float64)
    most = min(images.shape[1], texts.shape[1])
    A, B, rho = canonical_directions(images - images.mean(axis=0), texts - texts.mean(axis=0), most, ridge, within)
    return Standardised(centres, A * rho), Standardised(pairs.texts, B * rho)


class Tower(nn.Module):
    """A linear layer, or two with an activation between them."""

    def __init__(
        self, n_inputs: int, hidden: int, n_outputs: int, activation: Activation, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.activation, self.n_outputs = activation, n_outputs
        gain = 2.0 if activation == "relu" else 1.0
        layers = [linear(n_inputs, hidden, generator, gain=gain)] if hidden else []
        self.layers = nn.ModuleList([*layers, linear(hidden or n_inputs, n_outputs, generator)])

    def forward(self, rows: Tensor) -> Tensor:
        """Real outputs ``(b, n_outputs)`` of standardised rows ``(b, n_inputs)``."""
        for index, layer in enumerate(self.layers):
            if index:
                rows = torch.tanh(rows) if self.activation == "tanh" else torch.relu(rows)
            rows = layer(rows)
        return rows

    def side(self, inputs: Standardised) -> Side:
        """The same function of raw features, in float64; the standardising goes into the first layer."""
        layers = []
        for layer in self.layers:
            assert isinstance(layer, nn.Linear)
            layers.append((_double(layer.weight).T, _double(layer.bias)))
        layers[0] = (inputs.fold(layers[0][0]), layers[0][1])
        return Side(inputs.mean, layers, self.activation)


class PairInputs:
    """Batches of images, each with one of its texts drawn at random: ``(b, d + e)``, for the training loop."""

    def __init__(self, images: NDArray[np.float32], texts: NDArray[np.float32], pairs: TrainingPairs) -> None:
        """Standardised features of both sides."""
        self._images, self._texts = images, texts
        self._drawer = TextDrawer(pairs)

    def __len__(self) -> int:
        return len(self._images)

    def batch(self, rows: NDArray[np.intp], rng: np.random.Generator) -> Tensor:
        """``(len(rows), d + e) float32``."""
        return torch.from_numpy(np.concatenate([self._images[rows], self._texts[self._drawer(rows, rng)]], axis=1))

    def pair(self, rows: NDArray[np.intp], rng: np.random.Generator, noise: float) -> tuple[Tensor, Tensor]:
        """Two draws of the same images with noise on them, as the training loop's protocol has it."""
        first, second = self.batch(rows, rng), self.batch(rows, rng)
        draw = torch.from_numpy(rng.standard_normal((2, *first.shape), np.float32) * np.float32(noise))
        return first + draw[0], second + draw[1]


class TextDrawer:
    """One text of each image, drawn at random."""

    def __init__(self, pairs: TrainingPairs) -> None:
        """Keep where each image's texts are."""
        self._order = np.argsort(pairs.owners, kind="stable")
        self._counts = np.bincount(pairs.owners, minlength=len(pairs.images))
        self._starts = np.cumsum(self._counts) - self._counts

    def __call__(self, rows: NDArray[np.intp], rng: np.random.Generator) -> NDArray[np.intp]:
        """Text rows, one for each of the image ``rows``."""
        return np.asarray(self._order[self._starts[rows] + rng.integers(self._counts[rows])])


def _double(tensor: Tensor) -> NDArray[np.float64]:
    return np.asarray(tensor.detach().cpu().double().numpy())
