"""The embedded engine: SQLite rows are the truth, and a search scans a copy of their codes.

A folder holds ``manifest.json`` (format version, code length, model fingerprint), ``items.sqlite`` (write-ahead log) and, once there are
many items, ``codes.cache``. One transaction stores a call of ``add``; when it returns, the items survive the death of the process.
Durability ``normal`` may lose the last transactions when the power fails, never the file; ``full`` waits for the disk each time. Several
processes may read beside one writer, and a search sees one committed state.

The cache is mapped into memory and holds the codes of one generation of the rows. What changed since is read from the rows and held
beside it. After many changes ``prepare`` writes a new cache. A cache that is damaged, lost or of another database is made again.

A folder is data that may come from a stranger, and reading it changes nothing in it: no journal is played back, no cache is written. Files
are regular ones, tables are exactly ours, and what is in them is checked before it is used.

Without a folder the same engine keeps its rows in memory: ``memory://``.
"""

from __future__ import annotations

import json
import operator
import os
import secrets
import sqlite3
import stat
import time
import zlib
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import chain, repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from distillhash.codes import Codes, bytes_per_code
from distillhash.errors import DataError, DistillHashError, FormatError, ParameterError
from distillhash.files import open_regular, write_ahead
from distillhash.hamming import nearest, planes_of, warm_up, within
from distillhash.hamming.ranking import By, first_of
from distillhash.hamming.search import Planes, candidates, compiles
from distillhash.index.base import (
    LARGEST_ID,
    Incoming,
    Index,
    Item,
    Known,
    RangeResult,
    Row,
    SearchResult,
    VectorType,
)
from distillhash.index.manifest import Manifest, damaged

if TYPE_CHECKING:
    from distillhash.hamming.clustered import ClusteredCodes
    from distillhash.hamming.substrings import SubstringTables

Durability = Literal["normal", "full"]

CLUSTERED_FROM = 1_000_000
"""Items from which ``compact`` groups the codes; a scan of fewer takes tenths of a millisecond."""

_RANKED_AT_ONCE = 1024  # queries whose candidates are held at a time
_CACHED_FROM = 65536  # changed items that are worth a new cache file; reading as many rows takes a tenth of a second
_CACHED_SHARE = 64  # and no more often than each time a 64th of the codes changed


class EmbeddedIndex(Index):
    """An index in a folder, or in memory. Open it with :func:`distillhash.index.open_index`; one thread at a time."""

    def __init__(
        self,
        folder: Path | None,
        n_bits: int | None,
        create: bool,
        model_fingerprint: str | None,
        durability: Durability = "normal",
        keep_vectors: VectorType | None = None,
    ) -> None:
        """Open or make the folder; None keeps everything in memory."""
        if keep_vectors is not None and keep_vectors not in get_args(VectorType):
            raise ParameterError(f"keep_vectors must be one of {', '.join(get_args(VectorType))}, got {keep_vectors!r}")
        self.folder = folder
        self._snapshot: Snapshot | None = None
        self._may_write = create  # cache files; a reader leaves the folder as it is
        self._is_unwritten = False  # whether more has changed than the cache file should lack
        if folder is None:
            manifest = Manifest.new(n_bits, model_fingerprint)
            self._items = ItemTable(None)
            self._items.make()
            if keep_vectors is not None:
                self._items.keep_vectors(keep_vectors)
        else:
            manifest = self._open(folder, n_bits, create, model_fingerprint, durability, keep_vectors)
        self._vector_type = self._items.vector_type
        self.n_bits = manifest.n_bits
        self.model_fingerprint = manifest.model_fingerprint

    def _open(
        self,
        folder: Path,
        n_bits: int | None,
        create: bool,
        model_fingerprint: str | None,
        durability: Durability,
        keep_vectors: VectorType | None,
    ) -> Manifest:
        file, database = folder / "manifest.json", folder / "items.sqlite"
        is_new = not os.path.lexists(file)
        if is_new and not create:
            part = " but a part of one, for manifest.json is missing" if database.exists() else ""
            raise DataError(
                f"there is no index at {folder}{part}; make one with `distillhash index`, or pass create=True"
            )
        held = Manifest.new(n_bits, model_fingerprint) if is_new else Manifest.read(file)
        if is_new:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise DistillHashError(f"{folder} cannot be made ({error.strerror}); choose another folder") from error
        elif not database.exists():
            text = f"{folder} looks like an index that cannot be read, for {database} is missing"
            raise FormatError(f"{text}; restore it or build the index again in another folder")
        self._items = ItemTable(database, durability)
        try:
            if is_new:  # make the tables, then the manifest, which marks the index as complete
                self._items.make()
                with self._items.transaction():  # only one of several processes makes it
                    if file.exists():
                        held = Manifest.read(file)
                    else:
                        self._items.check()
                        if self._items.state().items:
                            raise FormatError(
                                f"{folder} holds items but no manifest.json; restore it or choose another folder"
                            )
                        held.write(file)
            held.check_fits(folder, n_bits, model_fingerprint)
            self._items.check()
            if keep_vectors not in (None, self._items.vector_type):
                self._items.keep_vectors(keep_vectors)
        except BaseException:
            self._items.close()
            raise
        return held

    def _add(self, incoming: Incoming) -> NDArray[np.int64]:
        with self._items.transaction():
            known = self.known(incoming.keys or [])
            present = self._items.present([] if incoming.ids is None else incoming.ids.tolist())
            chosen = incoming.choose_ids(known=known, present=present, following=self._items.state().last_id + 1)
            replaced = present | {identifier for identifier, _ in known.values()}
            self._vector_type = self._items.vector_type  # another process may have made the table
            if self._vector_type is not None:  # before the items, as it looks at those that are there
                self._items.put_vectors(incoming, chosen)
            self._items.put(incoming.rows(chosen), chosen, replaced)
        self._may_write = True
        return chosen

    def _remove(self, ids: set[int], keys: Sequence[str]) -> int:
        with self._items.transaction():
            leaving = self._leaving(ids, keys, self._items.present(list(ids)), self.known(keys))
            self._items.delete(leaving)
        self._may_write = True
        return len(leaving)

    def _search(self, codes: Codes, k: int, where: str | None) -> SearchResult:
        snapshot, among = self._committed(where)
        return snapshot.nearest(codes, k, among)

    def _search_two_parts(self, codes: Codes, k: int, where: str | None, by: By) -> SearchResult:
        snapshot, among = self._committed(where)
        return snapshot.first_of_ranking(codes, k, among, by)

    def _packed(self, ids: NDArray[np.int64]) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        assert self._snapshot is not None  # of the search that found them
        return self._snapshot.packed(ids, bytes_per_code(self.n_bits))

    def _range_search(self, codes: Codes, radius: int, where: str | None) -> RangeResult:
        snapshot, among = self._committed(where)
        return snapshot.within(codes, radius, among)

    def _get(self, ids: list[int]) -> dict[int, Item]:
        return {row[0]: self._item(*row) for row in self._items.rows(ids)}

    @property
    def vector_type(self) -> VectorType | None:
        """See :class:`Index`."""
        return self._vector_type

    def _vectors(self, ids: list[int], n_bytes: int) -> dict[int, bytes]:
        return self._items.vectors(ids, n_bytes)

    def _item(self, identifier: int, code: bytes, key: Any, digest: bytes | None, metadata: str | None) -> Item:
        try:
            packed, width = np.frombuffer(code, np.uint8)[None], bytes_per_code(self.n_bits)
            is_sound = len(code) == width and not code[-1] & ((1 << (8 * width - self.n_bits)) - 1)
            # The common case skips from_packed: its general checks would take most of the time of a served search.
            codes = Codes(packed, self.n_bits) if is_sound else Codes.from_packed(packed, self.n_bits)
            if digest is not None and not isinstance(digest, bytes):
                raise TypeError("the digest is no bytes")
            return Item(identifier, codes, _key_from_sql(key), digest, _entry(metadata))
        except (TypeError, ValueError, RecursionError) as error:
            raise damaged(self._items.name, f"the row of id {identifier}: {error}") from error

    def known(self, keys: Sequence[str]) -> Known:
        """See :meth:`Index.known`."""
        return self._items.known(keys)

    def _present(self, ids: list[int]) -> set[int]:
        return self._items.present(ids)

    def _members(self, source: str, below: str) -> Iterator[tuple[int, Any, bytes | None, Any]]:
        for identifier, key, digest, metadata in self._items.mentioning(json.dumps(source), below):
            try:
                yield identifier, _key_from_sql(key), digest, _entry(metadata)
            except (TypeError, ValueError, RecursionError) as error:
                raise damaged(self._items.name, f"the row of id {identifier}: {error}") from error

    def ids(self) -> NDArray[np.int64]:
        """See :meth:`Index.ids`."""
        return self._committed(None)[0].ids()

    def is_exact(self, class_bits: int = 0, *, within: bool = False) -> bool:  # noqa: ARG002
        """See :meth:`Index.is_exact`."""
        return True

    def prepare(self, class_bits: int = 0) -> None:
        """See :meth:`Index.prepare`: read the codes, write the cache file if that is worth it, and load the compiled search."""
        warm_up(self.n_bits, class_bits)
        snapshot, _ = self._committed(None)
        if self._may_write and self._is_unwritten:
            self._snapshot = self._cached(snapshot)

    def compact(self) -> None:
        """See :meth:`Index.compact`; from ``CLUSTERED_FROM`` items on it also groups the codes, for searches that skip most of them."""
        snapshot, _ = self._committed(None)
        self._items.compact()
        if len(snapshot) >= _CACHED_FROM:
            snapshot = self._cached(snapshot)  # the changes since an older file are forgotten now
        if len(snapshot) >= CLUSTERED_FROM and compiles():
            snapshot = _with_new_clusters(snapshot, self.folder)
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
        return f"EmbeddedIndex({self._place!r}, n_bits={self.n_bits})"

    @property
    def _place(self) -> str:
        return "memory://" if self.folder is None else str(self.folder)

    def _committed(self, where: str | None) -> tuple[Snapshot, NDArray[np.int64] | None]:
        """The committed codes, and the ids for which the condition holds (None: all); reads only what changed."""
        with self._items.transaction("DEFERRED"):
            state = self._items.state()
            snapshot = self._latest_snapshot(state)
            if snapshot.generation != state.generation:
                self._items.check_count(state)
                changed = self._items.changed_since(snapshot.generation)
                batches = self._items.codes_since(snapshot.generation, snapshot.last_id, bytes_per_code(self.n_bits))
                try:
                    snapshot = snapshot.after(
                        state, changed, (CodesInMemory.from_rows(rows, self.n_bits) for rows in batches)
                    )
                except DataError as error:
                    raise damaged(self._items.name, error) from error
            among = None if where is None else self._items.matching(where)
        if snapshot.n_changes() > max(_CACHED_FROM, len(snapshot.base.ids) // _CACHED_SHARE):
            snapshot, self._is_unwritten = snapshot.folded(), True
        self._snapshot = snapshot
        return snapshot, among

    def _latest_snapshot(self, state: State) -> Snapshot:
        """The latest snapshot at hand whose changes up to ``state`` are all in the database."""
        held = self._snapshot
        if held is not None and self._items.is_ancestor(held.generation, held.name):
            return held
        if self.folder is not None and state.items >= _CACHED_FROM:
            cached = _read_cache(self.folder / "codes.cache", self.n_bits)
            if cached is not None and self._items.is_ancestor(cached.generation, cached.name):
                return _with_stored_clusters(cached, self.folder / "codes.clusters") if compiles() else cached
        return Snapshot.of(CodesInMemory.empty(self.n_bits), 0, "", -1)

    def _cached(self, snapshot: Snapshot) -> Snapshot:
        """The same state, mapped from a new cache file if that can be written."""
        folded, self._is_unwritten = snapshot.folded(), False
        if self.folder is not None and _write_cache(self.folder / "codes.cache", folded):
            mapped = _read_cache(self.folder / "codes.cache", self.n_bits)
            if mapped is not None and mapped.name == folded.name:  # else another process replaced it meanwhile
                return mapped
        return folded


@dataclass(frozen=True)
class CodesInMemory:
    """Ids and their codes."""

    ids: NDArray[np.int64]  # ascending, so that the kernels' order of rows is the order of ids
    planes: Planes  # (n_planes, n), from planes_of
    clusters: ClusteredCodes | None = None  # the same planes grouped, where that was done; answers are the same

    @classmethod
    def empty(cls, n_bits: int) -> CodesInMemory:
        """No codes."""
        return cls(np.zeros(0, np.int64), planes_of(Codes(np.zeros((0, bytes_per_code(n_bits)), np.uint8), n_bits)))

    @classmethod
    def from_rows(cls, rows: Sequence[tuple[int, bytes]], n_bits: int) -> CodesInMemory:
        """Codes from at least one (id, packed code) row, ids ascending; :class:`DataError` if a code is damaged."""
        ids, codes = zip(*rows, strict=True)
        width = bytes_per_code(n_bits)
        if ids[0] < 0:
            raise DataError(f"there is an item of id {ids[0]}")
        packed = Codes.from_packed(np.frombuffer(b"".join(codes), np.uint8).reshape(-1, width), n_bits)
        return cls(np.array(ids, np.int64), planes_of(packed))

    def joined(self, others: Iterable[CodesInMemory], n: int) -> CodesInMemory:
        """These codes and others, ``n`` in all (else :class:`DataError`); the others are taken one by one, to save memory."""
        ids, planes = np.empty(n, np.int64), np.empty((len(self.planes), n), self.planes.dtype)
        end = 0
        for part in chain([self], others):
            start, end = end, end + len(part.ids)
            if end > n:
                break
            ids[start:end], planes[:, start:end] = part.ids, part.planes
        if end != n:
            raise DataError(f"there are {'more' if end > n else 'fewer'} items than the {n} counted")
        if np.all(ids[1:] > ids[:-1]):
            return CodesInMemory(ids, planes)
        order = np.argsort(ids, kind="stable")
        return CodesInMemory(ids[order], planes[:, order])

    def where(self, keep: NDArray[np.bool_]) -> CodesInMemory:
        """The rows of a mask."""
        return self if keep.all() else CodesInMemory(self.ids[keep], self.planes[:, keep])

    def holds(self, ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        """``(n,)``: which rows have one of these ids, which are ascending; unknown ids are ignored."""
        mask = np.zeros(len(self.ids), np.bool_)
        places = np.searchsorted(self.ids, ids)
        inside = places < len(self.ids)
        places, ids = places[inside], ids[inside]
        mask[places[self.ids[places] == ids]] = True
        return mask

    def nearest(self, codes: Codes, k: int, allowed: NDArray[np.bool_] | None) -> SearchResult:
        """The ``k`` nearest of the allowed rows (None: of all)."""
        search = partial(nearest, database=self.planes) if self.clusters is None else self.clusters.nearest
        rows, distances = search(planes_of(codes), k=k, allowed=allowed)
        if not len(self.ids):
            return SearchResult(rows, distances)  # all -1
        return SearchResult(np.where(rows < 0, -1, self.ids[rows]), distances)

    def candidates(self, codes: Codes, k: int, allowed: NDArray[np.bool_] | None, by: By) -> tuple[NDArray[Any], ...]:
        """Ids, distances and class distances, of which the ``k`` first of the ranking are made; of codes of two parts."""
        rows, *others = candidates(planes_of(codes), self.planes, k, codes.class_bits, by, allowed)
        return (np.where(rows < 0, -1, self.ids[rows]) if len(self.ids) else rows), *others

    def packed(self, rows: NDArray[np.intp], n_bytes: int) -> NDArray[np.uint8]:
        """The packed codes of rows, ``(n, n_bytes)``."""
        return np.ascontiguousarray(self.planes[:, rows].T).view(np.uint8)[:, :n_bytes]

    def within(self, codes: Codes, radius: int, allowed: NDArray[np.bool_] | None) -> RangeResult:
        """The allowed rows within ``radius`` bits."""
        structure = self.clusters if self.clusters is not None and len(codes) == 1 else self._tables
        search: Callable[..., Any] = partial(within, database=self.planes) if structure is None else structure.within
        limits, rows, distances = search(planes_of(codes), radius=radius, allowed=allowed)
        return RangeResult(limits, self.ids[rows], distances)

    @cached_property
    def _tables(self) -> SubstringTables | None:
        """What searches within a radius use where that is faster; made when it pays."""
        if not compiles():
            return None
        from distillhash.hamming.substrings import SubstringTables

        return SubstringTables(self.planes)


@dataclass(frozen=True)
class Snapshot:
    """The codes of one committed state: a base, of which some rows are gone, and fresh codes; no id is in both."""

    generation: int  # this and the next two as in State
    name: str
    last_id: int
    base: CodesInMemory  # codes as they were in an earlier generation
    gone: NDArray[np.bool_] | None  # (n_base,): rows that were replaced or removed since; None if there are none
    fresh: CodesInMemory  # codes that are new or were replaced since

    @classmethod
    def of(cls, codes: CodesInMemory, generation: int, name: str, last_id: int) -> Snapshot:
        """A state whose codes are all in the base."""
        return cls(generation, name, last_id, codes, None, CodesInMemory(codes.ids[:0], codes.planes[:, :0]))

    def after(self, state: State, changed: NDArray[np.int64], codes: Iterable[CodesInMemory]) -> Snapshot:
        """The snapshot of a later state, from the ids that were replaced or removed since, ascending, and new or replaced codes."""
        gone = self.base.holds(changed)
        if self.gone is not None:
            gone |= self.gone
        n_fresh = state.items - (len(gone) - int(gone.sum()))
        if n_fresh < 0:
            raise DataError(f"there are more items than the {state.items} counted")
        fresh = self.fresh.where(~self.fresh.holds(changed)).joined(codes, n_fresh)
        gone_if_any = gone if gone.any() else None
        return Snapshot(state.generation, state.name, state.last_id, self.base, gone_if_any, fresh)

    def __len__(self) -> int:
        return len(self.base.ids) + len(self.fresh.ids) - self._n_gone()

    def n_changes(self) -> int:
        """How many rows differ from the base."""
        return len(self.fresh.ids) + self._n_gone()

    def _n_gone(self) -> int:
        return 0 if self.gone is None else int(self.gone.sum())

    def ids(self) -> NDArray[np.int64]:
        """The ids of all items, ascending."""
        kept = self.base.ids if self.gone is None else self.base.ids[~self.gone]
        return np.sort(np.concatenate([kept, self.fresh.ids]), kind="stable")

    def folded(self) -> Snapshot:
        """The same state with all codes in the base."""
        kept = self.base if self.gone is None else self.base.where(~self.gone)
        codes = kept.joined([self.fresh], len(self)) if len(kept.ids) else self.fresh
        return Snapshot.of(codes, self.generation, self.name, self.last_id)

    def nearest(self, codes: Codes, k: int, among: NDArray[np.int64] | None) -> SearchResult:
        """The ``k`` nearest items of every code; ``among`` are the ids that may be found, ascending (None: all)."""
        return SearchResult.merged([part.nearest(codes, k, allowed) for part, allowed in self._parts(among)], k)

    def first_of_ranking(self, codes: Codes, k: int, among: NDArray[np.int64] | None, by: By) -> SearchResult:
        """The ``k`` first items of the ranking for every code, which has two parts; ``among`` as in :meth:`nearest`."""
        parts = list(self._parts(among))
        answers = [(np.zeros((0, k), np.int64), np.zeros((0, k), np.int32))]
        for start in range(0, len(codes), _RANKED_AT_ONCE):
            some = codes[start : start + _RANKED_AT_ONCE]
            found = [part.candidates(some, k, allowed, by) for part, allowed in parts]
            found_ids, far, of_class = (np.concatenate(arrays, axis=1) for arrays in zip(*found, strict=True))
            answers.append(first_of(found_ids, far, of_class, k, by))
        ids, distances = (np.concatenate(arrays) for arrays in zip(*answers, strict=True))
        return SearchResult(ids, distances)

    def packed(self, ids: NDArray[np.int64], n_bytes: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """The packed codes of ids, ascending and unique, and whether they are there."""
        packed, is_there = np.zeros((len(ids), n_bytes), np.uint8), np.zeros(len(ids), np.bool_)
        for part in (self.base, self.fresh):  # the fresh ones last: what the base has of them is old
            rows = np.searchsorted(part.ids, ids)
            held = np.append(part.ids, -2)[rows] == ids
            packed[held] = part.packed(rows[held], n_bytes)
            is_there |= held
        return packed, is_there

    def within(self, codes: Codes, radius: int, among: NDArray[np.int64] | None) -> RangeResult:
        """All items within ``radius`` bits of every code; ``among`` as in :meth:`nearest`."""
        return RangeResult.merged([part.within(codes, radius, allowed) for part, allowed in self._parts(among)])

    def _parts(self, among: NDArray[np.int64] | None) -> Iterator[tuple[CodesInMemory, NDArray[np.bool_] | None]]:
        """The base, and the fresh codes if there are any, with the rows of each that may be found (None: all)."""
        allowed = None if among is None else self.base.holds(among)
        if self.gone is not None:
            allowed = ~self.gone if allowed is None else allowed & ~self.gone
        yield self.base, allowed
        if len(self.fresh.ids):
            yield self.fresh, None if among is None else self.fresh.holds(among)


def _entry(metadata: str | None) -> dict[str, Any] | None:
    """Stored metadata; :class:`TypeError`, :class:`ValueError` or :class:`RecursionError` where they are none."""
    entry = None if metadata is None else json.loads(metadata)
    if entry is not None and not isinstance(entry, dict):
        raise TypeError(f"the metadata are {entry!r:.40}")
    return entry


_MAGIC = b"distillhash codes 1\n"
_HEADER_BYTES = 4096  # one page, so that the arrays begin on a page
_ID = np.dtype("<i8")


def _write_cache(file: Path, snapshot: Snapshot) -> bool:
    """Write a snapshot whose codes are all in its base; False if it cannot be written. docs/formats.md describes the file."""
    ids, planes = snapshot.base.ids.astype(_ID, copy=False), snapshot.base.planes
    planes = planes.astype(planes.dtype.newbyteorder("<"), copy=False)
    fields = {
        "generation": snapshot.generation,
        "name": snapshot.name,
        "last_id": snapshot.last_id,
        "shape": list(planes.shape),
        "checksum": _crc(planes, _crc(ids)),
    }
    text = json.dumps(fields).encode()
    header = _MAGIC + b"%08x %08x\n" % (len(text), zlib.crc32(text)) + text

    def write(temporary: Path) -> None:
        with temporary.open("xb") as stream:
            stream.write(header.ljust(_HEADER_BYTES, b"\0"))
            ids.tofile(stream)
            planes.tofile(stream)

    return _replace(file, write)


def _read_cache(file: Path, n_bits: int) -> Snapshot | None:
    """The snapshot in a cache file, its codes mapped; None where there is no file, or one that is cut short or damaged."""
    try:
        with open_regular(file) as stream:
            header, size = stream.read(_HEADER_BYTES), os.fstat(stream.fileno()).st_size
        sizes, _, text = header.removeprefix(_MAGIC).partition(b"\n")
        length, checksum = (int(part, 16) for part in sizes.split())
        text = text[:length]
        if not header.startswith(_MAGIC) or zlib.crc32(text) != checksum:
            return None
        fields = json.loads(text)
        n_planes, n = map(operator.index, fields["shape"])
        state = State(operator.index(fields["generation"]), fields["name"], n, operator.index(fields["last_id"]))
        if not isinstance(state.name, str) or not 0 <= state.generation <= LARGEST_ID >= state.last_id >= -1:
            return None
        like = CodesInMemory.empty(n_bits).planes
        n_bytes = n * (_ID.itemsize + n_planes * like.itemsize)
        if n_planes != len(like) or size != _HEADER_BYTES + n_bytes:
            return None
        mapped = np.memmap(file, np.uint8, "r", _HEADER_BYTES) if n else np.zeros(0, np.uint8)
        ids = mapped[: _ID.itemsize * n].view(_ID)
        planes = mapped[_ID.itemsize * n :].view(like.dtype.newbyteorder("<"))
        if _crc(planes, _crc(ids)) != fields["checksum"]:
            return None
        if n and not (ids[0] >= 0 and ids[-1] <= state.last_id and np.all(ids[1:] > ids[:-1])):
            return None
        codes = CodesInMemory(ids, planes.reshape(n_planes, n))
        return Snapshot.of(codes, state.generation, state.name, state.last_id)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _with_new_clusters(snapshot: Snapshot, folder: Path | None) -> Snapshot:
    """The snapshot, whose codes are all in its base, with clusters; a file, like the cache, keeps them for the next process."""
    from safetensors.numpy import save_file

    from distillhash.hamming.clustered import ClusteredCodes

    clusters = ClusteredCodes(snapshot.base.planes)
    if folder is not None:
        arrays = clusters.arrays()
        about = {"name": snapshot.name, "checksum": str(_crc_of_arrays(arrays))}
        _replace(folder / "codes.clusters", lambda temporary: save_file(arrays, temporary, about))
    return replace(snapshot, base=replace(snapshot.base, clusters=clusters))


def _with_stored_clusters(snapshot: Snapshot, file: Path) -> Snapshot:
    """The snapshot of a cache file with its clusters, if there is a file of them that is sound and belongs to the same generation."""
    from safetensors import SafetensorError, safe_open

    from distillhash.hamming.clustered import ARRAYS, ClusteredCodes

    try:
        with open_regular(file):  # not a pipe, which would block the next line
            pass
        with safe_open(file, "numpy") as stored:
            about = stored.metadata() or {}
            if about.get("name") != snapshot.name:
                return snapshot
            arrays = {key: stored.get_tensor(key) for key in ARRAYS}
        if about.get("checksum") != str(_crc_of_arrays(arrays)):
            return snapshot
        clusters = ClusteredCodes.from_arrays(snapshot.base.planes, arrays)
    except (OSError, SafetensorError, ValueError, TypeError):  # a development version wrote other arrays
        return snapshot
    return replace(snapshot, base=replace(snapshot.base, clusters=clusters))


def _crc_of_arrays(arrays: dict[str, NDArray[Any]]) -> int:
    checksum = 0
    for key, array in sorted(arrays.items()):
        checksum = _crc(array, zlib.crc32(f"{key} {array.dtype} {array.shape}".encode(), checksum))
    return checksum


def _crc(array: NDArray[Any], start: int = 0) -> int:
    return zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data, start)


def _replace(file: Path, write: Callable[[Path], None]) -> bool:
    """Replace a cache file; False where that fails (no right to write, a full disk): that costs time later, and no answer changes."""
    from safetensors import SafetensorError

    temporary = file.with_name(f".{secrets.token_hex(8)}.partial")
    try:
        write(temporary)
        temporary.replace(file)
    except (OSError, SafetensorError):
        return False
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    return True


_TABLES = (
    """CREATE TABLE IF NOT EXISTS items (
        id INTEGER PRIMARY KEY AUTOINCREMENT, code BLOB NOT NULL, key TEXT UNIQUE, digest BLOB, metadata TEXT)""",
    "CREATE TABLE IF NOT EXISTS changes (id INTEGER PRIMARY KEY, generation INTEGER NOT NULL)",
    "CREATE INDEX IF NOT EXISTS changes_by_generation ON changes (generation)",
    "CREATE TABLE IF NOT EXISTS generations (number INTEGER PRIMARY KEY, name TEXT NOT NULL, items INTEGER NOT NULL)",
)
# Where vectors are kept, if at all: away from the items, so that reading those is not slowed.
_VECTORS: dict[str, VectorType] = {
    f"CREATE TABLE vectors (id INTEGER PRIMARY KEY, {kind} BLOB NOT NULL)": kind for kind in get_args(VectorType)
}
_OF_SQLITE = {  # what SQLite itself adds: for AUTOINCREMENT, for UNIQUE, and when somebody runs ANALYZE; None is the text of its own
    ("table", "sqlite_sequence", "CREATE TABLE sqlite_sequence(name,seq)"),
    ("index", "sqlite_autoindex_items_1", "None"),
    ("table", "sqlite_stat1", "CREATE TABLE sqlite_stat1(tbl,idx,stat)"),
    ("table", "sqlite_stat4", "CREATE TABLE sqlite_stat4(tbl,idx,neq,nlt,ndlt,sample)"),
}
_MOST_VARIABLES = 500  # of one SQL statement; SQLite allows 999 at least
_MEMBERS_AT_ONCE = 10_000
_ROWS_AT_ONCE = 65536  # read into Python objects, which are many times larger than the codes
_BYTES_AT_ONCE, _BYTES_OF_AN_ITEM = 256 << 20, 64 << 10  # of keys and metadata in one answer
_WAIT_SECONDS = 60.0
# Keys come in any order: with SQLite's default cache of 2 MB their index is read from the disk again and again. The log is transferred to
# the table every 16384 pages of 4 KiB.
_SETTINGS = ("trusted_schema=OFF", "cell_size_check=ON", "cache_size=-65536", "wal_autocheckpoint=16384")
_LIMITS = {
    sqlite3.SQLITE_LIMIT_LENGTH: 16 << 20,  # bytes of one value or row
    sqlite3.SQLITE_LIMIT_SQL_LENGTH: 100_000,
    sqlite3.SQLITE_LIMIT_EXPR_DEPTH: 200,
    sqlite3.SQLITE_LIMIT_COMPOUND_SELECT: 10,
    sqlite3.SQLITE_LIMIT_ATTACHED: 1,  # VACUUM needs one
    sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH: 1000,
}
_CONDITION_SECONDS = 10.0  # for a condition, and as much again for a million items
_JOURNAL_SECONDS = 2.0
_LEAST_STEPS, _STEPS_PER_BYTE = 10_000_000, 50  # a row takes 10 bytes or more, and some 10 to 40 steps of SQLite
_STEPS_AT_ONCE = 10_000  # steps between two counts
_STEPS_BETWEEN_LOOKS = 1000  # steps between two looks at the clock


class State(NamedTuple):
    """What is committed."""

    generation: int  # number of changes so far
    name: str  # of this generation
    items: int
    last_id: int  # the largest id ever used, -1 at first


class ItemTable:
    """The SQLite database of an index; one thread at a time.

    Every committed change makes a new generation, which has a number and a random name. The name tells it from one of the same number in
    another history of the database, as when a copy was restored. For every item that was replaced or removed, the generation of its last
    change is kept, so that a process that has the codes of one generation reads only what changed since. New items need no such entry:
    their ids are larger than all before them.

    Every method raises :class:`DistillHashError` where the database cannot be used, :class:`FormatError` where it is damaged.
    """

    def __init__(self, database: Path | None, durability: Durability = "normal") -> None:
        """Open the file; None is a database in memory. Call :meth:`make` or :meth:`check` next."""
        if durability not in get_args(Durability):
            raise ParameterError(f"durability must be one of {', '.join(get_args(Durability))}, got {durability!r}")
        self.name = "memory://" if database is None else str(database)
        self._database, self._durability, self._is_writing = database, durability, False
        self._connect(":memory:" if database is None else _address(database))

    def _connect(self, address: str) -> None:
        self._address = address
        try:
            self._connection = sqlite3.connect(
                address, uri=True, timeout=_WAIT_SECONDS, isolation_level=None, check_same_thread=False
            )
        except sqlite3.Error as error:
            raise self._explained(error) from error
        try:
            for limit, most in _LIMITS.items():
                self._connection.setlimit(limit, most)
            for setting in (*_SETTINGS, f"synchronous={self._durability}"):
                self._run(f"PRAGMA {setting}")
        except DistillHashError:
            self._connection.close()
            raise

    def _begin_writing(self) -> None:
        """From the first change on, the file is open for changes, in a write-ahead log."""
        if self._is_writing:
            return
        self._run("SELECT 1")  # raises on a closed index
        if self._database is not None:
            address = _address(self._database, is_reader=False)
            if address != self._address:
                self._connection.close()
                self._connect(address)
            try:
                write_ahead(self._connection, wait=_WAIT_SECONDS)
            except sqlite3.Error as error:
                raise self._explained(error) from error
        self._is_writing = True

    def make(self) -> None:
        """Make the tables that are not there."""
        with self.transaction():
            for table in _TABLES:
                self._run(table)
            if self._run("SELECT count(*) FROM generations") == [(0,)]:
                self._run("INSERT INTO generations VALUES (0, ?, 0)", secrets.token_hex(8))

    def check(self) -> None:
        """Raise :class:`FormatError` unless these are the tables of an index, and nothing else is there that could run or act."""
        found = self._run(f"SELECT type, name, sql FROM sqlite_master LIMIT {len(_TABLES) + len(_OF_SQLITE) + 2}")
        made = [(kind, name, " ".join(str(sql).split())) for kind, name, sql in found]
        ours = {" ".join(table.replace("IF NOT EXISTS ", "").split()) for table in _TABLES}
        allowed = _OF_SQLITE | {(text.split()[1].lower(), text.split()[2], text) for text in (*ours, *_VECTORS)}
        # A name proves nothing: a trigger may be called sqlite_x, or as a table of ours is.
        foreign = [name for kind, name, sql in made if (kind, name, sql) not in allowed]
        if foreign or len(made) != len(set(made)) or ours - {sql for _, _, sql in made}:
            what = f" (it has {foreign[0]!r:.60})" if foreign else ""
            raise FormatError(f"{self.name} is not the database of an index{what}; restore it or build the index again")

    def state(self) -> State:
        """What is committed now."""
        last_id = "coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'items'), -1)"
        newest = self._run(f"SELECT number, name, items, {last_id} FROM generations ORDER BY number DESC LIMIT 1")
        if not newest or [type(value) for value in newest[0]] != [int, str, int, int]:
            raise damaged(self.name, f"the generation {newest!r:.100}")
        return State(*newest[0])

    def check_count(self, state: State) -> None:
        """Raise :class:`FormatError` where there cannot be as many items as are counted."""
        ((pages,),), ((size,),) = (self._run(f"PRAGMA {name}") for name in ("page_count", "page_size"))
        if not 0 <= state.items <= pages * size:
            raise damaged(self.name, f"{state.items} items in {pages * size} bytes")

    def is_ancestor(self, generation: int, name: str) -> bool:
        """Whether that generation was one of this database, and all changes since are known."""
        return self._run("SELECT name FROM generations WHERE number = ?", generation) == [(name,)]

    def put(self, rows: Iterable[Row], ids: NDArray[np.int64], replaced: Collection[int]) -> None:
        """Store rows with these ids, of which ``replaced`` are there already; within a transaction."""
        last_id = self.state().last_id
        encoded = (
            (identifier, code, None if key is None else _key_to_sql(key), digest, metadata)
            for identifier, code, key, digest, metadata in rows
        )
        self._run_many("INSERT OR REPLACE INTO items VALUES (?, ?, ?, ?, ?)", encoded)
        self._note({*replaced, *ids[ids <= last_id].tolist()}, len(ids) - len(replaced))

    @property
    def vector_type(self) -> VectorType | None:
        """How vectors are kept; None where they are not."""
        found = self._run("SELECT sql FROM sqlite_master WHERE name = 'vectors'")
        return _VECTORS[found[0][0]] if found else None

    def keep_vectors(self, kind: VectorType) -> None:
        """Keep vectors from now on; :class:`ParameterError` where there are items, which have none of this kind."""
        with self.transaction():
            kept = self.vector_type
            if kept is None and not self.state().items:
                self._run(next(table for table, made in _VECTORS.items() if made == kind))
            elif kept != kind:
                raise ParameterError(
                    f"{self.name} was made to keep {f'{kept} vectors' if kept else 'no vectors'}, which cannot become {kind}; "
                    "leave the option out, or index the sources into a new folder"
                )

    def put_vectors(self, incoming: Incoming, ids: NDArray[np.int64]) -> None:
        """Keep the vectors of items that are about to be stored; within a transaction."""
        if incoming.vectors is None:
            query = "SELECT id, code FROM items WHERE id IN ({})"
            held = dict(self._select_in(query, ids.tolist()))
            for identifier, code in zip(ids.tolist(), incoming.codes.packed, strict=True):
                if held.get(identifier) != code.tobytes():
                    raise DataError(
                        f"{self.name} keeps a vector of every item; give vectors, as indexing images or embeddings does"
                    )
            return
        for (n_bytes,) in self._run(f"SELECT length({self.vector_type}) FROM vectors LIMIT 1"):
            if incoming.vectors and len(incoming.vectors[0]) != n_bytes:
                raise DataError(
                    f"{self.name} keeps vectors of {n_bytes} bytes, got {len(incoming.vectors[0])}; give those of the same model"
                )
        self._run_many("INSERT OR REPLACE INTO vectors VALUES (?, ?)", zip(ids.tolist(), incoming.vectors, strict=True))

    def vectors(self, ids: Sequence[int], n_bytes: int) -> dict[int, bytes]:
        """The vectors of those items that are there; each must have so many bytes."""
        kind = self.vector_type
        of_size = f"CASE WHEN typeof({kind}) = 'blob' AND length({kind}) = {n_bytes} THEN {kind} END"
        found = dict(self._select_in(f"SELECT id, {of_size} FROM vectors WHERE id IN ({{}})", ids, at_once=1024))
        lacking = [identifier for identifier in ids if found.get(identifier) is None]
        if lacking and (wrong := self.present(lacking)):
            raise damaged(self.name, f"there is no vector of id {min(wrong)} that has {n_bytes} bytes")
        return {identifier: vector for identifier, vector in found.items() if vector is not None}

    def delete(self, ids: Collection[int]) -> None:
        """Remove the items with these ids, all of which are there; within a transaction."""
        self._run_many("DELETE FROM items WHERE id = ?", ((identifier,) for identifier in ids))
        if self.vector_type is not None:
            self._run_many("DELETE FROM vectors WHERE id = ?", ((identifier,) for identifier in ids))
        self._note(ids, -len(ids))

    def _note(self, changed: Collection[int], more: int) -> None:
        generation, _, items, _ = self.state()
        generation += 1
        self._run("INSERT INTO generations VALUES (?, ?, ?)", generation, secrets.token_hex(8), items + more)
        self._run_many("INSERT OR REPLACE INTO changes VALUES (?, ?)", ((item, generation) for item in changed))

    def changed_since(self, generation: int) -> NDArray[np.int64]:
        """Ids of the items that were replaced or removed since, ascending."""
        parts = self._stream("SELECT id FROM changes WHERE generation > ? ORDER BY id", generation)
        return np.fromiter((row[0] for rows in parts for row in rows), np.int64)

    def codes_since(self, generation: int, last_id: int, width: int) -> Iterator[list[tuple[int, bytes]]]:
        """Lists of (id, packed code) of the items that are new or replaced since, ascending; codes have ``width`` bytes."""
        code = f"CASE WHEN typeof(code) = 'blob' AND length(code) = {width} THEN code END"
        parts = self._stream(
            f"""SELECT id, {code} FROM items WHERE id <= ?2 AND id IN (SELECT id FROM changes WHERE generation > ?1)
                UNION ALL SELECT id, {code} FROM items WHERE id > ?2 ORDER BY id""",
            generation,
            last_id,
        )
        for rows in parts:
            if wrong := [identifier for identifier, code in rows if code is None]:
                found = self._run("SELECT typeof(code), length(code) FROM items WHERE id = ?", wrong[0])
                what = " and ".join(f"{size} bytes" if kind == "blob" else f"the type {kind}" for kind, size in found)
                raise damaged(self.name, f"the code of id {wrong[0]} has {what}, not {width} bytes")
            yield rows

    def rows(self, ids: Sequence[int]) -> list[tuple[Any, ...]]:
        """Id, code, key, digest and metadata of those items that are there."""
        n_bytes, most = 0, _BYTES_AT_ONCE + _BYTES_OF_AN_ITEM * len(ids)
        query = "SELECT id, code, key, digest, metadata FROM items WHERE id IN ({})"
        found = []
        with closing(self._select_in(query, ids, at_once=16)) as rows:
            for row in rows:
                n_bytes += sum(len(value) for value in row[1:] if isinstance(value, str | bytes))
                if n_bytes > most:
                    raise damaged(self.name, f"{len(ids)} items have more than {most >> 20} MiB of keys and metadata")
                found.append(row)
        return found

    def known(self, keys: Sequence[str]) -> Known:
        """Id and content digest of those keys that are there."""
        rows = self._select_in("SELECT key, id, digest FROM items WHERE key IN ({})", list(map(_key_to_sql, keys)))
        return {_key_from_sql(key): (identifier, digest) for key, identifier, digest in rows}

    def present(self, ids: Sequence[int]) -> set[int]:
        """Those of the ids that are there."""
        return {row[0] for row in self._select_in("SELECT id FROM items WHERE id IN ({})", ids)}

    def mentioning(self, text: str, below: str) -> Iterator[tuple[Any, ...]]:
        """Id, key, digest and metadata of the items with a text in their metadata, or with a key that begins with ``below``, if any."""
        start = _key_to_sql(below)
        same = f"substr(CAST(key AS BLOB), 1, {len(below.encode(errors='surrogatepass'))}) = CAST(?3 AS BLOB)"
        query = f"""SELECT id, key, digest, metadata FROM items
            WHERE id > ?1 AND (instr(metadata, ?2) > 0 {"OR " + same if below else ""}) ORDER BY id LIMIT {_MEMBERS_AT_ONCE}"""
        last = -1
        while rows := self._run(query, last, text, *([start] if below else [])):
            if rows[-1][0] <= last:
                raise damaged(self.name, f"id {last} is not before id {rows[-1][0]}")
            yield from rows
            last = rows[-1][0]

    def matching(self, condition: str) -> NDArray[np.int64]:
        """Ids of the items for which an SQL condition over their columns, which may only read, holds, ascending."""
        seconds = _CONDITION_SECONDS * (1 + self.state().items / 1e6)
        give_up = time.monotonic() + seconds
        self._connection.set_authorizer(_only_reads)
        self._connection.set_progress_handler(lambda: time.monotonic() > give_up, _STEPS_BETWEEN_LOOKS)
        try:
            rows = self._connection.execute(f"SELECT id FROM items WHERE (\n{condition}\n) ORDER BY id")
            return np.fromiter((row[0] for row in rows), np.int64)
        except (sqlite3.Error, sqlite3.Warning, ValueError) as error:  # a second statement is a Warning in Python 3.11
            if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_CORRUPT:
                raise self._explained(error) from error
            if str(error) == "interrupted":
                what = f"takes longer than {seconds:g} s; use a simpler condition"
            else:
                remedy = "use the columns id, key and metadata, as in metadata->>'label' = 'cat'"
                what = f"is no condition that SQLite takes ({error}); {remedy}"
            raise ParameterError(f"where={condition!r:.200} {what}") from error
        finally:
            self._connection.set_progress_handler(None, 0)
            self._connection.set_authorizer(None)

    def compact(self) -> None:
        """Forget what changed in the past and give free space back to the disk."""
        with self.transaction():
            self._run("DELETE FROM changes")
            self._run("DELETE FROM generations WHERE number < ?", self.state().generation)
        self._run("VACUUM")
        self._run("PRAGMA wal_checkpoint(TRUNCATE)")

    def close(self) -> None:
        """Close the file; calling it again changes nothing."""
        self._connection.close()

    @contextmanager
    def transaction(self, kind: Literal["IMMEDIATE", "DEFERRED"] = "IMMEDIATE") -> Iterator[None]:
        """All or nothing. ``IMMEDIATE`` waits for other writers before anything is read; ``DEFERRED`` reads one state."""
        if kind == "IMMEDIATE":
            self._begin_writing()
        self._run(f"BEGIN {kind}")
        try:
            yield
            self._run("COMMIT")
        except BaseException:
            if self._connection.in_transaction:  # SQLite itself rolls back when the disk is full
                self._connection.execute("ROLLBACK")
            raise

    def _run(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        """All rows of a statement."""
        return list(chain.from_iterable(self._stream(statement, *values)))

    def _stream(
        self, statement: str, *values: Any, at_once: int = _ROWS_AT_ONCE
    ) -> Generator[list[tuple[Any, ...]], None, None]:
        """The rows of a statement in lists of bounded length."""
        cursor = None
        try:
            self._limit_steps()
            cursor = self._connection.execute(statement, values)
            while rows := cursor.fetchmany(at_once):
                yield rows
        except (sqlite3.Error, UnicodeDecodeError, OverflowError) as error:
            raise self._explained(error) from error
        finally:
            if cursor is not None:
                with suppress(sqlite3.ProgrammingError):  # the index was closed meanwhile
                    cursor.close()

    def _limit_steps(self) -> None:
        """Let the next statement take no more steps than a database of this size can need.

        In a damaged file pages may be children of several others, so that a few of them hold rows without end. What counts the steps is no
        Python code: that would be interrupted in the place of a Ctrl-C.
        """
        if self._database is None:
            return
        size = 0
        for ending in ("", "-wal"):
            with suppress(OSError):
                size += os.stat(f"{self._database}{ending}").st_size  # noqa: PTH116  # for each statement; a Path is slower
        calls = (_LEAST_STEPS + _STEPS_PER_BYTE * size) // _STEPS_AT_ONCE
        self._connection.set_progress_handler(partial(next, repeat(0, calls), 1), _STEPS_AT_ONCE)

    def _run_many(self, statement: str, rows: Iterable[tuple[Any, ...]]) -> None:
        try:
            self._connection.set_progress_handler(None, 0)  # as many steps as there are rows
            self._connection.executemany(statement, rows)
        except (sqlite3.Error, UnicodeDecodeError, OverflowError) as error:
            raise self._explained(error) from error

    def _select_in(
        self, query: str, values: Sequence[Any], *, at_once: int = _ROWS_AT_ONCE
    ) -> Generator[Any, None, None]:
        """Rows of a query whose ``{}`` takes the placeholders of the values, a bounded number of values at a time."""
        self._run("SELECT 1")  # raises on a closed index even where there are no values
        for start in range(0, len(values), _MOST_VARIABLES):
            part = values[start : start + _MOST_VARIABLES]
            with closing(self._stream(query.format(",".join("?" * len(part))), *part, at_once=at_once)) as batches:
                yield from chain.from_iterable(batches)

    def _explained(self, error: Exception) -> DistillHashError:
        text = " ".join(str(error).split())[:200]
        if isinstance(error, sqlite3.ProgrammingError):
            return DataError(f"the index {self.name} is closed; open it again")
        if "locked" in text:
            return DistillHashError(
                f"another process has been writing to {self.name} for {_WAIT_SECONDS:g} s; try again when it is done"
            )
        if text == "interrupted":
            return damaged(self.name, "a statement finds more in it than it can hold")
        if isinstance(error, sqlite3.OperationalError) and "decode" not in text:
            return DistillHashError(f"{self.name} cannot be used now ({text}); check the disk and the permissions")
        return damaged(self.name, text)


def _only_reads(action: int, one: str | None, other: str | None, *_: object) -> int:
    """Whether a condition may do this: 0 allows it, 1 denies it."""
    if action == sqlite3.SQLITE_READ:
        return int(one != "items")
    if action == sqlite3.SQLITE_FUNCTION:
        return int(other == "load_extension")
    return int(action != sqlite3.SQLITE_SELECT)


def _address(database: Path, *, is_reader: bool = True) -> str:
    """The file as SQLite's URI, in a mode in which a reader changes nothing; :class:`FormatError` where a file is not the index's own."""
    journal, give_up = database.with_name(database.name + "-journal"), time.monotonic() + _JOURNAL_SECONDS
    while os.path.lexists(journal):  # a database that another process is making has one for a moment
        if time.monotonic() > give_up:
            raise FormatError(f"{journal} is not of an index, which has no such journal; remove it if it is not yours")
        time.sleep(0.01)
    sizes: dict[str, int] = {}
    for ending in ("", "-wal", "-shm"):
        file = database.with_name(database.name + ending)
        try:
            status = file.lstat()
        except FileNotFoundError:
            continue
        sizes[ending] = status.st_size
        if not stat.S_ISREG(status.st_mode) or (ending and status.st_nlink > 1):
            raise FormatError(
                f"{file} is not a regular file of its own, as in an index; restore it or build the index again"
            )
    effective = os.access in os.supports_effective_ids
    if "" not in sizes:
        mode = "mode=rwc"
    elif not sizes.get("-wal") and not os.access(database.parent, os.W_OK, effective_ids=effective):
        mode = "immutable=1"  # no log can be made here, so nobody changes it
    else:
        mode = "mode=ro" if is_reader and sizes.get("-wal") else "mode=rw"
    return f"file:{quote(str(database.absolute()))}?{mode}"


def _key_to_sql(key: str) -> str | bytes:
    """A key as SQLite takes it: bytes where a file name is not valid text (Python then holds surrogates)."""
    try:
        key.encode()
    except UnicodeEncodeError:
        return key.encode(errors="surrogatepass")
    return key


def _key_from_sql(key: Any) -> Any:
    """The key that :func:`_key_to_sql` took (None stays None)."""
    return key.decode(errors="surrogatepass") if isinstance(key, bytes) else key
