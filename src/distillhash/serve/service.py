"""What a server does with its index, model and pictures; the HTTP part only calls this."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from distillhash.codes import Codes
from distillhash.index import Index
from distillhash.index.base import Item
from distillhash.models.hash_model import HashModel
from distillhash.models.image_text import CrossModalModel
from distillhash.serve.encoder import Encoder
from distillhash.serve.groups import Groups
from distillhash.serve.library import Found, Library, NoItemError, Query, all_ids, item_of
from distillhash.serve.metrics import Metrics
from distillhash.serve.pictures import Pictures, name_of
from distillhash.serve.problems import Problem
from distillhash.serve.quality import Quality
from distillhash.serve.settings import Settings
from distillhash.serve.uploads import Body
from distillhash.sources import digest

_MOST_SIZES = 200_000  # items whose picture sizes are held, about 100 bytes each
_SIZES_AT_ONCE = 256

log = logging.getLogger("distillhash.serve")


class Service:
    """An index that is served.

    Attributes:
        failure: What warm-up raised, if it failed; the server then stops.
    """

    def __init__(
        self, index: Index, model: HashModel | None, folder: Path | None, settings: Settings, metrics: Metrics
    ) -> None:
        """Take an open index, its model (None: searches by id and code only) and its folder (None on a server)."""
        self.settings, self.model, self.metrics = settings, model, metrics
        self.n_bits = index.n_bits
        self.library = Library(index, observe=metrics.batch("index"))
        self.pictures = Pictures(folder, max_pixels=settings.max_pixels)
        self.groups = Groups(settings.duplicates)
        self.quality = Quality()
        self.encoder = (
            None
            if model is None
            else Encoder(
                model,
                max_pixels=settings.max_pixels,
                processes=settings.encoders,
                observe=metrics.batch("model"),
            )
        )
        self.texts = model if isinstance(model, CrossModalModel) else None
        self._text_lock = threading.Lock()
        self.is_ready = False
        self.failure: Exception | None = None
        self._sizes: dict[int, tuple[int, int]] = {}  # of pictures; (0, 0) where an item has none
        self._started = time.monotonic()
        metrics.watch("index", lambda: self.library.n_waiting)
        metrics.watch("model", lambda: 0 if self.encoder is None else self.encoder.n_waiting)
        metrics.ready(lambda: self.is_ready)

    async def start(self) -> None:
        """Warm up: weights, one forward pass, codes in memory, sizes of the first pictures; ready after that."""
        loop = asyncio.get_running_loop()
        self.library.start(loop)
        try:
            if self.encoder is not None:
                await asyncio.to_thread(self.encoder.warm_up)
                self.encoder.start(loop)
            if self.texts is not None:
                await asyncio.to_thread(self.texts.text_encoder.encode, ["a"])
            ids = await self.library.run(all_ids)
            await self.library.run(lambda index: index.prepare())
        except Exception as error:
            self.failure = error
            raise
        self.is_ready = True
        await self._measure(ids[:_MOST_SIZES].tolist())

    async def stop(self) -> None:
        """Finish what waits, close the index."""
        self.is_ready = False
        if self.encoder is not None:
            await asyncio.to_thread(self.encoder.stop)
        await asyncio.to_thread(self.library.stop)

    async def encode(self, body: Body) -> bytes:
        """The packed code of an upload.

        Raises:
            Problem: 503 before warm-up is over, 422 where the index has no model.
        """
        if self.encoder is None:
            raise Problem(422, "this index keeps no model, so nothing can be encoded; search by id or code")
        if not self.is_ready:
            raise Problem(503, "the model is being loaded; try again in a moment", {"retry-after": "1"})
        return await self.encoder.encode(body.upload)

    async def encode_text(self, text: str) -> bytes:
        """The packed code of a sentence.

        Raises:
            Problem: 503 before warm-up is over, 422 where the index's model knows images alone.
            DataError: the model knows none of its words.
        """
        model = self.texts
        if model is None:
            raise Problem(422, "this index's model knows images alone; one trained with --pairs takes sentences")
        if not self.is_ready:
            raise Problem(503, "the model is being loaded; try again in a moment", {"retry-after": "1"})

        def encode() -> bytes:
            with self._text_lock:  # a sentence takes milliseconds; tokenizers are not made for several threads
                return bytes(model.encode_texts([text]).packed[0])

        return await asyncio.to_thread(encode)

    async def search(self, query: Query) -> bytes:
        """The JSON answer to a query."""
        return self.found_json(query, await self.library.search(query))

    def found_json(self, query: Query, found: Found) -> bytes:
        """A search's answer as JSON."""
        return orjson.dumps(
            {
                "query": {"id": query.item if isinstance(query.item, int) else None, "code": found.code.hex()},
                "n_bits": self.n_bits,
                "k": query.k,
                "radius": query.radius,
                "truncated": found.is_cut,
                "results": [
                    {**self.summary(item), "distance": distance}
                    for item, distance in zip(found.items, found.distances, strict=True)
                ],
            }
        )

    def summary(self, item: Item) -> dict[str, Any]:
        """What every list of items shows of one."""
        width, height = self._sizes.get(item.id, (None, None))
        return {
            "id": item.id,
            "name": name_of(item),
            "code": item.code.packed.tobytes().hex(),
            "picture": width != 0 and item.key is not None,
            "width": width or None,
            "height": height or None,
        }

    def details(self, item: Item) -> dict[str, Any]:
        """All that is shown of one item; never where it lies on this machine."""
        metadata = {name: value for name, value in (item.metadata or {}).items() if name not in ("source", "key")}
        return {**self.summary(item), "n_bits": self.n_bits, "metadata": metadata}

    async def sample(self, n: int, seed: int) -> list[Item]:
        """Random items, the same for the same seed and index."""

        def draw(index: Index) -> list[Item]:
            ids = all_ids(index)
            chosen = np.random.default_rng(seed).choice(ids, min(n, len(ids)), replace=False)
            return index.get(chosen.tolist())

        items = await self.library.run(draw)
        await self._measure([item.id for item in items if item.id not in self._sizes])
        return items

    async def add(self, body: Body) -> tuple[Item, bool]:
        """Store an upload; returns the item and whether it is new. The same file again is the same item."""
        code = await self.encode(body)
        content = body.upload
        key = await asyncio.to_thread(self.pictures.keep_upload, content) if isinstance(content, bytes) else None
        codes = Codes(np.frombuffer(code, np.uint8)[None], self.n_bits)

        def store(index: Index) -> tuple[Item, bool]:
            known = {} if key is None else index.known([key])
            metadata = [{"name": body.name}] if body.name else None
            if key is None:
                ids = index.add(codes, metadata=metadata)
            else:
                assert isinstance(content, bytes)
                ids = index.add(codes, metadata=metadata, keys=[key], digests=[digest(content)], upsert=True)
            return item_of(index, int(ids[0])), not known

        item, is_new = await self.library.run(store)
        await self._measure([item.id])
        return item, is_new

    async def remove(self, identifier: int) -> None:
        """Take an item out of the index; the user's own files stay.

        Raises:
            NoItemError: it is not there.
        """

        def take_out(index: Index) -> Item:
            item = item_of(index, identifier)
            index.remove([identifier])
            return item

        item = await self.library.run(take_out)
        self._sizes.pop(identifier, None)
        await asyncio.to_thread(self.pictures.forget, item)

    async def statistics(self) -> dict[str, Any]:
        """What the index holds and who made its codes."""
        n_items = await self.library.run(len)
        training = {} if self.model is None else self.model.training
        return {
            "n_items": n_items,
            "n_bits": self.n_bits,
            "method": None if self.model is None else self.model.hasher.method,
            "backbone": None if self.model is None else self.model.backbone_name,
            "model_fingerprint": self.library.model_fingerprint,
            "n_trained_on": training.get("n_used"),
            "accepts": None if self.encoder is None else "image" if self.encoder.takes_images else "embedding",
            "accepts_text": self.texts is not None,
            "max_upload": self.settings.max_upload,
            "max_pixels": self.settings.max_pixels,
            "has_duplicates_file": self.settings.duplicates is not None,
            "ready": self.is_ready,
            "uptime_seconds": round(time.monotonic() - self._started, 1),
        }

    async def _measure(self, ids: list[int]) -> None:
        """Note the sizes of pictures, for a layout that does not jump; a few at a time, other work goes between."""
        for start in range(0, len(ids), _SIZES_AT_ONCE):
            part = ids[start : start + _SIZES_AT_ONCE]
            try:
                items = await self.library.run(lambda index, part=part: index.get(sorted(index.present(part))))  # type: ignore[misc]
            except NoItemError:
                continue
            sizes = await asyncio.to_thread(lambda items=items: [self.pictures.size(item) for item in items])  # type: ignore[misc]
            self._sizes.update({item.id: size or (0, 0) for item, size in zip(items, sizes, strict=True)})
