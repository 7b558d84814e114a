"""The contract of the cross-modal methods: one code space, two ways in.

A cross-modal hasher *is* a hasher of images: ``project``, ``encode``, ``save`` and everything that indexes, searches and measures images
work on it unchanged. It learns from images and texts together, and encodes texts as well.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray

from distillhash.codes import Codes
from distillhash.errors import DataError, ParameterError
from distillhash.methods.base import Hasher, TrainingSet, check_features, project_blocks

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
    uses_views: ClassVar[bool] = False

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
