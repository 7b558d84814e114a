"""CrossModalModel: a backbone, a text encoder and an image-text hasher, from images and sentences to codes of one space.

It is a :class:`~distillhash.models.hash_model.HashModel` for images, so an index, a search by image and reports work with it as with any
other. The ``config.json`` of its model folder also describes the text encoder, with its vocabulary where it learned one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from distillhash.codes import Codes
from distillhash.errors import DataError, FormatError, NotFittedError, ParameterError
from distillhash.methods import Hasher, method_names
from distillhash.models.hash_model import DEFAULT_VIEWS, HashModel
from distillhash.sources import Skipped
from distillhash.sources.pairs import PairSource, open_pairs, take_texts
from distillhash.texts import (
    DEFAULT_TEXT_ENCODER,
    TextEncoder,
    make_text_encoder,
    text_encoder_from_config,
    unfamiliar_texts,
)

if TYPE_CHECKING:
    from distillhash.backbones import Engine, FeatureCache
    from distillhash.methods.image_text import CrossModalHasher


@dataclass(frozen=True)
class PairFeatures:
    """Features of the usable part of a source of image-text pairs."""

    rows: NDArray[np.intp]  # (m,): of the source, those of images
    images: NDArray[np.float32]  # (m, d)
    places: NDArray[np.intp]  # (t,): which of the source's texts are in texts
    texts: NDArray[np.float32]  # (t, e)
    owners: NDArray[np.intp]  # (t,): positions in rows of the image of each text
    skipped: list[Skipped]  # items and texts that are in neither
    notes: list[str]  # a sentence for every text that is used although few of its words are known
    views: NDArray[np.float32] | None  # (n_views, m, d): of augmented copies of the images


class CrossModalModel(HashModel):
    """From images and texts to codes of one space.

    The rest is :class:`~distillhash.models.hash_model.HashModel`'s. ``encode`` encodes images; ``fit`` takes whatever
    :func:`distillhash.sources.pairs.open_pairs` takes, and cannot fine-tune.

    Attributes:
        notes_: Texts that :meth:`fit` used although the encoder knows few of their words, a sentence each.
    """

    _CONFIG_HAS = "text_encoder"
    hasher: CrossModalHasher  # narrower than HashModel's, as the constructor checks

    def __init__(
        self,
        backbone: str = "efficientnet-lite0",
        hasher: Hasher | None = None,
        *,
        text_encoder: str | TextEncoder = DEFAULT_TEXT_ENCODER,
        image_size: int | None = None,
        weights: str | Path | None = None,
        backbone_options: Mapping[str, Any] | None = None,
        device: str = "auto",
        engine: Engine = "auto",
        cache: FeatureCache | None = None,
    ) -> None:
        """Store the parts, as :class:`~distillhash.models.hash_model.HashModel` does; the other arguments are the same.

        ``backbone`` is ``embeddings`` for pairs whose images are vectors already. ``hasher`` is a method of image-text pairs, else this
        raises :class:`ParameterError`. ``text_encoder`` is a name of ``distillhash ls text-encoders``, or an encoder.
        """
        if hasher is not None and not hasher.needs_texts:
            choices = ", ".join(method_names(image_text=True))
            raise ParameterError(f"{hasher.method} does not learn from image-text pairs; choose one of {choices}")
        where: dict[str, Any] = {"device": device, "engine": engine, "cache": cache}
        super().__init__(
            backbone, hasher, image_size=image_size, weights=weights, backbone_options=backbone_options, **where
        )
        self.notes_: list[str] = []
        self._saved_text_encoder: dict[str, Any] | None = None
        if isinstance(text_encoder, TextEncoder):
            self.text_encoder = text_encoder
            self._text_name = text_encoder.name
        else:
            self._text_name = text_encoder

    @cached_property
    def text_encoder(self) -> TextEncoder:
        """The network or vocabulary that maps sentences to vectors, built on first use; a vocabulary is learned in :meth:`fit`."""
        if self._saved_text_encoder is not None:
            return text_encoder_from_config(
                self._saved_text_encoder, device=self._device, allow_download=self._allow_download
            )
        return make_text_encoder(self._text_name, device=self._device)

    def _open_training(self, source: Any) -> PairSource:
        pairs = open_pairs(source)
        self._open(pairs.images)
        if isinstance(pairs.texts, np.ndarray) != (self._text_name == "embeddings"):
            kinds = ("text vectors", "texts") if self._text_name == "embeddings" else ("texts", "text vectors")
            raise DataError(
                f"this model takes {kinds[0]} (text encoder {self._text_name}), but {pairs.name} holds {kinds[1]}"
            )
        return pairs

    def _learn(self, sample: PairSource, *, fine_tune: bool, n_views: int | None, **options: Any) -> dict[str, Any]:
        assert not fine_tune  # no hasher of image-text pairs fine-tunes
        self._choose_size(sample.images.select(np.unique(sample.owners)), quiet=not options["progress"])
        n_views = DEFAULT_VIEWS if n_views is None else n_views
        if isinstance(sample.texts, list):
            self.text_encoder.fit(sample.texts)
        pairs = self.pair_features(sample, n_views=n_views, **options)
        kept, owners = np.unique(pairs.owners, return_inverse=True)  # images that have a usable text
        views = None if pairs.views is None else pairs.views[:, kept]
        self.hasher.fit(pairs.images[kept], pairs.texts, owners=owners, views=views)
        self.skipped_, self.notes_ = pairs.skipped, pairs.notes
        return {"n_used": len(kept), "n_texts": len(pairs.texts), "n_views": n_views}

    def pair_features(
        self, source: Any, *, n_views: int = 0, progress: bool = False, max_pixels: int | None = None
    ) -> PairFeatures:
        """Features of both sides of a source of image-text pairs, and of ``n_views`` augmented copies of the images."""
        opened = self._open_training(source)
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
        texts = take_texts(opened.texts, places)
        return PairFeatures(
            table.rows,
            table.features,
            places,
            np.asarray(texts, np.float32) if isinstance(texts, np.ndarray) else self.text_encoder.encode(texts),
            position[opened.owners[places]],
            skipped,
            [text.reason for text in odd if text.usable],
            table.views,
        )

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

    @classmethod
    def from_contents(cls, config: dict[str, Any], tensors: dict[str, NDArray[Any]], **options: Any) -> Self:
        """See :meth:`HashModel.from_contents`."""
        encoder = config["text_encoder"]
        if not isinstance(encoder, dict) or not isinstance(encoder.get("name"), str):
            raise FormatError(f"text_encoder in the model's config.json must describe one, got {encoder!r:.80}")
        model = super().from_contents(config, tensors, text_encoder=encoder["name"], **options)
        model._saved_text_encoder = encoder
        return model

    def __repr__(self) -> str:
        return f"CrossModalModel(backbone={self.backbone_name!r}, text_encoder={self._text_name!r}, hasher={self.hasher!r})"
