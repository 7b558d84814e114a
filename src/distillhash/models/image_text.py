"""CrossModalModel: a backbone, a text encoder and a cross-modal hasher, from images and sentences to codes of one space.

It is a :class:`~distillhash.models.hash_model.HashModel` for images, so an index, a search by image and reports work with
it as with any other; and it
encodes texts. The model folder is the same: ``config.json`` (which also describes the text encoder, with its vocabulary where it learned
one) and ``model.safetensors``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from distillhash.codes import Codes
from distillhash.errors import DataError, NotFittedError, ParameterError
from distillhash.methods.base import Hasher, sample_rows
from distillhash.methods.image_text import CrossModalHasher
from distillhash.models.hash_model import DEFAULT_VIEWS, HashModel
from distillhash.sources import EmbeddingSource, Skipped
from distillhash.sources.pairs import PairSource, open_pairs
from distillhash.texts import (
    DEFAULT_TEXT_ENCODER,
    TextEncoder,
    make_text_encoder,
    text_encoder_from_config,
    unfamiliar_texts,
)

if TYPE_CHECKING:
    from distillhash.backbones import FeatureCache


PairsLike = Any  # whatever open_pairs takes


@dataclass(frozen=True)
class PairFeatures:
    """Features of the usable part of a source of pairs.

    Attributes:
        rows: ``(m,)`` rows of the source whose images are in ``images``.
        images: ``(m, d) float32``.
        places: ``(t,)``, which of the source's texts are in ``texts``.
        texts: ``(t, e) float32``.
        owners: ``(t,)`` positions in ``rows`` of the image of each text.
        skipped: Items and texts that are in neither.
        remarks: What is odd about texts that are used all the same.
        views: ``(n_views, m, d) float32`` of augmented copies of the images, or None.
    """

    rows: NDArray[np.intp]
    images: NDArray[np.float32]
    places: NDArray[np.intp]
    texts: NDArray[np.float32]
    owners: NDArray[np.intp]
    skipped: list[Skipped]
    remarks: list[str]
    views: NDArray[np.float32] | None


class CrossModalModel(HashModel):
    """From images and texts to codes of one space.

    Attributes:
        remarks_: What :meth:`fit` found odd about texts it used.

    The rest is :class:`~distillhash.models.hash_model.HashModel`'s; its ``encode`` encodes images.
    """

    hasher: CrossModalHasher  # narrower than HashModel's, as the constructor checks

    def __init__(
        self,
        backbone: str = "efficientnet-lite0",
        hasher: Hasher | None = None,
        *,
        text_encoder: str | TextEncoder = DEFAULT_TEXT_ENCODER,
        image_size: int | None = None,
        weights: str | Path | None = None,
        device: str = "auto",
        cache: FeatureCache | None = None,
    ) -> None:
        """Store the parts; the backbone's weights are read when they are first needed.

        Args:
            backbone: A name of ``distillhash ls backbones``; ``embeddings`` for pairs whose images are vectors already.
            hasher: A cross-modal method from :func:`distillhash.make_hasher`.
            text_encoder: A name of ``distillhash ls text-encoders``, or an encoder.
            image_size: Side in pixels that images are resized to; None takes the backbone's own.
            weights: Weights file for backbones that do not carry theirs.
            device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
            cache: Where image features are kept between runs; None keeps none.

        Raises:
            ParameterError: no cross-modal hasher, or an unknown text encoder.
        """
        if not isinstance(hasher, CrossModalHasher):
            raise ParameterError(
                "CrossModalModel needs a cross-modal hasher; make one with make_hasher(method, n_bits)"
            )
        super().__init__(backbone, hasher, image_size=image_size, weights=weights, device=device, cache=cache)
        self.remarks_: list[str] = []
        self._text_encoder = text_encoder if isinstance(text_encoder, TextEncoder) else None
        self._text_name = text_encoder.name if isinstance(text_encoder, TextEncoder) else text_encoder
        self._text_config: dict[str, Any] | None = None

    @property
    def text_encoder(self) -> TextEncoder:
        """What turns sentences into vectors, built on first use; it learns its vocabulary, where it has one, in :meth:`fit`."""
        if self._text_encoder is None:
            if self._text_config is None:
                self._text_encoder = make_text_encoder(self._text_name, device=self._device)
            else:
                self._text_encoder = text_encoder_from_config(self._text_config, device=self._device)
        return self._text_encoder

    def fit(
        self,
        source: PairsLike,
        *,
        n_views: int | None = None,
        fine_tune: bool = False,
        max_images: int = 50_000,
        max_pixels: int | None = None,
        progress: bool = False,
    ) -> Self:
        """Learn from image-text pairs; labels they may carry are never read.

        Args:
            source: Whatever :func:`distillhash.sources.pairs.open_pairs` takes.
            n_views: Augmented copies of every image whose features training may draw; None takes six for the methods that use views, and
                none where the images are vectors already.
            fine_tune: Must be False.
            max_images: Images learned from at most, drawn by the hasher's seed, with all their texts.
            max_pixels: Images above this are skipped; None takes the decoder's limit.
            progress: Show progress on stderr.

        Returns:
            self.

        Raises:
            DataError: no pair is usable, or too few are for the method.
            ParameterError: views or fine-tuning asked for.
        """
        if fine_tune:
            raise ParameterError(
                "cross-modal methods learn from fixed features of images and texts; leave out fine-tuning"
            )
        if max_images < 2:
            raise ParameterError(f"max_images must be at least 2, got {max_images}")
        opened = open_pairs(source)
        vectors = isinstance(opened.images, EmbeddingSource)
        if n_views is None:
            n_views = DEFAULT_VIEWS if self.hasher.uses_views and not vectors else 0
        if n_views < 0:
            raise ParameterError(f"the number of views must be at least 0, got {n_views}")
        if n_views and vectors:
            raise ParameterError("augmented views need images; these pairs hold embeddings")
        chosen = sample_rows(len(opened), max_images, np.random.default_rng(self.hasher.seed))
        sample = opened if len(chosen) == len(opened) else opened.select(chosen)
        self._check_kinds(sample)
        if isinstance(sample.texts, list):
            self.text_encoder.fit(sample.texts)
        pairs = self.pair_features(sample, n_views=n_views, progress=progress, max_pixels=max_pixels)
        kept, owners = np.unique(
            pairs.owners, return_inverse=True
        )  # images without a usable text have nothing to teach
        views = None if pairs.views is None else pairs.views[:, kept]
        self.hasher.fit(pairs.images[kept], pairs.texts, owners=owners, views=views)
        self.skipped_, self.remarks_ = pairs.skipped, pairs.remarks
        self.training = {
            "source": opened.name,
            "n_items": len(opened),
            "n_used": len(kept),
            "n_texts": len(pairs.texts),
            "n_views": n_views,
            "fine_tuned": False,
        }
        self.fingerprint = None
        return self

    def pair_features(
        self, source: PairsLike, *, n_views: int = 0, progress: bool = False, max_pixels: int | None = None
    ) -> PairFeatures:
        """Features of both sides of a source of pairs, and of ``n_views`` augmented copies of the images; and what of it cannot be used.

        Raises:
            DataError: no usable image, or no usable text.
        """
        opened = open_pairs(source)
        self._check_kinds(opened)
        table = self._extract(opened.images, n_views=n_views, progress=progress, max_pixels=max_pixels)
        position = np.full(len(opened), -1, np.intp)
        position[table.rows] = np.arange(len(table.rows))
        odd = unfamiliar_texts(self.text_encoder, opened.texts) if isinstance(opened.texts, list) else []
        usable = position[opened.owners] >= 0
        usable[[text.position for text in odd if not text.usable]] = False
        places = np.flatnonzero(usable)
        skipped = list(opened.unusable()) + table.skipped
        skipped += [Skipped(opened.keys[opened.owners[text.position]], text.reason) for text in odd if not text.usable]
        if not len(places):
            first = f"; first {skipped[0].key}: {skipped[0].reason}" if skipped else ""
            raise DataError(f"{opened.name}: no image has a usable text{first}")
        return PairFeatures(
            table.rows,
            table.features,
            places,
            self._text_features(opened, places),
            position[opened.owners[places]],
            skipped,
            [text.reason for text in odd if text.usable],
            table.views,
        )

    def _check_kinds(self, pairs: PairSource) -> None:
        self._open(pairs.images)
        if isinstance(pairs.texts, np.ndarray) != (self._text_name == "embeddings"):
            kinds = ("text vectors", "texts") if self._text_name == "embeddings" else ("texts", "text vectors")
            raise DataError(
                f"this model takes {kinds[0]} (text encoder {self._text_name}), but {pairs.name} holds {kinds[1]}"
            )

    def _text_features(self, pairs: PairSource, places: NDArray[np.intp]) -> NDArray[np.float32]:
        if isinstance(pairs.texts, np.ndarray):
            return np.asarray(pairs.texts[places], np.float32)
        return self.text_encoder.encode([pairs.texts[place] for place in places.tolist()])

    def encode_texts(self, texts: Sequence[str] | NDArray[Any]) -> Codes:
        """Codes of texts, comparable with the codes of images by Hamming distance.

        Args:
            texts: Sentences, or ``(t, e)`` vectors of the encoder that the model was trained with.

        Returns:
            Codes, row i of text i. Texts of whose words few are known are encoded all the same;
            :func:`distillhash.texts.unfamiliar_texts` names them.

        Raises:
            NotFittedError: before :meth:`fit`.
            DataError: a text of which no word is known, or sentences for a model of text vectors.
        """
        if not self.hasher.is_fitted:
            raise NotFittedError("this model is not trained; call fit(pairs), or load one with load_model(folder)")
        if isinstance(texts, np.ndarray) and texts.dtype.kind in "fiu":
            return self.hasher.encode_texts(texts)
        sentences = [str(text) for text in texts]
        for odd in unfamiliar_texts(self.text_encoder, sentences):
            if not odd.usable:
                raise DataError(odd.reason)
        return self.hasher.encode_texts(self.text_encoder.encode(sentences))

    def model_config(self) -> dict[str, Any]:
        """The configuration of the image side, and the text encoder with what it learned."""
        return {**super().model_config(), "text_encoder": self.text_encoder.config()}

    def __repr__(self) -> str:
        return f"CrossModalModel(backbone={self.backbone_name!r}, text_encoder={self._text_name!r}, hasher={self.hasher!r})"
