"""HashModel: a backbone and a hasher, from images or vectors to codes.

A model folder holds ``config.json`` (format version, method, hyper-parameters, backbone with its preprocessing and weight
fingerprint, what it was trained on) and ``model.safetensors`` (the hasher; after fine-tuning the backbone as well).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from distillhash.codes import Codes
from distillhash.errors import DataError, FormatError, NotFittedError, ParameterError, SkippedItemsWarning
from distillhash.methods import Hasher
from distillhash.methods.base import read_model_folder, sample_rows, write_model_folder
from distillhash.methods.registry import default_views, hasher_from, uses_teacher
from distillhash.sources import EmbeddingSource, ImageSource, Skipped, Source, open_source

if TYPE_CHECKING:
    from distillhash.backbones import Backbone, FeatureCache
    from distillhash.backbones.extract import Known
    from distillhash.methods.training import TrainableImages


_BACKBONE_PREFIX = "backbone."
SourceLike = Any  # a specification, a Source, an (n, d) array, or a list of paths: whatever open_source takes


@dataclass(frozen=True)
class Encoded:
    """Codes of a source, in its order.

    Attributes:
        codes: ``m`` codes.
        rows: ``(m,)`` rows of the source they belong to.
        features: ``(m, d) float32`` the codes were made from.
        skipped: The items that could not be used.
        digests: Content digest of each row; empty for vectors, unless ``known`` was given.
        known: Rows that ``known`` recognised; they have no code.
    """

    codes: Codes
    rows: NDArray[np.intp]
    features: NDArray[np.float32]
    skipped: list[Skipped]
    digests: list[bytes]
    known: NDArray[np.intp]


class HashModel:
    """From images, or vectors, to codes.

    Attributes:
        hasher: The method, fitted by :meth:`fit`.
        backbone_name: Name of the feature extractor; ``embeddings`` for sources that are vectors already.
        fingerprint: Identity of the trained model; None before :meth:`save`. Indexes refuse codes of another model by it.
        training: Facts about the training source, after :meth:`fit`.
        skipped_: Items that :meth:`fit` could not use.
    """

    def __init__(
        self,
        backbone: str = "efficientnet-lite0",
        hasher: Hasher | None = None,
        *,
        image_size: int | None = None,
        weights: str | Path | None = None,
        device: str = "auto",
        cache: FeatureCache | None = None,
    ) -> None:
        """Store the parts; weights are read when they are first needed.

        Args:
            backbone: A name of ``distillhash ls backbones``.
            hasher: An unfitted or fitted method from :func:`distillhash.make_hasher`.
            image_size: Side in pixels that images are resized to; None takes the backbone's own.
            weights: Weights file for backbones that do not carry theirs.
            device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
            cache: Where features are kept between runs; None keeps none.

        Raises:
            ParameterError: no hasher.
        """
        if not isinstance(hasher, Hasher):
            raise ParameterError("HashModel needs a hasher; make one with make_hasher(method, n_bits)")
        self.backbone_name = backbone
        self.hasher = hasher
        self.cache = cache
        self.fingerprint: str | None = None
        self.training: dict[str, Any] = {}
        self.skipped_: list[Skipped] = []
        self._backbone: Backbone | None = None
        self._image_size, self._weights, self._device = image_size, weights, device
        self._backbone_config: dict[str, Any] | None = None
        self._backbone_tensors: dict[str, NDArray[Any]] = {}

    @property
    def n_bits(self) -> int:
        """Code length."""
        return self.hasher.n_bits

    @property
    def device(self) -> str:
        """Where the backbone runs: ``cpu``, ``cuda`` or ``mps``."""
        from distillhash.backbones.base import choose_device

        return choose_device(self._device)

    @property
    def backbone(self) -> Backbone:
        """The feature extractor, built on first use."""
        from distillhash.backbones import backbone_from_config, make_backbone

        if self._backbone is None:
            if self._backbone_config is None:
                self._backbone = make_backbone(
                    self.backbone_name, image_size=self._image_size, weights=self._weights, device=self._device
                )
            else:
                self._backbone = backbone_from_config(self._backbone_config, device=self._device)
                if self._backbone_tensors:
                    self._backbone.load_tensors(self._backbone_tensors)
                expected = self._backbone_config["fingerprint"]
                if self._backbone.fingerprint != expected:
                    raise FormatError(
                        f"the weights of backbone {self.backbone_name} ({self._backbone.fingerprint}) are not those the model "
                        f"was trained with ({expected}); give the same weights file or package version"
                    )
        return self._backbone

    def fit(
        self,
        source: SourceLike,
        *,
        n_views: int | None = None,
        fine_tune: bool = False,
        max_images: int = 50_000,
        max_pixels: int | None = None,
        progress: bool = False,
    ) -> Self:
        """Learn from an unlabelled source; labels it may carry are never read.

        Args:
            source: Whatever :func:`distillhash.sources.open_source` takes.
            n_views: Augmented copies of every image whose features training may draw; None takes six for the methods that use views, and
                none for embeddings. With views, `distillhash-contrast` learns from larger images as well (its teacher).
            fine_tune: Train the backbone together with the head (methods that train a head only).
            max_images: Items learned from at most, drawn by the hasher's seed; memory is ``4 d max_images`` bytes a view.
            max_pixels: Images above this are skipped; None takes the decoder's limit.
            progress: Show progress on stderr.

        Returns:
            self.

        Raises:
            DataError: nothing usable in the source, or too little for the method.
            ParameterError: views or fine-tuning asked for where there are no images.
        """
        opened = self._open(source)
        if max_images < 2:
            raise ParameterError(f"max_images must be at least 2, got {max_images}")
        if n_views is None:
            n_views = 0 if isinstance(opened, EmbeddingSource) else default_views(self.hasher.method)
        if n_views < 0:
            raise ParameterError(f"the number of views must be at least 0, got {n_views}")
        if isinstance(opened, EmbeddingSource) and (n_views or fine_tune):
            raise ParameterError("augmented views and fine-tuning need images; this source holds embeddings")
        if fine_tune and not self.hasher.fine_tunes:
            raise ParameterError(f"{self.hasher.method} cannot fine-tune a backbone; leave out fine-tuning")
        chosen = sample_rows(len(opened), max_images, np.random.default_rng(self.hasher.seed))
        sample = opened if len(chosen) == len(opened) else opened.select(chosen)
        teacher = bool(n_views) and uses_teacher(self.hasher.method)
        table = self._extract(sample, n_views=n_views, teacher=teacher, progress=progress, max_pixels=max_pixels)
        self.skipped_ = table.skipped
        images = self._trainable(sample.select(table.rows)) if fine_tune else None
        self.hasher.fit(table.features, views=table.views, images=images, teacher=table.teacher)
        if images is not None:
            self.backbone.refresh()
        self.training = {
            "source": opened.name,
            "n_items": len(opened),
            "n_used": len(table.rows),
            "n_views": n_views,
            "fine_tuned": fine_tune,
        }
        self.fingerprint = None
        return self

    def _extract(
        self, source: Source, *, n_views: int, progress: bool, max_pixels: int | None, teacher: bool = False
    ) -> Any:
        from distillhash.backbones import extract_features

        return extract_features(
            source,
            self.backbone,
            cache=self.cache,
            n_views=n_views,
            seed=self.hasher.seed,
            teacher=teacher,
            progress=progress,
            max_pixels=max_pixels,
        )

    def _trainable(self, source: Source) -> TrainableImages:
        from distillhash.backbones import ImageInputs
        from distillhash.methods.training import TrainableImages

        assert isinstance(source, ImageSource)
        return TrainableImages(ImageInputs(source, self.backbone), self.backbone.network)

    def encode(self, source: SourceLike, *, progress: bool = False) -> Codes:
        """Codes of a source's items, in its order.

        An item that cannot be read has no code: the result is then shorter than the source and a
        :class:`~distillhash.errors.SkippedItemsWarning` says so. Use :meth:`encode_batches` to know which items.

        Raises:
            NotFittedError: before :meth:`fit`.
            DataError: nothing usable in the source.
        """
        import warnings

        encoded = list(self.encode_batches(source, progress=progress))
        skipped = [item for batch in encoded for item in batch.skipped]
        codes = concatenate([batch.codes for batch in encoded], self.n_bits)
        if not len(codes):
            raise DataError(_nothing_usable(str(source), skipped))
        if skipped:
            warnings.warn(
                f"{len(skipped)} items could not be used and have no code, first {skipped[0].key}: {skipped[0].reason}",
                SkippedItemsWarning,
                stacklevel=2,
            )
        return codes

    def encode_batches(
        self,
        source: SourceLike,
        *,
        known: Known | None = None,
        progress: bool = False,
        max_pixels: int | None = None,
    ) -> Iterator[Encoded]:
        """Codes batch by batch, in the source's order; memory does not grow with the source.

        ``known`` names items that are read but get no code, see :func:`distillhash.backbones.iter_features`.

        Raises:
            NotFittedError: before :meth:`fit`.
        """
        from distillhash.backbones import iter_features

        if not self.hasher.is_fitted:
            raise NotFittedError("this model is not trained; call fit(source), or load one with load_model(folder)")
        opened = self._open(source)
        batches = iter_features(
            opened, self.backbone, cache=self.cache, known=known, progress=progress, max_pixels=max_pixels
        )
        for batch in batches:
            codes = self.hasher.encode(batch.features)
            yield Encoded(codes, batch.rows, batch.features, list(batch.skipped), batch.digests, batch.known)

    def _open(self, source: SourceLike) -> Source:
        opened = open_source(source)
        wants_vectors = self.backbone_name == "embeddings"
        if isinstance(opened, EmbeddingSource) != wants_vectors:
            kinds = ("embeddings", "images") if wants_vectors else ("images", "embeddings")
            raise DataError(
                f"this model takes {kinds[0]} (backbone {self.backbone_name}), but {opened.name} holds {kinds[1]}"
            )
        return opened

    def save(self, path: str | Path) -> None:
        """Write the model folder (created if absent); see the module's text for its files."""
        tensors = dict(self.hasher.state())
        if self.training.get("fine_tuned"):
            tensors |= {_BACKBONE_PREFIX + name: array for name, array in self.backbone.tensors().items()}
        write_model_folder(path, self.model_config(), tensors)
        self.fingerprint = read_model_folder(path)[0]["fingerprint"]

    def model_config(self) -> dict[str, Any]:
        """What ``config.json`` says: the hasher's part, the backbone with its fingerprint, the training.

        Raises:
            NotFittedError: before :meth:`fit`.
        """
        config = self.hasher.config()
        config["backbone"] = {**self.backbone.config(), "fingerprint": self.backbone.fingerprint}
        config["training"] = self.training
        return config

    def __repr__(self) -> str:
        return f"HashModel(backbone={self.backbone_name!r}, hasher={self.hasher!r})"


def load_model(path: str | Path, *, device: str = "auto", cache: FeatureCache | None = None) -> HashModel:
    """Read a model that :meth:`HashModel.save` wrote.

    Args:
        path: The folder.
        device: Where its backbone runs.
        cache: Where features are kept between runs.

    Raises:
        FormatError: the folder is absent, damaged, of a newer format, or holds a hasher without a backbone.
    """
    config, tensors = read_model_folder(path)
    if "backbone" not in config:
        raise FormatError(f"{path} holds a hasher without a backbone; read it with load_hasher")
    own = {name: array for name, array in tensors.items() if not name.startswith(_BACKBONE_PREFIX)}
    hasher = hasher_from(config, own)
    model = _bare_model(config, hasher, device=device, cache=cache)
    model._backbone_config = config["backbone"]
    model._backbone_tensors = {
        name.removeprefix(_BACKBONE_PREFIX): array for name, array in tensors.items() if name not in own
    }
    model.training = config.get("training", {})
    model.fingerprint = config["fingerprint"]
    return model


def _bare_model(config: dict[str, Any], hasher: Hasher, *, device: str, cache: FeatureCache | None) -> HashModel:
    name, text = config["backbone"]["name"], config.get("text_encoder")
    if text is None:
        return HashModel(name, hasher, device=device, cache=cache)
    from distillhash.models.image_text import CrossModalModel

    model = CrossModalModel(name, hasher, text_encoder=text["name"], device=device, cache=cache)
    model._text_config = text
    return model


def concatenate(parts: list[Codes], n_bits: int) -> Codes:
    """All codes of ``parts`` one after another."""
    packed = [part.packed for part in parts] or [np.zeros((0, -(-n_bits // 8)), np.uint8)]
    return Codes.from_packed(np.concatenate(packed), n_bits)


def _nothing_usable(name: str, skipped: list[Skipped]) -> str:
    first = f"; first {skipped[0].key}: {skipped[0].reason}" if skipped else ""
    return f"nothing usable in {name}: {len(skipped)} items skipped{first}"
