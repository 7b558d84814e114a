"""From a source to features: streamed in row order, or gathered in one table, with views on request."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distillhash.backbones.base import Backbone
from distillhash.backbones.cache import FeatureCache
from distillhash.backbones.pipeline import Extraction, FeatureBatch
from distillhash.backbones.views import View, ViewSettings, augment
from distillhash.errors import DataError, ParameterError
from distillhash.progress import Progress
from distillhash.sources import MAX_PIXELS, EmbeddingSource, ImageSource, Skipped, Source, decode_resized

VECTOR_BLOCK = 4096
PIXELS_VERSION = 2
"""How pixels are made: whoever changes decoding, resizing or augmentation raises it, and cached features are computed anew."""


@dataclass(frozen=True)
class FeatureTable:
    """Features of a whole source.

    Attributes:
        rows: ``(m,)`` rows of the source.
        features: ``(m, d) float32``.
        views: ``(n_views, m, d) float32`` of augmented copies, or None.
        skipped: Items without features.
        teacher: ``(m, d) float32`` of the same images at the size that the backbone was trained with, or None.
    """

    rows: NDArray[np.intp]
    features: NDArray[np.float32]
    views: NDArray[np.float32] | None
    skipped: list[Skipped]
    teacher: NDArray[np.float32] | None = None


def extract_features(
    source: Source,
    backbone: Backbone,
    *,
    cache: FeatureCache | None = None,
    n_views: int = 0,
    seed: int = 0,
    settings: ViewSettings | None = None,
    teacher: bool = False,
    progress: bool = False,
    max_pixels: int | None = None,
) -> FeatureTable:
    """Features of every usable item, in memory.

    Args:
        source: Images or vectors.
        backbone: What turns images into features.
        cache: Where features are kept between runs; None keeps none.
        n_views: Augmented copies to embed as well.
        seed: Draws the views; a view of an image depends on the seed, its number and the image's content alone.
        settings: How strongly views differ.
        teacher: Embed the images at the size that the backbone was trained with as well, where they are smaller now.
        progress: Show progress on stderr.
        max_pixels: Images above this are skipped; None takes the decoder's limit.

    Raises:
        DataError: nothing usable, or too much for memory.
        ParameterError: views of vectors.
    """
    if n_views and isinstance(source, EmbeddingSource):
        raise ParameterError(
            f"augmented views need images, but {source.name} holds vectors; ask for 0 views, not {n_views}"
        )
    batches = iter_features(source, backbone, cache=cache, progress=progress, max_pixels=max_pixels)
    rows, features, skipped = _gather(batches, len(source))
    if not len(rows):
        first = f"; first {skipped[0].key}: {skipped[0].reason}" if skipped else ""
        raise DataError(f"nothing usable in {source.name}: all {len(source)} items were skipped{first}")
    usable = source.select(rows)

    def again(table: NDArray[np.float32], network: Backbone, view: View | None, label: str) -> None:
        for part in _iterate(usable, network, cache, view, label if progress else None, max_pixels):
            if part.skipped:
                lost = part.skipped[0]
                raise DataError(f"{lost.key} could be read a moment ago and cannot be now: {lost.reason}; run it again")
            table[part.rows] = part.features

    views = _table((n_views, *features.shape)) if n_views else None
    for number in range(n_views):
        assert views is not None
        view = View(settings or ViewSettings(), seed, number)
        again(views[number], backbone, view, f"view {number + 1} of {n_views}")
    larger = backbone.enlarged() if teacher else None
    guiding = None
    if larger is not None:
        guiding = _table(features.shape)
        again(guiding, larger, None, f"at {larger.image_size} pixels")
    return FeatureTable(rows, features, views, skipped, guiding)


def iter_features(
    source: Source,
    backbone: Backbone,
    *,
    cache: FeatureCache | None = None,
    progress: bool = False,
    max_pixels: int | None = None,
) -> Iterator[FeatureBatch]:
    """Features batch by batch, in row order; memory does not grow with the source.

    A row of the result depends on the item's content alone: not on the rest of its batch, on what the cache held, or on the
    number of workers.
    """
    return _iterate(source, backbone, cache, None, "features" if progress else None, max_pixels)


class ImageInputs:
    """Images as inputs of a trainable backbone: decoded, augmented, normalised. See :class:`distillhash.training.Inputs`."""

    def __init__(self, source: ImageSource, backbone: Backbone, settings: ViewSettings | None = None) -> None:
        """Keep references; every item of ``source`` must be readable."""
        self._source, self._backbone, self._settings = source, backbone, settings or ViewSettings()

    def __len__(self) -> int:
        return len(self._source)

    def batch(self, rows: NDArray[np.intp], rng: np.random.Generator) -> Tensor:
        """``(len(rows), 3, size, size)`` augmented and normalised images."""
        size = self._backbone.image_size
        images = np.stack([decode_resized(self._source.read(int(row)), size) for row in rows])
        seeds = rng.integers(2**63, size=(len(rows), 1)).tolist()
        views = augment(torch.from_numpy(images).permute(0, 3, 1, 2), seeds, self._settings)
        return self._backbone.normalise(views)

    def pair(self, rows: NDArray[np.intp], rng: np.random.Generator, noise: float) -> tuple[Tensor, Tensor]:
        """Two augmentations of the same images; ``noise`` is for inputs that have none."""
        del noise
        return self.batch(rows, rng), self.batch(rows, rng)


def _iterate(
    source: Source,
    backbone: Backbone,
    cache: FeatureCache | None,
    view: View | None,
    label: str | None,
    max_pixels: int | None,
) -> Iterator[FeatureBatch]:
    limit = MAX_PIXELS if max_pixels is None else max_pixels
    if limit < 1:
        raise ParameterError(f"the pixel limit must be at least 1, got {limit}")
    if isinstance(source, EmbeddingSource):
        for start in range(0, len(source), VECTOR_BLOCK):
            block = np.array(source.vectors[start : start + VECTOR_BLOCK], np.float32)
            yield FeatureBatch(np.arange(start, start + len(block)), block)
        return
    assert isinstance(source, ImageSource)
    store = None
    if cache is not None:
        store = cache.store(_identity(backbone, view), backbone.dim)
    try:
        with Progress(label or "", len(source), quiet=label is None) as shown:
            for batch in Extraction(source, backbone, store, view, limit).batches():
                shown.advance(len(batch.rows) + len(batch.skipped))
                yield batch
    finally:
        if store is not None:
            store.close()


def _identity(backbone: Backbone, view: View | None) -> str:
    """What features depend on besides the content."""
    parts = [f"{backbone.fingerprint}/{PIXELS_VERSION}"]
    if backbone.device != "cpu":
        parts.append(f"@{backbone.device.partition(':')[0]}:")  # other arithmetic, other last bits
    if view is not None:
        parts.append(f"{view.settings.identity()}:{view.seed}")
    return "".join(parts)


def _gather(batches: Iterable[FeatureBatch], n: int) -> tuple[NDArray[np.intp], NDArray[np.float32], list[Skipped]]:
    """All of at most ``n`` rows, each batch dropped once it is copied."""
    rows, skipped, filled = np.empty(n, np.intp), list[Skipped](), 0
    features: NDArray[np.float32] = np.empty((0, 0), np.float32)
    for batch in batches:
        skipped += batch.skipped
        if not len(batch.rows):
            continue
        if not filled:
            features = _table((n, batch.features.shape[1]))
        end = filled + len(batch.rows)
        rows[filled:end], features[filled:end] = batch.rows, batch.features
        filled = end
    return rows[:filled], features[:filled], skipped


def _table(shape: tuple[int, ...]) -> NDArray[np.float32]:
    try:
        return np.empty(shape, np.float32)
    except MemoryError as error:
        size = 4 * np.prod(shape, dtype=np.int64) / 2**30
        raise DataError(
            f"features of shape {shape} need {size:.1f} GiB of memory, more than there is; take fewer items or views"
        ) from error
