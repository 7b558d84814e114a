"""The machinery of extraction: read, look up, decode, embed, keep; in row order, with bounded memory.

One pool of workers, a core each, reads ahead; what the cache lacks is gathered into full forward passes, whichever rows it comes from,
so a source with a few new images costs those and no more. On a CPU the same workers run the passes with one thread each: two of them
are faster than one pass spread over two threads. On an accelerator one thread feeds the device.

Memory: the features of at most ``WINDOW`` chunks, and for each worker two chunks being read and two passes being embedded.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from distillhash.backbones.base import Backbone
from distillhash.backbones.cache import FeatureStore
from distillhash.backbones.views import View, augment
from distillhash.sources import (
    MAX_PIXELS,
    BadItemError,
    ImageSource,
    Skipped,
    check_pixel_limit,
    decode_resized,
    digest,
)

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
