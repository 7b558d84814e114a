"""The embedded engine: SQLite rows are the truth, search scans a copy of their codes.

A folder holds ``manifest.json`` (format version, code length, model fingerprint), ``items.sqlite`` (write-ahead log) and, once there are
many items, ``codes.cache``. One transaction stores a call of ``add``; when it returns the items survive the death of the process.
Durability ``normal`` may lose the last transactions when the power fails, never the file; ``full`` waits for the disk each time. Several
processes may read beside one writer; a search sees one committed state.

The cache is mapped into memory and holds the codes of some generation of the rows; what changed since is read from the rows and held
beside it. When that becomes much, whoever searches writes a new cache. A cache that is damaged, lost or of another database is made again.

Without a folder the same engine keeps its rows in memory: ``memory://``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillhash.codes import Codes
from distillhash.errors import DataError, DistillHashError, FormatError
from distillhash.hamming import ClusteredCodes, warm_up
from distillhash.index import cluster_cache, code_cache
from distillhash.index.base import Index, Item, RangeResult, SearchResult, check_k, check_radius
from distillhash.index.incoming import Incoming
from distillhash.index.items import Durability, ItemTable, State
from distillhash.index.manifest import Manifest
from distillhash.index.memory import CodesInMemory
from distillhash.index.rows import check_ids, is_id, item_from_row
from distillhash.index.snapshot import Snapshot

CLUSTERED_FROM = 1_000_000
"""Items from which grouping the codes is tried; below that a scan takes tenths of a millisecond."""

_CACHED_FROM = 65536  # changed items that are worth a new cache file; reading as many rows takes a tenth of a second
_CACHED_SHARE = 64  # and no more often than each time a 64th of the codes changed


class EmbeddedIndex(Index):
    """An index in a folder, or in memory. Open it with :func:`distillhash.index.open_index`; one thread at a time."""

    def __init__(
        self,
        folder: Path | None,
        *,
        n_bits: int | None,
        create: bool,
        model_fingerprint: str | None,
        durability: Durability = "normal",
    ) -> None:
        """Open or make the folder; None keeps everything in memory."""
        self.folder = folder
        self._snapshot: Snapshot | None = None
        if folder is None:
            manifest = Manifest.new(n_bits, model_fingerprint)
            self._items = ItemTable(None)
            self._items.make()
        else:
            manifest = self._open(folder, n_bits, create, model_fingerprint, durability)
        self.n_bits = manifest.n_bits
        self.model_fingerprint = manifest.model_fingerprint

    def _open(
        self, folder: Path, n_bits: int | None, create: bool, model_fingerprint: str | None, durability: Durability
    ) -> Manifest:
        file, database = folder / "manifest.json", folder / "items.sqlite"
        is_new = not file.exists()
        if is_new and not create:
            raise DataError(f"there is no index at {folder}; make one with `distillhash index`, or pass create=True")
        held = Manifest.new(n_bits, model_fingerprint) if is_new else Manifest.read(file)
        if is_new:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise DistillHashError(f"{folder} cannot be made ({error.strerror}); choose another folder") from error
        elif not database.exists():
            raise FormatError(f"{database} is missing; restore it or build the index again in another folder")
        self._items = ItemTable(database, durability)
        try:
            if is_new:
                held = self._make(folder, held)
            held.check_fits(folder, n_bits, model_fingerprint)
            self._items.check()
        except BaseException:
            self._items.close()
            raise
        return held

    def _make(self, folder: Path, manifest: Manifest) -> Manifest:
        """Make the tables, then the manifest, whose presence says that the index is whole; of two processes, one does."""
        file = folder / "manifest.json"
        self._items.make()
        with self._items.transaction():
            if file.exists():
                return Manifest.read(file)
            self._items.check()
            if self._items.state().items:
                raise FormatError(f"{folder} holds items but no manifest.json; restore it or choose another folder")
            manifest.write(file)
        return manifest

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
        """See :meth:`Index.add`."""
        self._check_codes(codes)
        incoming = Incoming.checked(codes, ids, metadata, keys, digests)
        with self._items.transaction():
            known = self._items.known(incoming.keys or [])
            present = self._items.present([] if incoming.ids is None else incoming.ids.tolist())
            chosen = incoming.choose_ids(
                known=known, present=present, following=self._items.state().last_id + 1, upsert=upsert
            )
            replaced = present | {identifier for identifier, _ in known.values()}
            self._items.put(incoming.rows(chosen), chosen, replaced)
        return chosen

    def remove(self, ids: Sequence[int] | NDArray[np.int64] = (), *, keys: Sequence[str] = ()) -> int:
        """See :meth:`Index.remove`."""
        wanted = set(check_ids(ids).tolist())
        with self._items.transaction():
            if absent := wanted - self._items.present(list(wanted)):
                raise DataError(f"there is no item with id {min(absent)} in {self._name}; nothing was removed")
            known = self._items.known(keys)
            for key in keys:
                if key not in known:
                    raise DataError(f"there is no item with key {key!r} in {self._name}; nothing was removed")
            wanted.update(identifier for identifier, _ in known.values())
            self._items.delete(wanted)
        return len(wanted)

    def search(self, codes: Codes, k: int = 10, *, where: str | None = None) -> SearchResult:
        """See :meth:`Index.search`."""
        self._check_codes(codes)
        check_k(k)
        snapshot, among = self._committed(where)
        return snapshot.nearest(codes, k, among)

    def range_search(self, codes: Codes, radius: int = 3, *, where: str | None = None) -> RangeResult:
        """See :meth:`Index.range_search`."""
        self._check_codes(codes)
        check_radius(radius)
        snapshot, among = self._committed(where)
        return snapshot.within(codes, radius, among)

    def get(self, ids: Sequence[int]) -> list[Item]:
        """See :meth:`Index.get`."""
        rows = self._items.rows([int(identifier) for identifier in ids if is_id(identifier)])
        for identifier in ids:
            if identifier not in rows:
                raise DataError(f"there is no item with id {identifier} in {self._name}; search gives ids that are")
        try:
            return [item_from_row(rows[identifier], self.n_bits) for identifier in ids]
        except FormatError as error:
            raise self._damaged(error) from error

    def known(self, keys: Sequence[str]) -> dict[str, tuple[int, bytes | None]]:
        """See :meth:`Index.known`."""
        return self._items.known(keys)

    def ids(self) -> NDArray[np.int64]:
        """See :meth:`Index.ids`."""
        return self._committed(None)[0].ids()

    def present(self, ids: Sequence[int]) -> set[int]:
        """See :meth:`Index.present`."""
        return self._items.present([int(identifier) for identifier in ids if is_id(identifier)])

    def prepare(self) -> None:
        """See :meth:`Index.prepare`: read the codes, write the cache file if that is worth it, and load the compiled search."""
        warm_up(self.n_bits)
        self._committed(None)

    def compact(self) -> None:
        """See :meth:`Index.compact`; from ``CLUSTERED_FROM`` items on it also groups the codes, for searches that skip most of them."""
        snapshot, _ = self._committed(None)
        self._items.compact()
        n = snapshot.n_items()
        if n >= _CACHED_FROM:
            snapshot = self._cached(snapshot)  # the way from an older file is forgotten now
        if n >= CLUSTERED_FROM and find_spec("numba") is not None:
            clusters = ClusteredCodes(snapshot.base.planes)
            if self.folder is not None:
                cluster_cache.write(self.folder / "codes.clusters", snapshot.name, clusters)
            snapshot = replace(snapshot, base=replace(snapshot.base, clusters=clusters))
        self._snapshot = snapshot

    def state(self) -> State:
        """See :meth:`Index.state`."""
        return self._items.state()

    def __len__(self) -> int:
        return self._items.state().items

    def close(self) -> None:
        """See :meth:`Index.close`."""
        self._snapshot = None
        self._items.close()

    def __repr__(self) -> str:
        return f"EmbeddedIndex({self._name!r}, n_bits={self.n_bits})"

    @property
    def _name(self) -> str:
        return "memory://" if self.folder is None else str(self.folder)

    def _committed(self, where: str | None) -> tuple[Snapshot, NDArray[np.int64] | None]:
        """The committed codes, read as far as they changed, and the ids for which the condition holds (None: all)."""
        with self._items.transaction("DEFERRED"):
            state = self._items.state()
            snapshot = self._known_snapshot(state)
            if snapshot.generation != state.generation:
                changed = self._items.changed_since(snapshot.generation)
                try:
                    snapshot = snapshot.after(state, changed, self._codes_since(snapshot), self.n_bits)
                except DataError as error:
                    raise self._damaged(error) from error
            among = None if where is None else self._items.matching(where)
        if snapshot.changes() > max(_CACHED_FROM, len(snapshot.base.ids) // _CACHED_SHARE):
            snapshot = self._cached(snapshot)
        self._snapshot = snapshot
        return snapshot, among

    def _codes_since(self, snapshot: Snapshot) -> Iterator[CodesInMemory]:
        for rows in self._items.codes_since(snapshot.generation, snapshot.last_id):
            yield CodesInMemory.from_rows(rows, self.n_bits)

    def _known_snapshot(self, state: State) -> Snapshot:
        """The latest state that is at hand and from which the way to the present is known."""
        held = self._snapshot
        if held is not None and self._items.leads_here(held.generation, held.name):
            return held
        if self.folder is not None and state.items >= _CACHED_FROM:
            cached = code_cache.read(self.folder / "codes.cache", self.n_bits)
            if cached is not None and self._items.leads_here(cached.generation, cached.name):
                clusters = cluster_cache.read(self.folder / "codes.clusters", cached.name, cached.codes.planes)
                snapshot = Snapshot.of_cached(cached, self.n_bits)
                return replace(snapshot, base=replace(snapshot.base, clusters=clusters))
        return Snapshot.of_nothing(self.n_bits)

    def _cached(self, snapshot: Snapshot) -> Snapshot:
        """The same state, mapped from a new cache file if that can be written."""
        folded = snapshot.folded(self.n_bits)
        if self.folder is not None:
            file = self.folder / "codes.cache"
            if code_cache.write(file, folded):
                mapped = code_cache.read(file, self.n_bits)
                if mapped is not None and mapped.name == folded.name:  # else another process was just as quick
                    folded = mapped
        return Snapshot.of_cached(folded, self.n_bits)

    def _damaged(self, error: Exception) -> FormatError:
        return FormatError(f"{self._items.name} is damaged ({error}); restore it or build the index again")
