"""From a source to features: streamed in row order, or gathered in one table, with views on request."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits
from torch import Tensor

from distillhash.backbones.base import Backbone
from distillhash.backbones.cache import FeatureCache, FeatureStore
from distillhash.backbones.views import View, ViewSettings, augment
from distillhash.errors import DataError, ParameterError
from distillhash.progress import Progress
from distillhash.sources import (
    MAX_PIXELS,
    BadItemError,
    EmbeddingSource,
    ImageSource,
    Skipped,
    Source,
    check_pixel_limit,
    decode_resized,
    digest,
)

# The machinery of extraction: read, look up, decode, embed, keep; in row order, with bounded memory.
#
# One pool of workers, a core each, reads ahead; what the cache lacks is gathered into full forward passes, whichever rows it comes from,
# so a source with a few new images costs those and no more. On a CPU the same workers run the passes with one thread each: two of them
# are faster than one pass spread over two threads. On an accelerator one thread feeds the device.
#
# Memory: the features of at most ``WINDOW`` chunks, and for each worker two chunks being read and two passes being embedded.

CHUNK = 16
"""Rows read and looked up together, and rows of one :class:`FeatureBatch`."""

WINDOW = 64
"""Chunks that may wait for features: rows that are in the cache run ahead this far of a pass that is not full yet."""

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


@dataclass
class _Missing:
    """An image that the cache lacks: its digest, its pixels, and the row of its chunk's features to fill."""

    content: bytes
    pixels: NDArray[np.uint8]
    out: NDArray[np.float32]


@dataclass
class _Chunk:
    """Rows on their way: what is known of them, how many wait for a pass, and the passes that fill them."""

    batch: FeatureBatch
    n_waiting: int
    passes: list[Future[None]] = field(default_factory=list)

    def is_ready(self) -> bool:
        return self.n_waiting == 0 and all(done.done() for done in self.passes)

    def result(self) -> FeatureBatch:
        for done in self.passes:
            done.result()
        return self.batch


class Extraction:
    """One pass over a source: plain features, or one view of every image."""

    def __init__(
        self, source: ImageSource, backbone: Backbone, store: FeatureStore | None, view: View | None, max_pixels: int
    ) -> None:
        """Keep references; nothing is read yet."""
        self._source, self._backbone, self._store, self._view = source, backbone, store, view
        self._max_pixels = max_pixels

    def batches(self) -> Iterator[FeatureBatch]:
        """Every row of the source once, in order, ``CHUNK`` rows a batch."""
        _ = self._backbone.inference  # made here, before the workers race for it
        n_workers, n_threads = _cores(), torch.get_num_threads()
        with contextlib.ExitStack() as closing:
            keep_freed_memory()
            closing.callback(return_freed_memory)
            # Setting the number of threads in a worker also sets it for threads that others start later.
            closing.callback(torch.set_num_threads, n_threads)
            # Nor may a consumer's small products use a second: between them OpenBLAS's threads wait in a loop, on the workers' cores.
            closing.enter_context(threadpool_limits(1, user_api="blas"))
            workers = closing.enter_context(_pool(n_workers))
            if self._backbone.device == "cpu":
                yield from self._run(workers, workers, reads_ahead=2 * n_workers, passes_ahead=2 * n_workers)
            else:
                device = closing.enter_context(_pool(1))
                yield from self._run(workers, device, reads_ahead=2 * n_workers, passes_ahead=2)

    def _run(
        self, readers: ThreadPoolExecutor, embedders: ThreadPoolExecutor, *, reads_ahead: int, passes_ahead: int
    ) -> Iterator[FeatureBatch]:
        n, size = len(self._source), self._backbone.batch_size
        starts = iter(range(0, n, CHUNK))
        reads: deque[Future[tuple[_Chunk, list[_Missing]]]] = deque()
        chunks: deque[_Chunk] = deque()  # read, not yet handed out
        waiting: list[tuple[_Chunk, _Missing]] = []  # not yet in a pass
        passes: deque[Future[None]] = deque()
        while True:
            for start in starts:
                reads.append(readers.submit(self._read, np.arange(start, min(start + CHUNK, n))))
                if len(reads) >= reads_ahead:
                    break
            if reads:
                chunk, missing = reads.popleft().result()
                chunks.append(chunk)
                waiting += [(chunk, image) for image in missing]
            while len(waiting) >= size or (waiting and (not reads or len(chunks) >= WINDOW)):
                part, waiting = waiting[:size], waiting[size:]
                if len(passes) >= passes_ahead:
                    passes.popleft().result()
                done = embedders.submit(self._embed, [image for _, image in part])
                passes.append(done)
                for chunk, _ in part:
                    chunk.n_waiting -= 1
                    if done not in chunk.passes:
                        chunk.passes.append(done)
            while chunks and (chunks[0].is_ready() or not reads or len(chunks) >= WINDOW):
                yield chunks.popleft().result()
            if not reads:
                return

    def _read(self, rows: NDArray[np.intp]) -> tuple[_Chunk, list[_Missing]]:
        """Features from the cache where it has them, pixels where not."""
        contents: dict[int, bytes | NDArray[np.uint8]] = {}
        skipped: dict[int, Skipped] = {}
        for row in rows.tolist():
            try:
                contents[row] = self._source.read(row)
            except BadItemError as error:
                skipped[row] = Skipped(self._source.keys[row], str(error))
        digests = {row: digest(content) for row, content in contents.items()}
        found = self._store.get([self._key(value) for value in digests.values()]) if self._store is not None else {}
        pixels: dict[int, NDArray[np.uint8]] = {}
        for row, content in contents.items():
            try:
                if self._key(digests[row]) not in found:
                    pixels[row] = decode_resized(content, self._backbone.image_size, self._max_pixels)
                elif self._max_pixels < MAX_PIXELS:  # the cache was filled under another limit, perhaps
                    check_pixel_limit(content, self._max_pixels)
            except BadItemError as error:
                skipped[row] = Skipped(self._source.keys[row], str(error))
        usable = [row for row in contents if row not in skipped]
        features = np.empty((len(usable), self._backbone.dim), np.float32)
        missing = []
        for row, out in zip(usable, features, strict=True):
            if row in pixels:
                missing.append(_Missing(digests[row], pixels[row], out))
            else:
                out[:] = found[self._key(digests[row])]
        batch = FeatureBatch(np.array(usable, np.intp), features, [skipped[row] for row in sorted(skipped)])
        return _Chunk(batch, len(missing)), missing

    def _embed(self, images: Sequence[_Missing]) -> None:
        """One forward pass, kept in the cache before anyone sees it."""
        pixels = torch.from_numpy(np.stack([image.pixels for image in images])).permute(0, 3, 1, 2)
        if self._view is not None:
            seeds = [self._view.seeds(image.content) for image in images]
            pixels = augment(pixels.to(self._backbone.device), seeds, self._view.settings)
        computed = self._backbone.embed_floats(pixels)
        if self._store is not None:
            self._store.put([self._key(image.content) for image in images], computed)
        for image, feature in zip(images, computed, strict=True):
            image.out[:] = feature

    def _key(self, content: bytes) -> bytes:
        return content if self._view is None else self._view.key(content)


@contextlib.contextmanager
def _pool(n_workers: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that use one core each; what has not begun is dropped at the end."""
    pool = ThreadPoolExecutor(
        n_workers, thread_name_prefix="features", initializer=torch.set_num_threads, initargs=(1,)
    )
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def keep_freed_memory() -> None:
    """Let glibc keep freed activations for the next batch instead of returning them to the system.

    A forward pass frees and takes tens of megabytes a layer. By default each goes back to the kernel and is faulted in again page by
    page, which costs a third of the time on two cores. One arena, because a thread's own is too small for such blocks. Elsewhere
    than on glibc this does nothing.
    """
    _mallopt((_M_ARENA_MAX, 1), (_M_MMAP_THRESHOLD, 2**30), (_M_TRIM_THRESHOLD, 2**31 - 1))


def return_freed_memory() -> None:
    """What glibc does by itself once large blocks were freed, and what was kept goes back.

    Training takes and frees hundreds of megabytes between small blocks that stay, and would keep the gaps: a gigabyte for 50,000 images.
    """
    _mallopt((_M_MMAP_THRESHOLD, 2**25), (_M_TRIM_THRESHOLD, 2**26))
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _mallopt(*settings: tuple[int, int]) -> None:
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        for parameter, value in settings:
            libc.mallopt(parameter, value)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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
    """Images as inputs of a trainable backbone: decoded, augmented, normalised. See :class:`distillhash.methods.training.Inputs`."""

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
