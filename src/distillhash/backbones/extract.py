"""From a source to features: read, look up, decode, embed, keep; in order, batch by batch, with bounded memory.

On a CPU every core runs one worker that takes whole batches from reading to features with one thread of its own: two such
workers are faster than one forward pass spread over two threads. On an accelerator the workers decode and the device embeds,
one batch at a time.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache as cache_once

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distillhash.backbones.base import BATCH, Backbone
from distillhash.backbones.cache import FeatureCache, FeatureStore
from distillhash.backbones.views import ViewSettings, augment
from distillhash.errors import DataError, ParameterError
from distillhash.progress import Progress
from distillhash.sources import (
    MAX_PIXELS,
    BadItemError,
    EmbeddingSource,
    ImageSource,
    Skipped,
    Source,
    decode_resized,
    digest,
)

VECTOR_BLOCK = 4096
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # glibc, malloc.h


@dataclass(frozen=True)
class FeatureBatch:
    """Features of some rows of a source, in order, and the items among them that could not be used.

    Attributes:
        rows: ``(b,)`` rows of the source.
        features: ``(b, d) float32``.
        skipped: Items without features.
    """

    rows: NDArray[np.intp]
    features: NDArray[np.float32]
    skipped: list[Skipped] = field(default_factory=list)


@dataclass(frozen=True)
class FeatureTable:
    """Features of a whole source.

    Attributes:
        rows: ``(m,)`` rows of the source.
        features: ``(m, d) float32``.
        views: ``(n_views, m, d) float32`` of augmented copies, or None.
        skipped: Items without features.
    """

    rows: NDArray[np.intp]
    features: NDArray[np.float32]
    views: NDArray[np.float32] | None
    skipped: list[Skipped]


def extract_features(
    source: Source,
    backbone: Backbone,
    *,
    cache: FeatureCache | None = None,
    n_views: int = 0,
    seed: int = 0,
    settings: ViewSettings | None = None,
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
        progress: Show progress on stderr.
        max_pixels: Images above this are skipped; None takes the decoder's limit.

    Raises:
        DataError: nothing usable, or too large for memory.
    """
    batches = list(iter_features(source, backbone, cache=cache, progress=progress, max_pixels=max_pixels))
    skipped = [item for batch in batches for item in batch.skipped]
    rows = np.concatenate([batch.rows for batch in batches]) if batches else np.zeros(0, np.intp)
    if not len(rows):
        first = f"; first {skipped[0].key}: {skipped[0].reason}" if skipped else ""
        raise DataError(f"nothing usable in {source.name}: all {len(source)} items were skipped{first}")
    features = np.concatenate([batch.features for batch in batches])
    views = None
    if n_views:
        usable = source.select(rows)
        views = np.empty((n_views, len(rows), features.shape[1]), np.float32)
        for number in range(n_views):
            view = _View(settings or ViewSettings(), seed, number)
            label = f"view {number + 1} of {n_views}"
            parts = _iterate(usable, backbone, cache, view, label if progress else None, max_pixels)
            views[number] = np.concatenate([part.features for part in parts])
    return FeatureTable(rows, features, views, skipped)


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


@dataclass(frozen=True)
class _View:
    settings: ViewSettings
    seed: int
    number: int

    def key(self, content: bytes) -> bytes:
        return content + self.number.to_bytes(4, "big")

    def seeds(self, content: bytes) -> Sequence[int]:
        return (self.seed, self.number, int.from_bytes(content, "big"))


def _iterate(
    source: Source,
    backbone: Backbone,
    cache: FeatureCache | None,
    view: _View | None,
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
        identity = backbone.fingerprint + (f"{view.settings.identity()}:{view.seed}" if view else "")
        store = cache.store(identity, backbone.dim)
    try:
        with Progress(label or "", len(source), quiet=label is None) as shown:
            for batch in _in_order(_Worker(source, backbone, store, view, limit), len(source)):
                shown.advance(len(batch.rows) + len(batch.skipped))
                yield batch
    finally:
        if store is not None:
            store.close()


def _in_order(worker: _Worker, n: int) -> Iterator[FeatureBatch]:
    """Batches of rows through a pool of workers, results in order, a bounded number in flight."""
    keep_freed_memory()
    n_workers = _cores()
    starts = iter(range(0, n, BATCH))
    pool = ThreadPoolExecutor(
        n_workers, thread_name_prefix="features", initializer=torch.set_num_threads, initargs=(1,)
    )
    pending: deque[Future[FeatureBatch]] = deque()
    try:
        for start in starts:
            pending.append(pool.submit(worker, np.arange(start, min(start + BATCH, n))))
            if len(pending) >= 2 * n_workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@cache_once
def keep_freed_memory() -> None:
    """Let glibc keep freed activations for the next batch instead of returning them to the system.

    A forward pass frees and takes tens of megabytes a layer. By default each goes back to the kernel and is faulted in again page by
    page, which costs a third of the time on two cores. One arena, because a thread's own is too small for such blocks. Elsewhere
    than on glibc this does nothing.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        for parameter, value in ((_M_ARENA_MAX, 1), (_M_MMAP_THRESHOLD, 2**30), (_M_TRIM_THRESHOLD, 2**31 - 1)):
            libc.mallopt(parameter, value)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Worker:
    """Takes one batch of rows from content to features."""

    def __init__(
        self, source: ImageSource, backbone: Backbone, store: FeatureStore | None, view: _View | None, max_pixels: int
    ) -> None:
        self._source, self._backbone, self._store, self._view = source, backbone, store, view
        self._max_pixels = max_pixels
        # A device runs one batch at a time; CPU workers do not wait for one another.
        self._turn: threading.Lock | None = None if backbone.device == "cpu" else threading.Lock()
        backbone.embed(np.zeros((0, backbone.image_size, backbone.image_size, 3), np.uint8))
        _ = backbone._inference  # built once, before the workers race for it

    def __call__(self, rows: NDArray[np.intp]) -> FeatureBatch:
        contents, skipped = self._read(rows)
        digests = {row: digest(content) for row, content in contents.items()}
        keys = {row: self._view.key(value) if self._view else value for row, value in digests.items()}
        found = self._store.get(list(keys.values())) if self._store is not None else {}
        missing = [row for row in contents if keys[row] not in found]
        pixels: dict[int, NDArray[np.uint8]] = {}
        for row in missing:
            try:
                pixels[row] = decode_resized(contents[row], self._backbone.image_size, self._max_pixels)
            except BadItemError as error:
                skipped[row] = Skipped(self._source.keys[row], str(error))
        if pixels:
            computed = self._embed(np.stack(list(pixels.values())), [digests[row] for row in pixels])
            if self._store is not None:
                self._store.put([keys[row] for row in pixels], computed)
            found |= {keys[row]: feature for row, feature in zip(pixels, computed, strict=True)}
        usable = [row for row in contents if row not in skipped]
        features = [found[keys[row]] for row in usable]
        table = np.stack(features) if features else np.zeros((0, self._backbone.dim), np.float32)
        return FeatureBatch(np.array(usable, np.intp), table, [skipped[row] for row in sorted(skipped)])

    def _read(self, rows: NDArray[np.intp]) -> tuple[dict[int, bytes | NDArray[np.uint8]], dict[int, Skipped]]:
        contents: dict[int, bytes | NDArray[np.uint8]] = {}
        skipped: dict[int, Skipped] = {}
        for row in rows.tolist():
            try:
                contents[row] = self._source.read(row)
            except BadItemError as error:
                skipped[row] = Skipped(self._source.keys[row], str(error))
        return contents, skipped

    def _embed(self, pixels: NDArray[np.uint8], digests: Sequence[bytes]) -> NDArray[np.float32]:
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
        if self._view is not None:
            images = augment(images, [self._view.seeds(value) for value in digests], self._view.settings)
        if self._turn is None:
            return self._backbone.embed_floats(images)
        with self._turn:
            return self._backbone.embed_floats(images)
