"""What a server does with its index, model and pictures; the HTTP part only calls this."""

import asyncio
import contextlib
import gc
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from distillhash.codes import Codes
from distillhash.errors import DataError, DistillHashError, ParameterError
from distillhash.hamming.ranking import By, check_by
from distillhash.index import Index, Item
from distillhash.models.image_text import CrossModalModel
from distillhash.search import Found, NoItemError, Query, Rerank, Searcher
from distillhash.serve.analysis import Groups, light_edits, lookup_calibration, quality
from distillhash.serve.encoding import Batcher, Encoded, Encoder, Upload
from distillhash.serve.limits import Metrics, Problem
from distillhash.serve.pictures import Picture, Pictures, name_of
from distillhash.serve.schemas import Body
from distillhash.serve.settings import MOST_RERANKED, Settings
from distillhash.sources import digest

if TYPE_CHECKING:
    from distillhash.dedup.calibration import Calibration

_MOST_TOGETHER = 16  # searches of one call, as many as the kernels take at once: none waits for a thread to start
_MOST_COMPARED = 1_000  # matches whose content is compared with an upload, the nearest
_MOST_SIZES = 200_000  # items whose picture sizes are held, about 100 bytes each
_SIZES_AT_ONCE = 256
_PICTURES_AT_ONCE = 4
_PICTURE_SECONDS = 30.0  # for a disk that does not answer
_MOST_SAMPLED, _MOST_EDITED = 20_000, 40  # items that /match is calibrated on, and pictures of these that are edited
_CALIBRATION_SECONDS = 20.0  # that a request waits for it
Answer = TypeVar("Answer")
Job = Query | Callable[[Index], Any]


class Service:
    """An index that is served. One thread owns the index: it answers all searches that wait in one call, and other jobs one by one."""

    def __init__(self, searcher: Searcher, folder: Path | None, settings: Settings) -> None:
        """Without a model, searches are by id and code only. ``folder`` is None for an index on a server."""
        self.searcher, self.settings = searcher, settings
        self.model, self.n_bits = searcher.model, searcher.index.n_bits
        self.metrics = Metrics()
        self.pictures = Pictures(folder, max_pixels=settings.max_pixels)
        self.texts = self.model if isinstance(self.model, CrossModalModel) else None
        self.is_ready = self.is_stopped = False
        self.failure: Exception | None = None  # what warm-up raised; the server then stops
        self._groups = Groups(settings.duplicates)
        self._quality: dict[str, Any] | None = None
        self._calibration: Calibration | None = None  # of /match
        self._calibrating: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="index")
        observe = self.metrics.queue("index", lambda: self._jobs.n_waiting)
        self._jobs: Batcher[Job, Any] = Batcher(self._work, max_batch=_MOST_TOGETHER, observe=observe)
        observe = self.metrics.queue("model", lambda: 0 if self.encoder is None else self.encoder.jobs.n_waiting)
        self.encoder: Encoder | None = None
        if self.model is not None:
            self.encoder = Encoder(self.model, settings, observe)
        self.metrics.ready.set_function(lambda: float(self.is_ready))
        self._text_thread = ThreadPoolExecutor(1, "text")  # tokenizers are not made for several threads
        self._picture_threads = ThreadPoolExecutor(_PICTURES_AT_ONCE, "pictures")
        self._sizes: dict[int, tuple[int, int]] = {}  # of pictures; (0, 0) where an item has none
        self._started = time.monotonic()

    async def start(self) -> None:
        """Warm up: weights, one forward pass, codes in memory, sizes of the first pictures; ready after that."""
        self._jobs.start()
        if self.encoder is not None:
            await self.encoder.start()
        if self.texts is not None:
            await asyncio.to_thread(self.texts.text_encoder.encode, ["a"])
        ids = await self.run(lambda index: index.ids())
        await self.run(lambda index: index.prepare(self.searcher.class_bits))
        gc.freeze()  # what is loaded by now stays; looking through it for garbage would stop the server for half a second
        self.is_ready = True
        await self._measure(ids[:_MOST_SIZES].tolist())

    async def stop(self) -> None:
        """Finish what waits and close the index."""
        self.is_ready = False
        if self._calibrating is not None:
            self._calibrating.cancel()
            await asyncio.wait([self._calibrating])
        if self.encoder is not None:
            await self.encoder.stop()
        await self._jobs.stop()
        for threads in (self._thread, self._text_thread, self._picture_threads):
            threads.shutdown(cancel_futures=True)
        self.searcher.index.close()
        self.is_stopped = True

    async def run(self, work: Callable[[Index], Answer]) -> Answer:
        """What ``work`` returns, called with the index in its thread."""
        answer: Answer = await self._jobs.submit(work)
        return answer

    async def _work(self, jobs: list[Job]) -> list[Any]:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._answer, jobs)

    def _answer(self, jobs: list[Job]) -> list[Any]:
        queries = [job for job in jobs if isinstance(job, Query)]
        try:
            found = self.searcher.answer(queries)
        except Exception:  # of one query, which must not be the others' answer
            found = []
        asked = iter(found)
        answers: list[Any] = []
        for job in jobs:
            try:
                if not isinstance(job, Query):
                    answers.append(job(self.searcher.index))
                else:
                    answers.append(next(asked) if found else self.searcher.answer([job])[0])
            except Exception as error:
                answers.append(error)
        return answers

    async def encode(self, body: Body) -> Encoded:
        """The packed code and the feature of an upload."""
        if self.encoder is None:
            raise Problem(422, "this index keeps no model, so nothing can be encoded; search by id or code")
        self._check_ready()
        return await self.encoder.encode(body.upload)

    async def encode_text(self, text: str) -> bytes:
        """The packed code of a sentence."""
        if self.texts is None:
            raise Problem(422, "this index's model knows images alone; one trained with --pairs takes sentences")
        self._check_ready()
        codes = await asyncio.get_running_loop().run_in_executor(self._text_thread, self.texts.encode_texts, [text])
        return bytes(codes.packed[0])

    def check_options(self, k: int, where: str | None, rerank: Rerank | None, by: By) -> None:
        """Refuse what no search of this server may ask for, before anything is encoded."""
        check_by(by, self.searcher.class_bits)
        if where is not None:
            check_condition(where)
        if rerank is not None:
            if k > MOST_RERANKED:
                raise Problem(422, f"re-ranking gives at most {MOST_RERANKED} neighbours, got k={k}; ask for fewer")
            self.searcher.check_rerank(rerank)

    async def search(self, query: Query) -> dict[str, Any]:
        """The answer to a query."""
        found: Found = await self._jobs.submit(query)
        distances = zip(found.items, found.distances, strict=True)
        results = [{**self.summary(item), "distance": distance} for item, distance in distances]
        for result, score in zip(results, found.scores or (), strict=False):
            result["score"] = score
        return {
            "query": {"id": query.item if isinstance(query.item, int) else None, "code": found.code.hex()},
            "n_bits": self.n_bits,
            "k": query.k,
            "radius": query.radius,
            "truncated": found.is_cut,
            "results": results,
        }

    def summary(self, item: Item) -> dict[str, Any]:
        """What every list of items shows of one."""
        width, height = self._sizes.get(item.id, (None, None))
        return {
            "id": item.id,
            "name": name_of(item),
            "code": item.code.packed.tobytes().hex(),
            "picture": width != 0 and item.key is not None and item.digest is not None,
            "width": width or None,
            "height": height or None,
        }

    def details(self, item: Item) -> dict[str, Any]:
        """All that is shown of one item; never where it lies on this machine."""
        metadata = {name: value for name, value in (item.metadata or {}).items() if name not in ("source", "key")}
        return {**self.summary(item), "n_bits": self.n_bits, "metadata": metadata}

    async def item(self, identifier: int) -> Item:
        """One item."""
        return await self.run(lambda index: _item(index, identifier))

    async def picture(self, read: Callable[[Item], Picture], identifier: int) -> Picture:
        """What a method of :class:`~distillhash.serve.pictures.Pictures` reads of an item."""
        item = await self.item(identifier)
        try:
            async with asyncio.timeout(_PICTURE_SECONDS):
                return await asyncio.get_running_loop().run_in_executor(self._picture_threads, read, item)
        except TimeoutError:
            detail = f"the picture of item {identifier} could not be read within {_PICTURE_SECONDS:g} s"
            raise Problem(503, detail, {"retry-after": "5"}) from None

    async def sample(self, n: int, seed: int) -> list[Item]:
        """Random items, the same for the same seed and index."""

        def draw(index: Index) -> list[Item]:
            ids = index.ids()
            chosen = np.random.default_rng(seed).choice(ids, min(n, len(ids)), replace=False)
            return index.get(chosen.tolist())

        items = await self.run(draw)
        await self._measure([item.id for item in items if item.id not in self._sizes])
        return items

    async def add(self, body: Body) -> tuple[Item, bool]:
        """Store an upload; returns the item and whether it is new. The same file again is the same item."""
        code, feature = await self.encode(body)
        content, key = body.upload, None
        codes = Codes(np.frombuffer(code, np.uint8)[None], self.n_bits)
        more: dict[str, Any] = {"metadata": [{"name": body.name}] if body.name else None}
        if isinstance(content, bytes):
            key = await asyncio.to_thread(self.pictures.keep_upload, content)
            more |= {"keys": [key], "digests": [digest(content)], "upsert": True}

        def store(index: Index) -> tuple[Item, bool]:
            is_new = key is None or not index.known([key])
            if index.vector_type is not None:
                more["vectors"] = feature[None]
            return index.get(index.add(codes, **more).tolist())[0], is_new

        item, is_new = await self.run(store)
        await self._measure([item.id])
        return item, is_new

    async def remove(self, identifier: int) -> None:
        """Take an item out of the index; the user's own files stay."""

        def take_out(index: Index) -> Item:
            item = _item(index, identifier)
            index.remove([identifier])
            return item

        item = await self.run(take_out)
        self._sizes.pop(identifier, None)
        await asyncio.to_thread(self.pictures.forget, item)

    async def duplicates(self, *, radius: int | None, offset: int, limit: int) -> dict[str, Any]:
        """Some groups of near-duplicates, see :meth:`~distillhash.serve.analysis.Groups.page`."""
        page = await self.run(lambda index: self._groups.page(index, radius=radius, offset=offset, limit=limit))
        page["groups"] = [[{**self.summary(item), "distance": d} for item, d in group] for group in page["groups"]]
        return page

    async def match(self, code: bytes, upload: Upload | None, k: int) -> dict[str, Any]:
        """Whether the index holds a picture already: what lies within the calibrated radius, ``k`` at most; and how often by mistake."""
        self._check_ready()
        if find_spec("scipy") is None:
            raise Problem(501, "matching needs SciPy where the server runs; pip install 'distillhash[dedup]' there")
        found, n_held = await self._calibrated()
        times = n_held / max(1, found.n_held or 0)  # as many more items, as many more mistakes
        content = digest(upload) if isinstance(upload, bytes) else None
        codes = Codes(np.frombuffer(code, np.uint8)[None], self.n_bits)

        def look_up(index: Index) -> tuple[int, list[tuple[Item, int]]]:
            near = index.range_search(codes, found.radius)
            ids = near.ids[: max(k, _MOST_COMPARED)].tolist()
            items = {item.id: item for item in index.get(sorted(index.present(ids)))}
            pairs = zip(ids, near.distances[: len(ids)].tolist(), strict=True)
            return len(near.ids), [(items[one], distance) for one, distance in pairs if one in items]

        n_matches, pairs = await self.run(look_up)
        same = any(content is not None and item.digest == content for item, _ in pairs)
        matches = [
            {
                **self.summary(item),
                "distance": distance,
                "same_file": content is not None and item.digest == content,
            }
            for item, distance in pairs[:k]
        ]
        expected, interval = found.expected_false_pairs, found.false_pairs_interval
        return {
            "code": code.hex(),
            "verdict": "same file" if same else "copy" if n_matches else "new",
            "radius": found.radius,
            "n_bits": self.n_bits,
            "expected_false_matches": None if expected is None else times * expected,
            "interval": None if interval is None else [times * end for end in interval],
            "light_edits_found": found.recall,
            "unknown": found.unknown,
            "caution": found.caution(),
            "n_matches": n_matches,
            "matches": matches,
        }

    async def _calibrated(self) -> "tuple[Calibration, int]":
        """The radius of this index, and how many items it holds now; made in the background, and anew when that has doubled or halved."""
        n_held = await self.run(len)
        held = None if self._calibration is None else self._calibration.n_held
        is_idle = self._calibrating is None or self._calibrating.done()
        if is_idle and (held is None or not held <= 2 * n_held <= 4 * held):
            self._calibrating = asyncio.create_task(self._calibrate(n_held))
        if self._calibration is None and self._calibrating is not None:
            await asyncio.wait([self._calibrating], timeout=_CALIBRATION_SECONDS)
            if self._calibrating.done():
                await self._calibrating  # raises what went wrong
        if self._calibration is None:
            raise Problem(503, "the radius is being calibrated; try again in a moment", {"retry-after": "5"})
        return self._calibration, n_held

    async def _calibrate(self, n_held: int) -> None:
        from distillhash.dedup.groups import Rule
        from distillhash.dedup.job import CHECKED, items_of, near_items, sample_ids, stored_codes, with_counted

        ids = await asyncio.to_thread(sample_ids, await self.run(lambda index: index.ids()), _MOST_SAMPLED)
        items: list[Item] = []
        for start in range(0, len(ids), _SIZES_AT_ONCE):
            part = ids[start : start + _SIZES_AT_ONCE]
            items += await self.run(lambda index, part=part: items_of(index, part))  # type: ignore[misc]
        edited: dict[int, list[bytes]] = {}
        with contextlib.suppress(TimeoutError):  # a disk that does not answer
            for row in range(min(len(items), 2 * _MOST_EDITED)):
                if self.encoder is None or not self.encoder.takes_images or len(edited) == _MOST_EDITED:
                    break
                with contextlib.suppress(DistillHashError, Problem):
                    async with asyncio.timeout(_PICTURE_SECONDS):
                        files = await asyncio.get_running_loop().run_in_executor(
                            self._picture_threads, light_edits, items[row], self.pictures
                        )
                    codes = await asyncio.gather(*map(self.encoder.encode, files))
                    edited[row] = [code for code, _ in codes]
        found = await asyncio.to_thread(lookup_calibration, items, self.n_bits, n_held, edited)
        if edited:
            asked = items[:: max(1, len(items) // CHECKED)]
            codes_of, rule = stored_codes(asked, self.n_bits).codes, Rule(found.radius)
            near = await self.run(lambda index: near_items(index, codes_of, rule))
            counted = partial(with_counted, max_pixels=self.settings.max_pixels)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_PICTURE_SECONDS):
                    arguments = found, asked, *near, self.pictures.read
                    found = await asyncio.get_running_loop().run_in_executor(self._picture_threads, counted, *arguments)
        self._calibration = found

    async def quality(self) -> dict[str, Any]:
        """How the bits behave, see :func:`~distillhash.serve.analysis.quality`; kept until the size of the index changes."""

        def computed(index: Index) -> dict[str, Any]:
            if self._quality is None or self._quality["n_items"] != len(index):
                self._quality = quality(index)
            return self._quality

        return await self.run(computed)

    async def statistics(self) -> dict[str, Any]:
        """What the index holds and which model made its codes."""
        model = self.model
        return {
            "n_items": await self.run(len),
            "n_bits": self.n_bits,
            "class_bits": self.searcher.class_bits,
            "exact": self.searcher.index.is_exact(self.searcher.class_bits),
            "method": None if model is None else model.hasher.method,
            "backbone": None if model is None else model.backbone_name,
            "model_fingerprint": self.searcher.index.model_fingerprint,
            "n_trained_on": None if model is None else model.training.get("n_used"),
            "accepts": None if self.encoder is None else "image" if self.encoder.takes_images else "embedding",
            "accepts_text": self.texts is not None,
            "max_upload": self.settings.max_upload,
            "max_pixels": self.settings.max_pixels,
            "has_duplicates_file": self.settings.duplicates is not None,
            "ready": self.is_ready,
            "uptime_seconds": round(time.monotonic() - self._started, 1),
        }

    def _check_ready(self) -> None:
        if not self.is_ready:
            raise Problem(503, "the model is being loaded; try again in a moment", {"retry-after": "1"})

    async def _measure(self, ids: list[int]) -> None:
        """Note the sizes of pictures, for a layout that does not jump; a few at a time, so that other work is not held up."""
        for start in range(0, len(ids), _SIZES_AT_ONCE):
            part = ids[start : start + _SIZES_AT_ONCE]
            try:
                items = await self.run(lambda index, part=part: index.get(sorted(index.present(part))))  # type: ignore[misc]
            except DataError:  # another process removed one
                continue
            read = lambda items=items: [self.pictures.size(item) for item in items]  # noqa: E731
            sizes = await asyncio.get_running_loop().run_in_executor(self._picture_threads, read)
            self._sizes.update({item.id: size or (0, 0) for item, size in zip(items, sizes, strict=True)})


def _item(index: Index, identifier: int) -> Item:
    if not index.present([identifier]):
        raise NoItemError(f"there is no item with id {identifier}")
    return index.get([identifier])[0]


_TOKEN = re.compile(
    r"""\s+|'(?:[^'\\]|'')*'|"[^"\\]*"|[A-Za-z_][A-Za-z_0-9]*|\d+(?:\.\d+)?"""
    r"""|->>?|::|\|\||&&|[<>!=]=|<>|-(?!-)|/(?!\*)|[+*%<>=(),\[\]]|(?P<other>.)""",
    re.ASCII | re.DOTALL,
)
_WORDS = re.compile(
    "id|key|metadata|and|or|not|in|like|glob|escape|is|null|isnull|notnull|between|true|false|lower|upper|length|abs|coalesce|cast|as|"
    "int|integer|bigint|real|float|numeric|text|boolean",
    re.IGNORECASE,
)


def check_condition(where: str) -> None:
    """Refuse a condition that does more than compare an item's columns with constants: one that holds another word or sign.

    The engines guard their data, but a condition of a stranger could still call functions that take any time or memory, hold
    sub-queries, or, on Postgres, read other tables.
    """
    before = ""
    for match in _TOKEN.finditer(where):
        token = match[0]
        is_word = token[0].isalpha() or token[0] == "_"
        is_called = token == "(" and before[:1] in ("'", '"')  # "name"(...) calls a function
        if match["other"] or is_called or (is_word and not _WORDS.fullmatch(token)):
            raise ParameterError(
                f"where={where!r} holds {token!r}; over HTTP a condition compares id, key and metadata with constants, "
                "as in metadata->>'label' = 'cat' and id < 100"
            )
        if not token.isspace():
            before = token
