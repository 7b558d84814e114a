"""From a source to features, in one pass: every file is opened, read, digested and decoded once, whatever is computed from it."""

import contextlib
import ctypes
import json
import threading
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from distillhash.backbones.base import Backbone, TorchBackbone
from distillhash.backbones.cache import FeatureCache, FeatureStore
from distillhash.backbones.views import View, ViewSettings, augment
from distillhash.distributed import processes_here, rank_and_size, shared_objects, shared_rows
from distillhash.errors import DataError, ParameterError
from distillhash.files import cores, digest
from distillhash.output import Progress
from distillhash.pytorch import HAS_TORCH, Tensor, torch
from distillhash.sources.base import (
    BadItemError,
    EmbeddingSource,
    ImageSource,
    Skipped,
    Source,
    item_memory,
    nothing_usable,
)
from distillhash.sources.decode import (
    MAX_PIXELS,
    Encoded,
    damage_of,
    decode_resized,
    decode_sizes,
    open_encoded,
    resize_images,
)

CHUNK = 16  # images read and looked up together, and rows of one FeatureBatch
WINDOW = 64  # chunks that may wait for features: cached rows run ahead this far of a pass that is not full yet
VECTOR_BLOCK = 4096
# Of decoding and resizing: whoever changes them raises it, so cached features are made anew.
PIXELS_VERSION = 3
VIEWS_VERSION = 2  # of augmentation alone
DEVICE_VERSION = 2  # of what accelerators compute
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # glibc, malloc.h

Known = Callable[[Sequence[str], Sequence[bytes]], Sequence[bool]]
"""For the keys and content digests of some items, which of them need no features. Never called by two threads at once."""


@dataclass(frozen=True)
class FeatureBatch:
    """Features of some rows of a source, in order, and the items among them that have none."""

    rows: NDArray[np.intp]  # (b,)
    features: NDArray[np.float32]  # (b, d)
    skipped: list[Skipped] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)  # of the content of each row; none for vectors without ``known``
    known: NDArray[np.intp] = field(default_factory=lambda: np.empty(0, np.intp))  # not among ``rows``
    views: NDArray[np.float32] | None = None  # (n_views, b, d)
    teacher: NDArray[np.float32] | None = None  # (b, d), of the images at the size that the backbone was trained with


class WatchedImages(ImageSource):
    """A source that is shown small copies of its images when features are extracted, so that a file is decoded once. Thread-safe."""

    shown_size: int  # side in pixels of the copies

    @abstractmethod
    def wanted(self, digests: Mapping[int, bytes]) -> Collection[int]:
        """Of some rows and the digests of their contents, the rows whose copies are wanted."""

    @abstractmethod
    def show(self, digests: Mapping[int, bytes], copies: Mapping[int, NDArray[np.uint8]]) -> None:
        """Take the copies, ``(shown_size, shown_size, 3) uint8``, of those rows that can be decoded."""


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
) -> FeatureBatch:
    """Features of every usable item, in memory.

    ``cache`` keeps features between runs. ``n_views`` augmented copies are embedded as well: a view depends on ``seed``, its number, the
    image's content and ``settings`` alone. ``teacher`` embeds the images also at the size that the backbone was trained with, where they
    are smaller now. ``progress`` is shown on stderr. Images above ``max_pixels`` (by default the decoder's limit) are skipped.
    A group of processes (:mod:`distillhash.distributed`) shares the images evenly, and each gets the whole result.

    Raises:
        DataError: nothing usable, or too much for memory.
        ParameterError: views of vectors.
    """
    if n_views and isinstance(source, EmbeddingSource):
        raise ParameterError(f"views need images, but {source.name} holds vectors; ask for 0 views, not {n_views}")
    views = [View(settings or ViewSettings(), seed, number) for number in range(n_views)]
    rank, world = (0, 1) if isinstance(source, EmbeddingSource) else rank_and_size()
    own = np.array_split(np.arange(len(source)), world)[rank]
    mine = source if world == 1 else source.select(own)
    rows, filled = np.empty(len(own), np.intp), 0
    skipped, digests = list[Skipped](), list[bytes]()
    tables: dict[str, NDArray[np.float32]] = {}
    batches = iter_features(
        mine, backbone, cache=cache, progress=progress, max_pixels=max_pixels, views=views, teacher=teacher
    )
    for batch in batches:
        skipped += batch.skipped
        digests += batch.digests
        end = filled + len(batch.rows)
        rows[filled:end] = own[batch.rows]
        for name, part in (("features", batch.features), ("views", batch.views), ("teacher", batch.teacher)):
            if part is not None and len(batch.rows):
                if name not in tables:
                    tables[name] = _table((*part.shape[:-2], len(own), part.shape[-1]))
                tables[name][..., filled:end, :] = part
        filled = end
    whole = {name: _first_rows(table, filled) for name, table in tables.items()}
    rows = rows[:filled]
    if world > 1:
        rows, skipped, digests, whole = _of_all_processes(source, rows, skipped, digests, whole)
    if not len(rows):
        raise nothing_usable(source.name, skipped)
    return FeatureBatch(
        rows, whole["features"], skipped, digests, views=whole.get("views"), teacher=whole.get("teacher")
    )


def _of_all_processes(
    source: Source,
    rows: NDArray[np.intp],
    skipped: list[Skipped],
    digests: list[bytes],
    tables: dict[str, NDArray[np.float32]],
) -> tuple[NDArray[np.intp], list[Skipped], list[bytes], dict[str, NDArray[np.float32]]]:
    """The parts of every process, in the order of the source."""
    shapes = {name: (*table.shape[:-2], table.shape[-1]) for name, table in tables.items()}
    parts = shared_objects((rows, skipped, digests, shapes, dict(source.damaged)))
    counts = [len(part[0]) for part in parts]
    whole: dict[str, NDArray[np.float32]] = {}
    for name, (*before, width) in {name: shape for part in parts for name, shape in part[3].items()}.items():
        whole[name] = _table((*before, sum(counts), width))
        shared_rows(whole[name], tables.get(name, np.empty((*before, 0, width), np.float32)), counts)
    for part in parts:
        source.damaged.update(part[4])
    rows = np.concatenate([part[0] for part in parts])
    return rows, [item for part in parts for item in part[1]], [item for part in parts for item in part[2]], whole


def iter_features(
    source: Source,
    backbone: Backbone,
    *,
    cache: FeatureCache | None = None,
    progress: bool = False,
    max_pixels: int | None = None,
    known: Known | None = None,
    views: Sequence[View] = (),
    teacher: bool = False,
) -> Iterator[FeatureBatch]:
    """Features batch by batch, in row order; memory does not grow with the source. See :func:`extract_features`.

    A row of the result depends on the item's content alone: not on the rest of its batch or the number of workers, nor, but for the last
    bits in which engines differ, on what the cache held. ``known`` recognises items that are read and digested, but neither decoded nor
    embedded; their rows are in :attr:`FeatureBatch.known`.
    """
    limit = MAX_PIXELS if max_pixels is None else max_pixels
    if limit < 1:
        raise ParameterError(f"the pixel limit must be at least 1, got {limit}")
    if isinstance(source, EmbeddingSource):
        yield from _vector_batches(source, known)
        return
    assert isinstance(source, ImageSource)
    backbone.prepare()  # here, before the workers race for it, and shared with the enlarged network
    larger = backbone.enlarged() if teacher else None
    if larger is not None:
        larger.prepare()
    wanted = [(backbone, view) for view in (None, *views)] + ([(larger, None)] if larger is not None else [])
    with contextlib.ExitStack() as closing:
        stores: dict[str, FeatureStore] = {}
        variants = []
        for network, view in wanted:
            identity = "" if cache is None else _identity(network, view)
            if cache is not None and identity not in stores:
                stores[identity] = closing.enter_context(contextlib.closing(cache.store(identity, network.dim)))
            variants.append(_Variant(network, view, stores.get(identity)))
        shown = closing.enter_context(Progress("features", len(source), quiet=not progress))
        for batch in _Extraction(source, variants, len(views), limit, known).batches():
            shown.advance(len(batch.rows) + len(batch.skipped) + len(batch.known))
            yield batch


class ImageInputs:
    """Images (all readable) as inputs of a trainable backbone; see :class:`distillhash.methods.training.Images`."""

    def __init__(self, source: ImageSource, backbone: TorchBackbone) -> None:
        self._source, self._backbone = source, backbone
        self._readers = ThreadPoolExecutor(max(1, cores() // processes_here()), "images")

    def __len__(self) -> int:
        return len(self._source)

    def batch(self, rows: NDArray[np.intp], seeds: NDArray[np.int64]) -> Tensor:
        """``(len(rows), 3, size, size)`` images, normalised and each augmented by its seed ``(len(rows), 1)``."""
        size = self._backbone.image_size
        images = list(self._readers.map(lambda row: decode_resized(self._source.read(row), size), rows.tolist()))
        pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).to(self._backbone.device)
        return self._backbone.normalise(augment(pixels, seeds.tolist(), ViewSettings()))


def _vector_batches(source: EmbeddingSource, known: Known | None) -> Iterator[FeatureBatch]:
    for start in range(0, len(source), VECTOR_BLOCK):
        block = source.vectors[start : start + VECTOR_BLOCK]
        rows = np.arange(start, start + len(block))
        if known is None:
            yield FeatureBatch(rows, np.array(block, np.float32))
            continue
        digests = [digest(np.ascontiguousarray(vector).view(np.uint8)) for vector in block]
        new = ~np.asarray(known(source.keys[start : start + len(block)], digests), bool)
        chosen = [content for content, is_new in zip(digests, new, strict=True) if is_new]
        yield FeatureBatch(rows[new], np.array(block[new], np.float32), digests=chosen, known=rows[~new])


@dataclass
class _Chunk:
    """Rows on their way, and how many of their features are still missing."""

    batch: FeatureBatch
    n_missing: int = 0


@dataclass(frozen=True)
class _Missing:
    """An image whose features a cache lacks, and the row of features to fill."""

    chunk: _Chunk
    content: bytes
    pixels: NDArray[np.uint8]
    out: NDArray[np.float32]


@dataclass(frozen=True)
class _Variant:
    """One of the things computed from every image: plain features, a view, or the teacher."""

    network: Backbone
    view: View | None
    store: FeatureStore | None

    def key(self, content: bytes) -> bytes:
        return content if self.view is None else self.view.key(content)

    def stored(self, digests: Sequence[bytes]) -> dict[bytes, NDArray[np.float32]]:
        return {} if self.store is None else self.store.get([self.key(content) for content in digests])

    def embed(self, images: Sequence[_Missing]) -> None:
        """One forward pass, kept in the cache before anyone sees it."""
        pixels = np.stack([image.pixels for image in images])
        if self.view is None:
            computed = self.network.embed(pixels)
        else:
            seeds = [self.view.seeds(image.content) for image in images]
            tensor = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(self.network.device)
            computed = self.network.embed_floats(augment(tensor, seeds, self.view.settings))
        if self.store is not None:
            self.store.put([self.key(image.content) for image in images], computed)
        for image, feature in zip(images, computed, strict=True):
            image.out[:] = feature


class _Extraction:
    """Reads, looks up, decodes and embeds, in row order and with bounded memory.

    One pool of workers, a core each, reads ahead. What the caches lack is gathered into full forward passes, one queue a variant (plain
    features, ``n_views`` views, and the teacher if there is one), whichever rows it comes from: a source with a few new images costs those
    and no more. On a CPU the same workers run the passes with one thread each: two of them are faster than one pass spread over two
    threads. On an accelerator one thread feeds the device.

    Memory: the features of at most ``WINDOW`` chunks, and for each worker two chunks being read and four passes being embedded
    (of two, a long one of the teacher would leave the other worker without work).
    """

    def __init__(
        self, source: ImageSource, variants: Sequence[_Variant], n_views: int, max_pixels: int, known: Known | None
    ) -> None:
        self._source, self._variants, self._n_views = source, variants, n_views
        self._max_pixels, self._known, self._one_at_a_time = max_pixels, known, threading.Lock()

    def batches(self) -> Iterator[FeatureBatch]:
        """Every row of the source once, in order, ``CHUNK`` rows a batch."""
        n, n_workers = len(self._source), max(1, cores() // processes_here())
        starts = iter(range(0, n, CHUNK))
        reads: deque[Future[tuple[_Chunk, list[list[_Missing]]]]] = deque()
        chunks: deque[_Chunk] = deque()  # read, not yet handed out
        queues: list[list[_Missing]] = [[] for _ in self._variants]  # not yet in a pass
        passes: deque[tuple[Future[None], list[_Missing]]] = deque()  # under way
        with contextlib.ExitStack() as closing:

            def pool(n_threads: int) -> ThreadPoolExecutor:
                """Threads that use one core each; what has not begun is dropped at the end."""
                threads = ThreadPoolExecutor(n_threads, "features", _use_one_thread)
                closing.callback(threads.shutdown, cancel_futures=True)
                return threads

            keep_freed_memory()
            closing.callback(return_freed_memory)
            # Setting the number of threads in a worker also sets it for threads that others start later.
            if HAS_TORCH:
                closing.callback(torch.set_num_threads, torch.get_num_threads())
            # The consumer's matrix products keep to one thread as well: OpenBLAS's idle threads would spin on the workers' cores.
            closing.enter_context(threadpool_limits(1, user_api="blas"))
            readers, on_cpu = pool(n_workers), self._variants[0].network.device == "cpu"
            embedders, reads_ahead = readers if on_cpu else pool(1), 2 * n_workers
            passes_ahead = 4 * n_workers if on_cpu else 2

            def finish_pass() -> None:
                done, images = passes.popleft()
                done.result()
                for image in images:
                    image.chunk.n_missing -= 1

            while True:
                for start in starts:
                    reads.append(readers.submit(self._read, np.arange(start, min(start + CHUNK, n))))
                    if len(reads) >= reads_ahead:
                        break
                if reads:
                    chunk, missing = reads.popleft().result()
                    chunks.append(chunk)
                    for queue, images in zip(queues, missing, strict=True):
                        queue += images
                for variant, queue in zip(self._variants, queues, strict=True):
                    size = variant.network.batch_size
                    while len(queue) >= size or (queue and (not reads or len(chunks) >= WINDOW)):
                        part = queue[:size]
                        del queue[:size]
                        if len(passes) >= passes_ahead:
                            finish_pass()
                        passes.append((embedders.submit(variant.embed, part), part))
                while passes and passes[0][0].done():
                    finish_pass()
                while chunks and (not chunks[0].n_missing or not reads or len(chunks) >= WINDOW):
                    while chunks[0].n_missing:
                        finish_pass()
                    yield chunks.popleft().batch
                if not reads:
                    return

    def _read(self, rows: NDArray[np.intp]) -> tuple[_Chunk, list[list[_Missing]]]:
        """Features from the caches where they have them, pixels where not, for each variant."""
        contents: dict[int, bytes | NDArray[np.uint8]] = {}
        skipped: dict[int, Skipped] = {}
        for row in rows.tolist():
            try:
                with item_memory():
                    contents[row] = self._source.read(row)
            except BadItemError as error:
                skipped[row] = Skipped(self._source.keys[row], str(error))
        digests = {row: digest(content) for row, content in contents.items()}
        known: list[int] = []
        if self._known is not None and digests:
            with self._one_at_a_time:
                flags = self._known([self._source.keys[row] for row in digests], list(digests.values()))
            known = [row for row, flag in zip(digests, flags, strict=True) if flag]
        for row in known:
            del contents[row], digests[row]
        stored = [variant.stored(list(digests.values())) for variant in self._variants]
        pixels: dict[int, dict[int, NDArray[np.uint8]]] = {}
        watched = self._source if isinstance(self._source, WatchedImages) else None
        wanted = () if watched is None else watched.wanted(digests)
        for row, stored_image in contents.items():
            sizes = {
                variant.network.image_size
                for variant, found in zip(self._variants, stored, strict=True)
                if variant.key(digests[row]) not in found
            }
            if watched is not None and row in wanted:
                sizes.add(watched.shown_size)
            opened: bytes | NDArray[np.uint8] | Encoded = stored_image
            try:
                if sizes or self._max_pixels < MAX_PIXELS:  # the cache was filled under another limit, perhaps
                    if isinstance(stored_image, bytes):
                        opened = open_encoded(stored_image, self._max_pixels)
                    pixels[row] = decode_sizes(opened, sizes, self._max_pixels, enlarge=False)
            except BadItemError as error:
                skipped[row] = Skipped(self._source.keys[row], str(error))
                continue
            damage = damage_of(opened)
            if damage is not None:
                self._source.damaged[self._source.keys[row]] = damage
        _enlarge_together(pixels.values())
        usable = [row for row in contents if row not in skipped]
        if watched is not None:
            watched.show(digests, {row: pixels[row][watched.shown_size] for row in usable if row in wanted})
        table = np.empty((len(self._variants), len(usable), self._variants[0].network.dim), np.float32)
        batch = FeatureBatch(
            np.array(usable, np.intp),
            table[0],
            [skipped[row] for row in sorted(skipped)],
            [digests[row] for row in usable],
            np.array(known, np.intp),
            table[1 : 1 + self._n_views] if self._n_views else None,
            table[-1] if len(self._variants) > 1 + self._n_views else None,
        )
        chunk = _Chunk(batch)
        missing: list[list[_Missing]] = []
        for variant, found, features in zip(self._variants, stored, table, strict=True):
            missing.append([])
            for row, out in zip(usable, features, strict=True):
                content = digests[row]
                if variant.key(content) in found:
                    out[:] = found[variant.key(content)]
                else:
                    missing[-1].append(_Missing(chunk, content, pixels[row][variant.network.image_size], out))
            chunk.n_missing += len(missing[-1])
        return chunk, missing


def _enlarge_together(pixels: Iterable[dict[int, NDArray[np.uint8]]]) -> None:
    """Bring images to the sizes they are stored under, where they are smaller; those of one shape in one call."""
    small: dict[tuple[int, tuple[int, ...]], list[dict[int, NDArray[np.uint8]]]] = {}
    for image in pixels:
        for size, stored in image.items():
            if stored.shape[:2] != (size, size):
                small.setdefault((size, stored.shape), []).append(image)
    for (size, _), images in small.items():
        resized = resize_images(np.stack([image[size] for image in images]), size)
        for image, enlarged in zip(images, resized, strict=True):
            image[size] = enlarged


def _use_one_thread() -> None:
    if HAS_TORCH:
        torch.set_num_threads(1)


def keep_freed_memory() -> None:
    """Let glibc keep freed activations for the next batch instead of returning them to the system; other C libraries do as before.

    A forward pass frees and takes tens of megabytes a layer. By default each goes back to the kernel and is faulted in again page by
    page, which costs a third of the time on two cores.
    """
    _mallopt((_M_MMAP_THRESHOLD, 2**30), (_M_TRIM_THRESHOLD, 2**31 - 1))


def return_freed_memory() -> None:
    """Return what was kept, and let glibc do what it does by default once large blocks were freed.

    Otherwise training, which frees hundreds of megabytes between small blocks that stay, would keep a gigabyte for 50,000 images.
    """
    _mallopt((_M_MMAP_THRESHOLD, 2**25), (_M_TRIM_THRESHOLD, 2**26))
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _mallopt(*settings: tuple[int, int]) -> None:
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        for parameter, value in settings:
            libc.mallopt(parameter, value)


# One arena for all threads: a thread's own is too small for such blocks and keeps none. Set at the import, because workers would share
# the arenas that earlier threads of other libraries, such as Parquet's readers, have made.
_mallopt((_M_ARENA_MAX, 1))


def _identity(backbone: Backbone, view: View | None) -> str:
    """What features depend on besides the content."""
    kind = backbone.device.partition(":")[0]
    device = "" if kind == "cpu" else f"@{kind}{DEVICE_VERSION}:"  # other last bits
    drawn = "" if view is None else f"{json.dumps(asdict(view.settings), sort_keys=True)}:{view.seed}/{VIEWS_VERSION}"
    return f"{backbone.fingerprint}/{PIXELS_VERSION}{device}{drawn}"


def _table(shape: tuple[int, ...]) -> NDArray[np.float32]:
    try:
        return np.empty(shape, np.float32)
    except MemoryError as error:
        size = 4 * np.prod(shape, dtype=np.int64) / 2**30
        raise DataError(
            f"features of shape {shape} need {size:.1f} GiB of memory, more than there is; take fewer items or views"
        ) from error


def _first_rows(table: NDArray[np.float32], m: int) -> NDArray[np.float32]:
    """``table[..., :m, :]``, contiguous and in the same memory."""
    n, dim = table.shape[-2:]
    flat, n_tables = table.reshape(-1), table.size // (n * dim)
    for number in range(1, n_tables if m < n else 0):
        flat[number * m * dim : (number + 1) * m * dim] = flat[number * n * dim : (number * n + m) * dim]
    return flat[: n_tables * m * dim].reshape(*table.shape[:-2], m, dim)
