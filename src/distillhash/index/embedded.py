"""The embedded engine: SQLite rows are the truth, search scans codes in memory.

A folder holds ``manifest.json`` (format version, code length, model fingerprint) and ``items.sqlite`` (write-ahead log). One
transaction stores a call of ``add``; when it returns the items survive the death of the process. Durability ``normal`` may lose
the last transactions when the power fails, never the file; ``full`` waits for the disk each time. Several processes may read
beside one writer.

Codes are read into memory at the first search, and again after the index was changed, by this process or another.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import repeat
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from distillhash.codes import Codes, bytes_per_code
from distillhash.errors import DataError, DistillHashError, FormatError, ParameterError
from distillhash.index.base import Index, Item, RangeResult, SearchResult, check_k, check_radius

FORMAT_VERSION = 1
Durability = Literal["normal", "full"]
_TABLE = """CREATE TABLE IF NOT EXISTS items (
    id INTEGER PRIMARY KEY AUTOINCREMENT, code BLOB NOT NULL, key TEXT UNIQUE, digest BLOB, metadata TEXT)"""
_MOST_VARIABLES = 500  # of one SQL statement; SQLite allows 999 at least
_WAIT_SECONDS = 60.0


class EmbeddedIndex(Index):
    """An index in a folder. Open it with :func:`distillhash.index.open_index`; one thread at a time."""

    def __init__(
        self,
        folder: Path,
        *,
        n_bits: int | None,
        create: bool,
        model_fingerprint: str | None,
        durability: Durability,
    ) -> None:
        """Open or make the folder."""
        if durability not in get_args(Durability):
            raise ParameterError(f"durability must be one of {', '.join(get_args(Durability))}, got {durability!r}")
        self.folder = folder
        stored = _read_manifest(folder, n_bits, model_fingerprint)
        manifest = _new_manifest(folder, n_bits, create, model_fingerprint) if stored is None else stored
        self.n_bits = int(manifest["n_bits"])
        self.model_fingerprint: str | None = manifest["model_fingerprint"]
        self._loaded: tuple[NDArray[np.int64], NDArray[np.uint64]] | None = None
        self._version = -1
        try:
            self._connection = sqlite3.connect(
                folder / "items.sqlite", timeout=_WAIT_SECONDS, isolation_level=None, check_same_thread=False
            )
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute(f"PRAGMA synchronous={durability}")
            if stored is None:
                self._connection.execute(_TABLE)
            elif not self._connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'items'").fetchone():
                raise FormatError(f"{folder}/items.sqlite is empty or cut off; restore it or build the index again")
        except sqlite3.Error as error:
            raise self._explained(error) from error
        if stored is None:  # last: a manifest says that the store behind it is there
            _write_manifest(folder / "manifest.json", manifest)

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
        for name, values in (("ids", ids), ("metadata", metadata), ("keys", keys), ("digests", digests)):
            if values is not None and len(values) != len(codes):
                raise DataError(f"{len(values)} {name} for {len(codes)} codes")
        if keys is not None and len(set(keys)) != len(keys):
            raise DataError(f"keys must be distinct in one call, {_first_repeated(keys)!r} comes twice")
        given = None if ids is None else _check_ids(ids)
        with self._transaction():
            chosen = self._choose_ids(len(codes), given, keys, upsert)
            rows = zip(
                chosen.tolist(),
                (code.tobytes() for code in codes.packed),
                keys or repeat(None, len(codes)),
                digests or repeat(None, len(codes)),
                ("null" if entry is None else json.dumps(entry) for entry in metadata or repeat(None, len(codes))),
                strict=True,
            )
            self._connection.executemany("INSERT OR REPLACE INTO items VALUES (?, ?, ?, ?, ?)", rows)
        return chosen

    def _choose_ids(
        self, n: int, given: NDArray[np.int64] | None, keys: Sequence[str] | None, upsert: bool
    ) -> NDArray[np.int64]:
        known = self.known(keys) if keys is not None else {}
        if known and not upsert:
            raise DataError(f"the key {next(iter(known))!r} is in the index already; pass upsert=True to replace it")
        if given is not None:
            if not upsert and (present := self._present(given.tolist())):
                raise DataError(f"the id {min(present)} is in the index already; pass upsert=True to replace it")
            for identifier, key in zip(given.tolist(), keys or (), strict=False):
                if key in known and known[key][0] != identifier:
                    raise DataError(f"the key {key!r} belongs to id {known[key][0]}, not {identifier}")
            return given
        row = self._connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'items'").fetchone()
        following = 0 if row is None else int(row[0]) + 1
        chosen = np.empty(n, np.int64)
        for place in range(n):
            if keys is not None and keys[place] in known:
                chosen[place] = known[keys[place]][0]
            else:
                chosen[place], following = following, following + 1
        return chosen

    def remove(self, ids: Sequence[int] | NDArray[np.int64]) -> int:
        """See :meth:`Index.remove`."""
        wanted = _check_ids(ids).tolist()
        with self._transaction():
            absent = sorted(set(wanted) - self._present(wanted))
            if absent:
                raise DataError(f"there is no item with id {absent[0]} in {self.folder}; nothing was removed")
            self._connection.executemany("DELETE FROM items WHERE id = ?", ((identifier,) for identifier in wanted))
        return len(wanted)

    def search(self, codes: Codes, k: int = 10) -> SearchResult:
        """See :meth:`Index.search`."""
        from distillhash.hamming import nearest

        self._check_codes(codes)
        check_k(k)
        ids, words = self._codes_in_memory()
        rows, distances = nearest(codes.words(), words, min(k, max(len(ids), 1)))
        found = np.where(rows >= 0, ids[rows] if len(ids) else -1, -1)
        padding = ((0, 0), (0, k - rows.shape[1]))
        return SearchResult(np.pad(found, padding, constant_values=-1), np.pad(distances, padding, constant_values=-1))

    def range_search(self, codes: Codes, radius: int = 3) -> RangeResult:
        """See :meth:`Index.range_search`."""
        from distillhash.hamming import within

        self._check_codes(codes)
        check_radius(radius)
        ids, words = self._codes_in_memory()
        limits, rows, distances = within(codes.words(), words, radius)
        return RangeResult(limits, ids[rows], distances)

    def get(self, ids: Sequence[int]) -> list[Item]:
        """See :meth:`Index.get`."""
        found: dict[int, Item] = {}
        query = "SELECT id, code, key, digest, metadata FROM items WHERE id IN ({})"
        for identifier, code, key, digest, metadata in self._select_in(query, [int(i) for i in ids]):
            packed = np.frombuffer(code, np.uint8)[None]
            found[identifier] = Item(
                identifier, Codes.from_packed(packed, self.n_bits), key, digest, json.loads(metadata)
            )
        for identifier in ids:
            if int(identifier) not in found:
                raise DataError(f"there is no item with id {identifier} in {self.folder}")
        return [found[int(identifier)] for identifier in ids]

    def known(self, keys: Sequence[str]) -> dict[str, tuple[int, bytes | None]]:
        """See :meth:`Index.known`."""
        rows = self._select_in("SELECT key, id, digest FROM items WHERE key IN ({})", list(keys))
        return {key: (identifier, digest) for key, identifier, digest in rows}

    def __len__(self) -> int:
        try:
            return int(self._connection.execute("SELECT COUNT(*) FROM items").fetchone()[0])
        except sqlite3.Error as error:
            raise self._explained(error) from error

    def close(self) -> None:
        """See :meth:`Index.close`."""
        self._loaded = None
        self._connection.close()

    def __repr__(self) -> str:
        return f"EmbeddedIndex({str(self.folder)!r}, n={len(self)}, n_bits={self.n_bits})"

    def _codes_in_memory(self) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
        """Ids ascending, and the words of their codes."""
        try:
            version = self._connection.execute("PRAGMA data_version").fetchone()[0]  # moves when others commit
            if self._loaded is None or version != self._version:
                rows = self._connection.execute("SELECT id, code FROM items ORDER BY id").fetchall()
                self._version = version
                self._loaded = self._words(rows)
        except sqlite3.Error as error:
            raise self._explained(error) from error
        return self._loaded

    def _words(self, rows: list[tuple[int, bytes]]) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
        width = bytes_per_code(self.n_bits)
        if any(len(code) != width for _, code in rows):
            raise FormatError(
                f"{self.folder}/items.sqlite holds codes that are not of {self.n_bits} bits; rebuild the index"
            )
        packed = np.frombuffer(b"".join(code for _, code in rows), np.uint8).reshape(len(rows), width)
        ids = np.fromiter((identifier for identifier, _ in rows), np.int64, len(rows))
        # Word by word in memory, as the kernels scan them.
        return ids, np.asfortranarray(Codes.from_packed(packed, self.n_bits).words())

    def _present(self, ids: list[int]) -> set[int]:
        return {row[0] for row in self._select_in("SELECT id FROM items WHERE id IN ({})", ids)}

    def _select_in(self, query: str, values: list[Any]) -> Iterator[Any]:
        """Rows of a query with ``{}`` for the marks of its values, a bounded number of values at a time."""
        try:
            for start in range(0, len(values), _MOST_VARIABLES):
                part = values[start : start + _MOST_VARIABLES]
                yield from self._connection.execute(query.format(",".join("?" * len(part))), part).fetchall()
        except sqlite3.Error as error:
            raise self._explained(error) from error

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """All or nothing; waits for other writers before anything is read."""
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")
        except sqlite3.Error as error:
            raise self._explained(error) from error
        finally:
            self._loaded = None

    def _explained(self, error: sqlite3.Error) -> DistillHashError:
        if isinstance(error, sqlite3.ProgrammingError):
            return DataError(f"the index {self.folder} is closed; open it again")
        if isinstance(error, sqlite3.OperationalError):
            return DistillHashError(
                f"the index {self.folder} cannot be used now ({error}); is the disk full, or another writer at work?"
            )
        return FormatError(f"{self.folder}/items.sqlite is damaged ({error}); restore it or build the index again")


def _read_manifest(folder: Path, n_bits: int | None, model_fingerprint: str | None) -> dict[str, Any] | None:
    """The manifest, or None when there is none; refuses what does not fit."""
    file = folder / "manifest.json"
    if not file.exists():
        return None
    try:
        manifest: dict[str, Any] = json.loads(file.read_text())
        version, stored = int(manifest["format_version"]), int(manifest["n_bits"])
        fingerprint = manifest["model_fingerprint"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FormatError(f"{file} is damaged ({error}); restore it or build the index again") from error
    if version > FORMAT_VERSION:
        raise FormatError(
            f"{folder} has format {version}, this version reads up to {FORMAT_VERSION}; upgrade distillhash"
        )
    if n_bits is not None and n_bits != stored:
        raise ParameterError(f"{folder} holds codes of {stored} bits, not {n_bits}")
    if model_fingerprint is not None and fingerprint is not None and model_fingerprint != fingerprint:
        raise FormatError(f"{folder} was built with another model (fingerprint {fingerprint}, not {model_fingerprint})")
    return manifest


def _new_manifest(folder: Path, n_bits: int | None, create: bool, model_fingerprint: str | None) -> dict[str, Any]:
    """The manifest of an index to be made, and its folder."""
    from distillhash import __version__

    if not create:
        raise DataError(f"there is no index at {folder}; make one with `distillhash index`, or pass create=True")
    if n_bits is None:
        raise ParameterError("a new index needs n_bits")
    if not 1 <= n_bits <= 4096:
        raise ParameterError(f"n_bits must lie in 1..4096, got {n_bits}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(folder, error) from error
    return {
        "format_version": FORMAT_VERSION,
        "n_bits": int(n_bits),
        "model_fingerprint": model_fingerprint,
        "created_by": f"distillhash {__version__}",
    }


def _write_manifest(file: Path, manifest: dict[str, Any]) -> None:
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with temporary.open("w") as stream:
            stream.write(json.dumps(manifest, indent=1) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(file)
    except OSError as error:
        raise _unwritable(file.parent, error) from error


def _unwritable(folder: Path, error: OSError) -> DistillHashError:
    return DistillHashError(f"{folder} cannot be written ({error.strerror}); choose another folder")


def _check_ids(ids: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
    array = np.asarray(ids)
    if array.size and (array.dtype.kind not in "iu" or array.min() < 0):
        raise DataError("ids must be integers of at least 0")
    if len(np.unique(array)) != len(array):
        raise DataError(f"ids must be distinct in one call, {_first_repeated(array.tolist())} comes twice")
    return array.astype(np.int64)


def _first_repeated(values: Sequence[Any]) -> Any:
    return next(value for place, value in enumerate(values) if value in values[:place])
