"""The index behind one thread, which answers all searches that wait in one call of the engine."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from distillhash.codes import Codes, bytes_per_code
from distillhash.errors import DataError
from distillhash.index import Index
from distillhash.index.base import Item
from distillhash.serve.batching import Batcher, nobody

_MOST_TOGETHER = (
    16  # searches of one call: what the kernels take in one go, so that none of them waits for a thread to start
)
_MOST_HELD = 50_000  # items in memory, about 1 KB each
_TRIES = 5
Answer = TypeVar("Answer")


class NoItemError(DataError):
    """There is no item with this id."""


@dataclass(frozen=True)
class Query:
    """A search: by the id of an item or by a packed code; the ``k`` nearest, of those within ``radius`` where it is given."""

    item: int | bytes
    k: int
    radius: int | None = None


@dataclass(frozen=True)
class Found:
    """The answer to a query.

    Attributes:
        code: Packed code of the query.
        items: The neighbours, nearest first, equal distances by ascending id.
        distances: Their distances in bits.
        is_cut: More items lie within the radius than were asked for.
    """

    code: bytes
    items: list[Item]
    distances: list[int]
    is_cut: bool


class Library:
    """An index, its searches answered in batches, everything else in turn between them."""

    def __init__(self, index: Index, *, observe: Callable[[int], None] = nobody) -> None:
        """Take an open index; from :meth:`start` on only the library's thread touches it."""
        self._index = index
        self.n_bits, self.model_fingerprint = index.n_bits, index.model_fingerprint
        self._held: dict[int, Item] = {}
        self._state: Hashable | None = None
        self._jobs: Batcher[Query | Callable[[Index], Any], Any] = Batcher(
            self._answer, name="index", max_batch=_MOST_TOGETHER, observe=observe
        )

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start the thread."""
        self._jobs.start(loop)

    def stop(self) -> None:
        """Finish what waits and close the index."""
        self._jobs.stop()
        self._index.close()

    @property
    def n_waiting(self) -> int:
        """Jobs not yet answered."""
        return self._jobs.n_waiting

    async def search(self, query: Query) -> Found:
        """The neighbours of one query, exactly those of :meth:`Index.search`.

        Raises:
            NoItemError: the query's id is not there.
        """
        found: Found = await self._jobs.submit(query)
        return found

    async def run(self, work: Callable[[Index], Answer]) -> Answer:
        """What ``work`` returns, called with the index in its thread."""
        answer: Answer = await self._jobs.submit(work)
        return answer

    async def item(self, identifier: int) -> Item:
        """One item.

        Raises:
            NoItemError: it is not there.
        """
        return await self.run(lambda index: item_of(index, identifier))

    def _answer(self, jobs: list[Query | Callable[[Index], Any]]) -> Sequence[Any]:
        answers: list[Any] = [None] * len(jobs)
        searches: dict[int, list[int]] = defaultdict(list)  # jobs by k, as one call has one k
        for place, job in enumerate(jobs):
            if isinstance(job, Query):
                searches[job.k].append(place)
            else:
                try:
                    answers[place] = job(self._index)
                except Exception as error:
                    answers[place] = error
        for k, places in searches.items():
            queries = [job for place in places if isinstance(job := jobs[place], Query)]
            for place, found in zip(places, self._search(queries, k), strict=True):
                answers[place] = found
        return answers

    def _search(self, queries: list[Query], k: int) -> list[Found | Exception]:
        for _ in range(_TRIES):
            try:
                return self._search_once(queries, k)
            except NoItemError:  # another process removed what the search had found
                continue
        raise DataError("the index changes faster than it can be read; try again")

    def _search_once(self, queries: list[Query], k: int) -> list[Found | Exception]:
        held = self._items({query.item for query in queries if isinstance(query.item, int)})
        codes = [_code_of(query, held) for query in queries]
        known = [code for code in codes if code is not None]
        if not known:
            return [_absent(query) for query in queries]
        packed = np.frombuffer(b"".join(known), np.uint8).reshape(len(known), -1)
        result = self._index.search(Codes(packed, self.n_bits), k)
        rows = zip(result.ids, result.distances, strict=True)
        hits = [
            None if code is None else _within(*next(rows), q.radius) for code, q in zip(codes, queries, strict=True)
        ]
        wanted = {identifier for hit in hits if hit is not None for identifier in hit[0]}
        items = self._items(wanted)
        if len(items) < len(wanted):
            raise NoItemError("an item is gone")
        answers: list[Found | Exception] = []
        for query, code, hit in zip(queries, codes, hits, strict=True):
            if code is None or hit is None:
                answers.append(_absent(query))
            else:
                ids, distances = hit
                cut = query.radius is not None and len(ids) == k
                answers.append(Found(code, [items[identifier] for identifier in ids], distances, cut))
        return answers

    def _items(self, ids: set[int]) -> dict[int, Item]:
        """Those of the ids that are there.

        Items are held as long as the index says that nothing changed: reading rows is most of the time of a search.
        """
        state = self._index.state()
        if state is None or state != self._state or len(self._held) > _MOST_HELD:
            self._held.clear()
            self._state = state
        missing = ids.difference(self._held)
        if missing:
            self._held.update((item.id, item) for item in self._index.get(sorted(self._index.present(list(missing)))))
        return {identifier: self._held[identifier] for identifier in ids if identifier in self._held}


def item_of(index: Index, identifier: int) -> Item:
    """One item of an index.

    Raises:
        NoItemError: it is not there.
    """
    if not index.present([identifier]):
        raise NoItemError(f"there is no item with id {identifier}")
    return index.get([identifier])[0]


def all_ids(index: Index) -> NDArray[np.int64]:
    """The ids of all items, in ascending order; 12 bytes of memory an item while it runs."""
    anywhere = Codes(np.zeros((1, bytes_per_code(index.n_bits)), np.uint8), index.n_bits)
    return np.sort(index.range_search(anywhere, index.n_bits).ids)


def _code_of(query: Query, held: dict[int, Item]) -> bytes | None:
    if isinstance(query.item, bytes):
        return query.item
    return held[query.item].code.packed.tobytes() if query.item in held else None


def _absent(query: Query) -> NoItemError:
    return NoItemError(f"there is no item with id {query.item!r}")


def _within(ids: NDArray[np.int64], distances: NDArray[np.int32], radius: int | None) -> tuple[list[int], list[int]]:
    keep = distances >= 0
    if radius is not None:
        keep &= distances <= radius
    return ids[keep].tolist(), distances[keep].tolist()


def concatenated(items: Sequence[Item], n_bits: int) -> Codes:
    """The codes of items, in their order."""
    packed = b"".join(item.code.packed.tobytes() for item in items)
    return Codes(np.frombuffer(packed, np.uint8).reshape(len(items), bytes_per_code(n_bits)), n_bits)
