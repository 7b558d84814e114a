"""What the methods for image-text pairs share: one code space for both modalities, one hash function for each.

An image-text hasher *is* a hasher of images: ``project``, ``encode``, ``save`` and everything that indexes, searches and measures images
work on it unchanged. It learns from images and texts together, and encodes texts as well.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray

from distillhash.codes import Codes
from distillhash.errors import DataError, ParameterError
from distillhash.methods.base import Activation, AffineLayers, Hasher, TrainingSet, check_features, project_blocks
from distillhash.methods.heads import affine, linear
from distillhash.methods.linear_algebra import canonical_directions, procrustes_rotation
from distillhash.methods.training import Batch
from distillhash.pytorch import nn, torch
from distillhash.supervision.agreement import scatter_of_views

InputKind = Literal["correlated", "features"]


@dataclass(frozen=True)
class TrainingPairs:
    """What an image-text method learns from."""

    images: NDArray[Any]  # (n, d)
    texts: NDArray[Any]  # (t, e), t >= n
    owners: NDArray[np.intp]  # (t,), the image of each text; every image has at least one
    views: NDArray[Any] | None = None  # (n_views, n, d) of augmented copies of the images

    def mean_texts(self) -> NDArray[np.float64]:
        """``(n, e)``: the mean of each image's texts."""
        sums = np.zeros((len(self.images), self.texts.shape[1]))
        np.add.at(sums, self.owners, np.asarray(self.texts, np.float64))
        return sums / np.bincount(self.owners, minlength=len(self.images))[:, None]

    def draw_texts(self, rows: NDArray[np.intp], rng: np.random.Generator) -> NDArray[np.intp]:
        """Text rows: a random one of each of the image ``rows``."""
        order, counts, starts = self._texts_of_images
        return np.asarray(order[starts[rows] + rng.integers(counts[rows])])

    @cached_property
    def _texts_of_images(self) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]:
        """Text rows ordered by image; how many each image has, and where they start."""
        counts = np.bincount(self.owners, minlength=len(self.images))
        return np.argsort(self.owners, kind="stable"), counts, np.cumsum(counts) - counts


class CrossModalHasher(Hasher):
    """Base of the methods that hash images and texts into one space, by the hash functions ``image_`` and ``text_``."""

    activation: ClassVar[Activation] = "tanh"
    needs_texts: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.n_text_features_: int | None = None

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
        images = check_features(image_features, "image features")
        texts = check_features(text_features, "text features")
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
        for view in () if views is None else views:
            check_features(view, "views")
        self.history_ = {}
        pairs = TrainingPairs(images, texts, rows.astype(np.intp), views if self.uses_views else None)

        def learn() -> None:
            self.image_, self.text_ = self._fit_pairs(pairs)
            self.n_text_features_ = texts.shape[1]

        self._learn(learn, images.shape[1])
        return self.fit_decoder(images)

    @abstractmethod
    def _fit_pairs(self, pairs: TrainingPairs) -> tuple[AffineLayers, AffineLayers]:
        """Learn the hash functions of images and of texts."""

    def _fit(self, given: TrainingSet) -> None:
        raise NotImplementedError("image-text methods learn in _fit_pairs")

    def encode_images(self, image_features: NDArray[Any]) -> Codes:
        """Codes of image features: :meth:`encode` by a name that tells it from :meth:`encode_texts`."""
        return self.encode(image_features)

    def encode_texts(self, text_features: NDArray[Any]) -> Codes:
        """Codes of text features: the sign of :meth:`project_texts`. Row i is text row i."""
        return Codes.from_projection(self.project_texts(text_features))

    def project_texts(self, text_features: NDArray[Any]) -> NDArray[np.float32]:
        """Real outputs of texts before the sign: :meth:`project` for the other modality.

        ``(t, n_bits) float32`` of ``(t, e)`` finite floats; row i depends on text row i only. Errors are those of :meth:`project`.
        """
        self._check_fitted()
        return project_blocks(self.text_, text_features, self.n_text_features_, self.n_bits, "text features")

    def _project(self, features: NDArray[np.float64]) -> NDArray[np.float64]:
        return self.image_(features)

    def state(self) -> dict[str, NDArray[Any]]:
        """The layers of both hash functions, under ``image.`` and ``text.``."""
        return self.image_.state("image.") | self.text_.state("text.")

    def _set_state(self, state: dict[str, NDArray[Any]]) -> None:
        n_layers = max(1, sum(name.startswith("image.weight_") for name in state))
        self.image_, self.text_ = (
            AffineLayers.from_state(state, n_layers, self.n_bits, self.activation, prefix)
            for prefix in ("image.", "text.")
        )
        if len(self.image_.mean) != self.n_features_:
            raise ValueError(f"a mean of {len(self.image_.mean)} features for {self.n_features_}")
        self.n_text_features_ = len(self.text_.mean)

    def _try_out(self) -> None:
        super()._try_out()
        self.project_texts(np.eye(2, len(self.text_.mean)))


def code_rotation(rows: NDArray[np.float64], iterations: int, seed: int) -> tuple[NDArray[np.float64], list[float]]:
    """:func:`procrustes_rotation` of rows of both modalities ``(n, k)``, each scaled to the length of a code, sqrt(k)."""
    lengths = np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    scaled = np.sqrt(rows.shape[1]) * rows / lengths
    return procrustes_rotation(scaled, iterations, np.random.default_rng(seed))


class Standardised:
    """Centred features of a modality, or combinations of them, divided by one scale, which keeps the angles."""

    def __init__(self, features: NDArray[Any], directions: NDArray[np.float64] | None = None) -> None:
        """Measure ``(n, d)`` features; with ``directions (d, k)`` the network sees those combinations of them."""
        self.mean = np.asarray(features, np.float64).mean(axis=0)
        self.directions = directions
        seen = self._seen(features)
        self.scale = float(np.sqrt(np.mean(seen**2))) or 1.0
        self.width = seen.shape[1]

    def _seen(self, features: NDArray[Any]) -> NDArray[np.float64]:
        centred = np.asarray(features, np.float64) - self.mean
        return np.asarray(centred if self.directions is None else centred @ self.directions)

    def __call__(self, features: NDArray[Any]) -> NDArray[np.float32]:
        """``(n, k) float32`` of mean 0 and mean square 1."""
        return np.asarray(self._seen(features) / self.scale, np.float32)

    def fold(self, weight: NDArray[np.float64]) -> NDArray[np.float64]:
        """The weight ``(d, m)`` on centred features that equals ``weight (k, m)`` on what the network sees."""
        return np.asarray((weight if self.directions is None else self.directions @ weight) / self.scale)


def standardise(pairs: TrainingPairs, kind: InputKind, ridge: float) -> tuple[Standardised, Standardised]:
    """The inputs of both networks.

    ``features`` are the features. ``correlated`` are all canonical variables of images and texts, scaled by their correlations:
    directions unrelated to the other modality shrink, which keeps networks from overfitting a few hundred pairs. Where images have
    views, an image is the mean of its views, and directions in which they differ shrink too.
    """
    if kind == "features":
        return Standardised(pairs.images), Standardised(pairs.texts)
    centres, within = np.asarray(pairs.images, np.float64), None
    if pairs.views is not None:
        centres = (centres + pairs.views.sum(axis=0, dtype=np.float64)) / (len(pairs.views) + 1)
        within = scatter_of_views(centres.astype(np.float32), (pairs.images, *pairs.views))
    images, texts = centres[pairs.owners], np.asarray(pairs.texts, np.float64)
    most = min(images.shape[1], texts.shape[1])
    A, B, rho = canonical_directions(images - images.mean(axis=0), texts - texts.mean(axis=0), most, ridge, within)
    return Standardised(centres, A * rho), Standardised(pairs.texts, B * rho)


class Tower(nn.Sequential):
    """The network of one modality: a linear layer on standardised rows, or two with an activation between them."""

    def __init__(
        self, inputs: Standardised, hidden: int, n_outputs: int, activation: Activation, generator: torch.Generator
    ) -> None:
        layers: list[nn.Module] = []
        if hidden:
            layers.append(linear(inputs.width, hidden, generator, gain=2.0 if activation == "relu" else 1.0))
            layers.append(nn.Tanh() if activation == "tanh" else nn.ReLU())
        super().__init__(*layers, linear(hidden or inputs.width, n_outputs, generator))
        self.inputs, self.activation = inputs, activation

    def fold(self) -> AffineLayers:
        """The same function of raw features, in float64."""
        layers = [affine(layer) for layer in self if isinstance(layer, nn.Linear)]
        layers[0] = (self.inputs.fold(layers[0][0]), layers[0][1])
        return AffineLayers(self.inputs.mean, layers, self.activation)


@dataclass(frozen=True)
class PairInputs:
    """Batches of images, each beside one of its texts drawn at random, ``(b, d + e)``. Target: no two rows belong together, ``(b, b)``."""

    images: NDArray[np.float32]  # standardised
    texts: NDArray[np.float32]
    pairs: TrainingPairs

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, rows: NDArray[np.intp], rng: np.random.Generator) -> Batch:
        """A text of every image, drawn anew."""
        texts = self.texts[self.pairs.draw_texts(rows, rng)]
        inputs = torch.from_numpy(np.concatenate([self.images[rows], texts], axis=1))
        return Batch(inputs, rows, (torch.eye(len(rows), dtype=torch.bool),))
