"""The sharded engine: embedded indexes side by side, each item in one shard, each shard in one or more replicas.

``sharded://FOLDER?shards=4&replicas=2`` makes one; ``sharded://FOLDER`` or the folder opens it. An item's shard is its id modulo the
number of shards. A search asks one replica of every shard, all shards at a time, and merges by (distance, id), which is exact for any
split. ``shards.json`` lists the folders; they may be moved to other disks and named there by absolute paths.

Writes go to every replica, and are written down in a journal first: when ``add`` or ``remove`` returns, or once a process died in the
middle of it, all replicas get the whole change. A reader beside a writer may see a part of a change that is under way.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from distillhash.codes import Codes, bytes_per_code
from distillhash.errors import DataError, DistillHashError, ParameterError
from distillhash.index.base import Index, Item, RangeResult, SearchResult, check_k, check_radius
from distillhash.index.embedded import Durability, EmbeddedIndex
from distillhash.index.incoming import Incoming, Row
from distillhash.index.manifest import Manifest
from distillhash.index.merge import merge_nearest, merge_within
from distillhash.index.rows import check_ids, is_id, item_from_row
from distillhash.index.shard_journal import Journal
from distillhash.index.shard_plan import FILE, ShardPlan

T = TypeVar("T")
OPTIONS = ("shards", "replicas")


class ShardedIndex(Index):
    """Several embedded indexes as one. Open it with :func:`distillhash.index.open_index`; one thread at a time."""

    def __init__(
        self,
        folder: Path,
        *,
        shards: int | None,
        replicas: int | None,
        n_bits: int | None,
        create: bool,
        model_fingerprint: str | None,
        durability: Durability,
    ) -> None:
        """Open or make the folder; ``shards`` and ``replicas`` are for a new index, and checked for an old one."""
        self.folder = folder
        self._durability = durability
        is_new = not (folder / FILE).exists()
        if is_new and not create:
            raise DataError(
                f"there is no sharded index at {folder}; make one with `distillhash index`, or pass create=True"
            )
        if is_new:
            plan = ShardPlan.new(Manifest.new(n_bits, model_fingerprint), shards or 2, replicas or 1)
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise DistillHashError(f"{folder} cannot be made ({error.strerror}); choose another folder") from error
        else:
            plan = ShardPlan.read(folder)
        plan.manifest.check_fits(folder, n_bits, model_fingerprint)
        for name, wanted, held in (("shards", shards, len(plan.shards)), ("replicas", replicas, len(plan.shards[0]))):
            if wanted is not None and wanted != held:
                raise ParameterError(
                    f"{folder} has {held} {name}, not {wanted}; leave the option out or make a new index"
                )
        self._journal = Journal(folder, durability)
        self._plan = plan
        self.n_bits = plan.manifest.n_bits
        self.model_fingerprint = plan.manifest.model_fingerprint
        self._opened: dict[str, EmbeddedIndex] = {}
        self._pool = ThreadPoolExecutor(min(len(plan.shards), os.cpu_count() or 1), thread_name_prefix="shard")
        self._turn = os.getpid()  # which replica is asked first: not the same one in all processes
        try:
            if is_new:
                self._make()
            with self._journal.writing(wait=False) as alone:
                if alone:  # else a living writer finishes its own change
                    self._finish()
        except BaseException:
            self.close()
            raise

    def _make(self) -> None:
        """Make the shards, then the plan, whose presence says that the index is whole; of two processes, one does."""
        with self._journal.writing():
            if (self.folder / FILE).exists():
                self._plan = ShardPlan.read(self.folder)
                self._plan.manifest.check_fits(self.folder, self.n_bits, self.model_fingerprint)
                return
            for replicas in self._plan.shards:
                for name in replicas:
                    self._replica(name, create=True)
            self._plan.write(self.folder)

    def add(
        self,
        codes: Codes,
        ids: NDArray[np.int64] | Sequence[int] | None = None,
        metadata: Sequence[dict[str, Any] | None] | None = None,
        *,
        keys: Sequence[str] | None = None,
        digests: Sequence[bytes] | None = None,
        upsert: bool = False,
    ) -> NDArray[np.int64]:
        """See :meth:`Index.add`; every replica must be there."""
        self._check_codes(codes)
        incoming = Incoming.checked(codes, ids, metadata, keys, digests)
        with self._journal.writing():
            self._finish()
            last_id = self._journal.last_id()
            chosen = incoming.choose_ids(
                known=self.known(incoming.keys or []),
                present=self.present([] if incoming.ids is None else incoming.ids.tolist()),
                following=last_id + 1,
                upsert=upsert,
            )
            self._replicas()
            self._journal.write(incoming.rows(chosen), (), max(last_id, int(chosen.max(initial=-1))))
            self._finish()
        return chosen

    def remove(self, ids: Sequence[int] | NDArray[np.int64] = (), *, keys: Sequence[str] = ()) -> int:
        """See :meth:`Index.remove`; every replica must be there."""
        wanted = set(check_ids(ids).tolist())
        with self._journal.writing():
            self._finish()
            if absent := wanted - self.present(list(wanted)):
                raise DataError(f"there is no item with id {min(absent)} in {self.folder}; nothing was removed")
            known = self.known(keys)
            for key in keys:
                if key not in known:
                    raise DataError(f"there is no item with key {key!r} in {self.folder}; nothing was removed")
            wanted.update(identifier for identifier, _ in known.values())
            self._replicas()
            self._journal.write((), wanted, self._journal.last_id())
            self._finish()
        return len(wanted)

    def _finish(self) -> None:
        """Bring the change in the journal, if there is one, to every replica; doing it again changes nothing."""
        rows, removals = self._journal.change()
        if not rows and not removals:
            return
        n = len(self._plan.shards)
        for shard, replica in self._replicas():
            if leaving := replica.present([identifier for identifier in removals if identifier % n == shard]):
                replica.remove(sorted(leaving))
            if mine := [row for row in rows if row[0] % n == shard]:
                _store(replica, mine)
        self._journal.clear()

    def search(self, codes: Codes, k: int = 10) -> SearchResult:
        """See :meth:`Index.search`."""
        self._check_codes(codes)
        check_k(k)
        return merge_nearest(self._ask(lambda shard: shard.search(codes, k)), k)

    def range_search(self, codes: Codes, radius: int = 3) -> RangeResult:
        """See :meth:`Index.range_search`."""
        self._check_codes(codes)
        check_radius(radius)
        return merge_within(self._ask(lambda shard: shard.range_search(codes, radius)))

    def get(self, ids: Sequence[int]) -> list[Item]:
        """See :meth:`Index.get`."""
        wanted = [int(identifier) for identifier in ids if is_id(identifier)]

        def ask(shard: EmbeddedIndex) -> list[Item]:
            return shard.get(sorted(shard.present(wanted)))

        found = {item.id: item for part in self._ask(ask) for item in part}
        for identifier in ids:
            if identifier not in found:
                raise DataError(f"there is no item with id {identifier} in {self.folder}; search gives ids that are")
        return [found[identifier] for identifier in ids]

    def known(self, keys: Sequence[str]) -> dict[str, tuple[int, bytes | None]]:
        """See :meth:`Index.known`."""
        return {key: held for part in self._ask(lambda shard: shard.known(keys)) for key, held in part.items()}

    def present(self, ids: Sequence[int]) -> set[int]:
        """See :meth:`Index.present`."""
        return set().union(*self._ask(lambda shard: shard.present(ids)))

    def __len__(self) -> int:
        return sum(self._ask(len))

    def close(self) -> None:
        """See :meth:`Index.close`."""
        self._pool.shutdown()
        self._journal.close()
        for replica in self._opened.values():
            replica.close()

    def __repr__(self) -> str:
        shape = f"shards={len(self._plan.shards)}, replicas={len(self._plan.shards[0])}"
        return f"ShardedIndex({str(self.folder)!r}, {shape}, n_bits={self.n_bits})"

    def _ask(self, question: Callable[[EmbeddedIndex], T]) -> list[T]:
        """The answer of one replica of every shard; a replica that fails is passed over for the next one of its shard."""
        self._turn += 1

        def ask(names: tuple[str, ...]) -> T:
            for place in range(len(names)):
                try:
                    return question(self._replica(names[(self._turn + place) % len(names)]))
                except DistillHashError:
                    if place == len(names) - 1:
                        raise
            raise AssertionError("a shard has a replica")

        try:
            return list(self._pool.map(ask, self._plan.shards))
        except RuntimeError as error:
            raise DataError(f"the index {self.folder} is closed; open it again") from error

    def _replicas(self) -> list[tuple[int, EmbeddedIndex]]:
        """All replicas with the numbers of their shards; raises if one is away, so that no change begins then."""
        return [(shard, self._replica(name)) for shard, names in enumerate(self._plan.shards) for name in names]

    def _replica(self, name: str, *, create: bool = False) -> EmbeddedIndex:
        if name not in self._opened:
            self._opened[name] = EmbeddedIndex(
                self.folder / name,
                n_bits=self.n_bits,
                create=create,
                model_fingerprint=self.model_fingerprint,
                durability=self._durability,
            )
        return self._opened[name]


def _store(replica: EmbeddedIndex, rows: list[Row]) -> None:
    items = [item_from_row(row, replica.n_bits) for row in rows]
    width = bytes_per_code(replica.n_bits)
    codes = Codes(np.frombuffer(b"".join(row[1] for row in rows), np.uint8).reshape(-1, width), replica.n_bits)
    # Items without a key or digest go in a call of their own: a call gives one to all its items or to none.
    for has_key in (False, True):
        for has_digest in (False, True):
            mine = [
                i
                for i, item in enumerate(items)
                if (item.key is not None, item.digest is not None) == (has_key, has_digest)
            ]
            if mine:
                replica.add(
                    codes[mine],
                    ids=[items[i].id for i in mine],
                    metadata=[items[i].metadata for i in mine],
                    keys=[items[i].key or "" for i in mine] if has_key else None,
                    digests=[items[i].digest or b"" for i in mine] if has_digest else None,
                    upsert=True,
                )
