"""The contract of the cross-modal methods: one code space, two ways in.

A cross-modal hasher *is* a hasher of images: ``project``, ``encode``, ``save`` and everything that indexes, searches and measures images
work on it unchanged. It learns from images and texts together, and encodes texts as well.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from distillhash.codes import Codes
from distillhash.errors import DataError, ParameterError
from distillhash.methods.base import Hasher, TrainingSet, check_features, project_blocks
from distillhash.methods.heads import linear
from distillhash.methods.linear_algebra import canonical_directions
from distillhash.supervision.agreement import scatter_of_views

Activation = Literal["tanh", "relu"]
Layers = list[tuple[NDArray[np.float64], NDArray[np.float64]]]


@dataclass(frozen=True)
class TrainingPairs:
    """What a cross-modal method learns from.

    Attributes:
        images: ``(n, d)``.
        texts: ``(t, e)``, t >= n.
        owners: ``(t,) intp``, the image of each text; every image has one at least.
        views: ``(n_views, n, d)`` of augmented copies of the images, or None.
    """

    images: NDArray[Any]
    texts: NDArray[Any]
    owners: NDArray[np.intp]
    views: NDArray[Any] | None = None

    def mean_texts(self) -> NDArray[np.float64]:
        """``(n, e)``: the mean of each image's texts."""
        sums = np.zeros((len(self.images), self.texts.shape[1]))
        np.add.at(sums, self.owners, np.asarray(self.texts, np.float64))
        return sums / np.bincount(self.owners, minlength=len(self.images))[:, None]


@dataclass(frozen=True)
class Side:
    """The hash function of one modality: ``x - mean``, then affine layers with an activation between them."""

    mean: NDArray[np.float64]
    layers: Layers
    activation: Activation

    def __call__(self, features: NDArray[np.float64]) -> NDArray[np.float64]:
        """Real outputs ``(b, n_bits)`` of ``(b, d)`` features."""
        outputs = features - self.mean
        for index, (weight, bias) in enumerate(self.layers):
            if index:
                outputs = np.tanh(outputs) if self.activation == "tanh" else np.maximum(outputs, 0)
            outputs = outputs @ weight + bias
        return outputs

    def state(self, name: str) -> dict[str, NDArray[Any]]:
        """The arrays under ``name.``."""
        arrays = {f"{name}.mean": self.mean}
        for index, (weight, bias) in enumerate(self.layers):
            arrays |= {f"{name}.weight_{index}": weight, f"{name}.bias_{index}": bias}
        return arrays

    @classmethod
    def from_state(
        cls, state: dict[str, NDArray[Any]], name: str, n_layers: int, n_bits: int, activation: Activation
    ) -> Side:
        """What :meth:`state` wrote, with its shapes checked.

        Raises:
            KeyError: an array is absent.
            ValueError: shapes do not fit each other or ``n_bits``.
        """
        mean = state[f"{name}.mean"]
        layers = [(state[f"{name}.weight_{i}"], state[f"{name}.bias_{i}"]) for i in range(n_layers)]
        width = len(mean)
        for weight, bias in layers:
            if weight.ndim != 2 or len(weight) != width or bias.shape != weight.shape[1:]:
                raise ValueError(f"{name}: a weight of shape {weight.shape} after {width} values")
            width = weight.shape[1]
        if width != n_bits:
            raise ValueError(f"{name}: {width} outputs for {n_bits} bits")
        return cls(mean, layers, activation)


@dataclass(eq=False, repr=False)
class CrossModalHasher(Hasher):
    """Base of the methods that hash images and texts into one space.

    Attributes:
        n_features_: Width d of the image features seen in ``fit``.
        n_text_features_: Width e of the text features.
        image_, text_: The two hash functions.
    """

    activation: ClassVar[Activation] = "tanh"
    needs_texts: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.n_text_features_: int | None = None

    @property
    def n_layers(self) -> int:
        """Affine layers of either hash function."""
        return 1

    def fit(  # type: ignore[override]  # the same call, with names that say which side is which
        self,
        image_features: NDArray[Any],
        text_features: NDArray[Any] | None = None,
        *,
        owners: NDArray[Any] | None = None,
        views: NDArray[Any] | None = None,
        **others: Any,
    ) -> Self:
        """Learn from pairs; never from labels.

        Args:
            image_features: ``(n, d)`` finite floats, n >= 2.
            text_features: ``(t, e)`` finite floats.
            owners: ``(t,)`` integers, the image row of each text; None where text i belongs to image i and t = n.
            views: ``(n_views, n, d)`` image features of augmented copies; methods that cannot use them ignore them.
            **others: What methods for images alone take (images, labels): refused.

        Returns:
            self.

        Raises:
            DataError: wrong shapes, NaN or infinity, counts that do not match, an image without a text, too little data for ``n_bits``.
            ParameterError: no texts, or something that only methods for images take.
        """
        if text_features is None:
            raise ParameterError(f"{self.method} learns from images and texts together; give text_features as well")
        given = sorted(name for name, value in others.items() if value is not None)
        if given:
            raise ParameterError(
                f"{self.method} learns from image and text features alone; leave out {', '.join(given)}"
            )
        images, texts = _checked(image_features, "image"), _checked(text_features, "text")
        n, t = len(images), len(texts)
        if n < 2:
            raise DataError(f"{self.method} needs at least 2 pairs to learn from, got {n}")
        if owners is None and t != n:
            raise DataError(
                f"{n} images but {t} texts; make them equal, or give owners ({t},), the image row of each text"
            )
        rows = np.arange(n) if owners is None else np.asarray(owners)
        if rows.shape != (t,) or rows.dtype.kind not in "iu" or (t and (rows.min() < 0 or rows.max() >= n)):
            raise DataError(f"owners must be ({t},) integers from 0 to {n - 1}, got {rows.dtype} of shape {rows.shape}")
        bare = np.flatnonzero(np.bincount(rows, minlength=n) == 0)
        if bare.size:
            raise DataError(f"{bare.size} of {n} images have no text, first row {bare[0]}; leave those images out")
        if views is not None and np.shape(views)[1:] != images.shape:
            raise DataError(f"views must be (n_views, {n}, {images.shape[1]}), got {np.shape(views)}")
        self.history_ = {}
        self.image_, self.text_ = self._fit_pairs(
            TrainingPairs(images, texts, rows.astype(np.intp), views if self.uses_views else None)
        )
        self.n_features_, self.n_text_features_ = images.shape[1], texts.shape[1]
        return self

    @abstractmethod
    def _fit_pairs(self, pairs: TrainingPairs) -> tuple[Side, Side]:
        """Learn the hash functions of images and of texts."""

    def _fit(self, given: TrainingSet) -> None:
        raise NotImplementedError("cross-modal methods learn in _fit_pairs")

    def encode_images(self, image_features: NDArray[Any]) -> Codes:
        """Codes of image features: ``encode`` under the name that says which side."""
        return self.encode(image_features)

    def encode_texts(self, text_features: NDArray[Any]) -> Codes:
        """Codes of text features: the sign of :meth:`project_texts`. Row i is text row i."""
        return Codes.from_projection(self.project_texts(text_features))

    def project_images(self, image_features: NDArray[Any]) -> NDArray[np.float32]:
        """``project`` under the name that says which side."""
        return self.project(image_features)

    def project_texts(self, text_features: NDArray[Any]) -> NDArray[np.float32]:
        """Real outputs of texts before the sign: :meth:`project` for the other modality.

        Args:
            text_features: ``(t, e)`` finite floats, t >= 0.

        Returns:
            ``(t, n_bits) float32``; row i depends on text row i only.

        Raises:
            NotFittedError: before ``fit``.
            DataError: another width than in ``fit``, or a value that is not finite.
        """
        self._check_fitted()
        return project_blocks(self._project_texts, text_features, self.n_text_features_, self.n_bits, "text features")

    def _project(self, features: NDArray[np.float64]) -> NDArray[np.float64]:
        return self.image_(features)

    def _project_texts(self, features: NDArray[np.float64]) -> NDArray[np.float64]:
        return self.text_(features)

    def state(self) -> dict[str, NDArray[Any]]:
        """The layers of both hash functions, under ``image.`` and ``text.``."""
        return self.image_.state("image") | self.text_.state("text")

    def _set_state(self, state: dict[str, NDArray[Any]]) -> None:
        self.image_, self.text_ = (
            Side.from_state(state, name, self.n_layers, self.n_bits, self.activation) for name in ("image", "text")
        )
        self.n_text_features_ = len(self.text_.mean)


def _checked(features: NDArray[Any], side: str) -> NDArray[Any]:
    try:
        return check_features(features)
    except DataError as error:
        raise DataError(f"{side} {error}") from error


# Two small networks side by side, one for images and one for texts, and their training inputs.

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
    :mod:`distillhash.methods.linear_algebra`), scaled by their correlations: directions that say nothing about the other modality
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
