"""The embedded engine: SQLite rows are the truth, search scans codes in memory.

A folder holds ``manifest.json`` (format version, code length, model fingerprint) and ``items.sqlite`` (write-ahead log). One
transaction stores a call of ``add``; when it returns the items survive the death of the process. Durability ``normal`` may lose
the last transactions when the power fails, never the file; ``full`` waits for the disk each time. Several processes may read
beside one writer.

Codes are read into memory at the first search. Later searches read again only what this process changed, or everything after
another process committed; a search sees one committed state.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from distillhash.codes import Codes
from distillhash.errors import DataError, DistillHashError, FormatError, ParameterError
from distillhash.index.base import Index, Item, RangeResult, SearchResult, check_k, check_radius
from distillhash.index.incoming import Incoming
from distillhash.index.manifest import Manifest
from distillhash.index.memory import CodesInMemory
from distillhash.index.rows import check_ids, is_id, item_from_row, key_from_sql, key_to_sql

Durability = Literal["normal", "full"]
_COLUMNS = ["id", "code", "key", "digest", "metadata"]
_TABLE = """CREATE TABLE IF NOT EXISTS items (
    id INTEGER PRIMARY KEY AUTOINCREMENT, code BLOB NOT NULL, key TEXT UNIQUE, digest BLOB, metadata TEXT)"""
_MOST_VARIABLES = 500  # of one SQL statement; SQLite allows 999 at least
_ROWS_AT_ONCE = 65536  # read into Python objects, which are many times larger than the codes
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
        manifest, database = folder / "manifest.json", folder / "items.sqlite"
        is_new = not manifest.exists()
        if is_new and not create:
            raise DataError(f"there is no index at {folder}; make one with `distillhash index`, or pass create=True")
        held = Manifest.new(n_bits, model_fingerprint) if is_new else Manifest.read(manifest)
        if is_new:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise DistillHashError(f"{folder} cannot be made ({error.strerror}); choose another folder") from error
        elif not database.exists():
            raise FormatError(f"{database} is missing; restore it or build the index again in another folder")
        self._loaded: CodesInMemory | None = None
        self._touched: list[NDArray[np.int64]] = []  # ids changed here since the codes were loaded
        self._version = -1
        try:
            self._connection = sqlite3.connect(
                database, timeout=_WAIT_SECONDS, isolation_level=None, check_same_thread=False
            )
        except sqlite3.Error as error:
            raise self._explained(error) from error
        try:
            if is_new:
                held = self._make(manifest, held)
            held.check_fits(folder, n_bits, model_fingerprint)
            self._check_table()
            self._run(f"PRAGMA synchronous={durability}")
        except BaseException:
            self._connection.close()
            raise
        self.n_bits = held.n_bits
        self.model_fingerprint = held.model_fingerprint

    def _make(self, file: Path, manifest: Manifest) -> Manifest:
        """Make the table, then the manifest, whose presence says that the index is whole; of two processes, one does."""
        give_up = time.monotonic() + _WAIT_SECONDS
        while True:
            try:
                self._connection.execute("PRAGMA journal_mode=WAL")
                break
            except sqlite3.Error as error:  # SQLite does not wait for other processes here, so this does
                if "locked" not in str(error) or time.monotonic() > give_up:
                    raise self._explained(error) from error
                time.sleep(0.01)
        self._run(_TABLE)
        with self._transaction():
            if file.exists():
                return Manifest.read(file)
            self._check_table()
            if len(self):
                raise FormatError(
                    f"{self.folder} holds items but no manifest.json; restore it or choose another folder"
                )
            manifest.write(file)
        return manifest

    def _check_table(self) -> None:
        if [row[0] for row in self._run("SELECT name FROM pragma_table_info('items')")] != _COLUMNS:
            raise FormatError(
                f"{self.folder}/items.sqlite is not the database of an index; restore it or build the index again"
            )

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
        with self._transaction():
            row = self._run("SELECT seq FROM sqlite_sequence WHERE name = 'items'").fetchone()
            chosen = incoming.choose_ids(
                known=self.known(incoming.keys or []),
                present=self.present([] if incoming.ids is None else incoming.ids.tolist()),
                following=0 if row is None else int(row[0]) + 1,
                upsert=upsert,
            )
            rows = (
                (identifier, code, None if key is None else key_to_sql(key), digest, entry)
                for identifier, code, key, digest, entry in incoming.rows(chosen)
            )
            self._connection.executemany("INSERT OR REPLACE INTO items VALUES (?, ?, ?, ?, ?)", rows)
        self._touch(chosen)
        return chosen

    def remove(self, ids: Sequence[int] | NDArray[np.int64] = (), *, keys: Sequence[str] = ()) -> int:
        """See :meth:`Index.remove`."""
        wanted = set(check_ids(ids).tolist())
        with self._transaction():
            if absent := wanted - self.present(list(wanted)):
                raise DataError(f"there is no item with id {min(absent)} in {self.folder}; nothing was removed")
            known = self.known(keys)
            for key in keys:
                if key not in known:
                    raise DataError(f"there is no item with key {key!r} in {self.folder}; nothing was removed")
            wanted.update(identifier for identifier, _ in known.values())
            self._connection.executemany("DELETE FROM items WHERE id = ?", ((identifier,) for identifier in wanted))
        self._touch(np.array(list(wanted), np.int64))
        return len(wanted)

    def search(self, codes: Codes, k: int = 10) -> SearchResult:
        """See :meth:`Index.search`."""
        from distillhash.hamming import nearest

        self._check_codes(codes)
        check_k(k)
        held = self._codes_in_memory()
        rows, distances = nearest(codes.words(), held.planes.T, k)
        ids = np.append(held.ids, -1)[rows]  # row -1, no item, becomes id -1
        return SearchResult(ids, distances)

    def range_search(self, codes: Codes, radius: int = 3) -> RangeResult:
        """See :meth:`Index.range_search`."""
        from distillhash.hamming import within

        self._check_codes(codes)
        check_radius(radius)
        held = self._codes_in_memory()
        limits, rows, distances = within(codes.words(), held.planes.T, radius)
        return RangeResult(limits, held.ids[rows], distances)

    def get(self, ids: Sequence[int]) -> list[Item]:
        """See :meth:`Index.get`."""
        query = "SELECT id, code, key, digest, metadata FROM items WHERE id IN ({})"
        rows = self._select_in(query, [int(identifier) for identifier in ids if is_id(identifier)])
        try:
            found = {row[0]: item_from_row(row, self.n_bits) for row in rows}
        except FormatError as error:
            raise self._damaged(error) from error
        for identifier in ids:
            if identifier not in found:
                raise DataError(f"there is no item with id {identifier} in {self.folder}; search gives ids that are")
        return [found[identifier] for identifier in ids]

    def known(self, keys: Sequence[str]) -> dict[str, tuple[int, bytes | None]]:
        """See :meth:`Index.known`."""
        rows = self._select_in("SELECT key, id, digest FROM items WHERE key IN ({})", list(map(key_to_sql, keys)))
        return {key_from_sql(key): (identifier, digest) for key, identifier, digest in rows}

    def present(self, ids: Sequence[int]) -> set[int]:
        """See :meth:`Index.present`."""
        wanted = [int(identifier) for identifier in ids if is_id(identifier)]
        return {row[0] for row in self._select_in("SELECT id FROM items WHERE id IN ({})", wanted)}

    def __len__(self) -> int:
        return int(self._run("SELECT COUNT(*) FROM items").fetchone()[0])

    def close(self) -> None:
        """See :meth:`Index.close`."""
        self._loaded = None
        self._connection.close()

    def __repr__(self) -> str:
        return f"EmbeddedIndex({str(self.folder)!r}, n_bits={self.n_bits})"

    def _touch(self, ids: NDArray[np.int64]) -> None:
        if self._loaded is not None:
            self._touched.append(ids)

    def _codes_in_memory(self) -> CodesInMemory:
        """The committed codes, read as far as they changed."""
        with self._transaction("DEFERRED"):
            version = self._run("PRAGMA data_version").fetchone()[0]  # moves when another process commits
            held = self._loaded
            touched = np.unique(np.concatenate([np.zeros(0, np.int64), *self._touched]))
            try:
                if held is None or version != self._version or len(touched) > len(held.ids):
                    cursor = self._run("SELECT id, code FROM items ORDER BY id")
                    parts = [CodesInMemory.empty(self.n_bits)]
                    while rows := cursor.fetchmany(_ROWS_AT_ONCE):
                        parts.append(CodesInMemory.from_rows(rows, self.n_bits))
                    held = CodesInMemory.joined(parts)
                elif len(touched):
                    rows = list(self._select_in("SELECT id, code FROM items WHERE id IN ({})", touched.tolist()))
                    changed = CodesInMemory.from_rows(sorted(rows), self.n_bits)
                    held = CodesInMemory.joined([held.without(touched), changed])
            except FormatError as error:
                raise self._damaged(error) from error
        self._loaded, self._version = held, version
        self._touched.clear()
        return held

    def _run(self, statement: str) -> sqlite3.Cursor:
        try:
            return self._connection.execute(statement)
        except sqlite3.Error as error:
            raise self._explained(error) from error

    def _select_in(self, query: str, values: list[Any]) -> Iterator[Any]:
        """Rows of a query with ``{}`` for the marks of its values, a bounded number of values at a time."""
        try:
            for start in range(0, len(values), _MOST_VARIABLES):
                part = values[start : start + _MOST_VARIABLES]
                yield from self._connection.execute(query.format(",".join("?" * len(part))), part).fetchall()
        except sqlite3.Error as error:
            raise self._explained(error) from error

    @contextmanager
    def _transaction(self, kind: Literal["IMMEDIATE", "DEFERRED"] = "IMMEDIATE") -> Iterator[None]:
        """All or nothing. ``IMMEDIATE`` waits for other writers before anything is read; ``DEFERRED`` reads one state."""
        try:
            self._connection.execute(f"BEGIN {kind}")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:  # SQLite itself rolls back when the disk is full
                    self._connection.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            raise self._explained(error) from error

    def _explained(self, error: sqlite3.Error) -> DistillHashError:
        database = self.folder / "items.sqlite"
        if isinstance(error, sqlite3.ProgrammingError):
            return DataError(f"the index {self.folder} is closed; open it again")
        if "locked" in str(error):
            return DistillHashError(
                f"another process has been writing to {database} for {_WAIT_SECONDS:g} s; try again when it is done"
            )
        if isinstance(error, sqlite3.OperationalError):
            return DistillHashError(f"{database} cannot be used now ({error}); check the disk and the permissions")
        return self._damaged(error)

    def _damaged(self, error: Exception) -> FormatError:
        return FormatError(f"{self.folder}/items.sqlite is damaged ({error}); restore it or build the index again")
