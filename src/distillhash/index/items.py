"""The rows of an embedded index in SQLite: the truth about what it holds.

Every committed change makes a new generation, which has a number and a random name: the name tells it from one of the same number in
another life of the database, before a copy of it was restored. For every item that was replaced or removed the last generation in which
it was is kept, so that whoever holds the codes of one generation reads only what changed since. Items that are merely new need no such
note: their ids are larger than all before them.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from distillhash.errors import DataError, DistillHashError, FormatError, ParameterError
from distillhash.files import write_ahead
from distillhash.index.incoming import Row
from distillhash.index.rows import key_from_sql, key_to_sql

Durability = Literal["normal", "full"]
_COLUMNS = ["id", "code", "key", "digest", "metadata"]
_TABLES = (
    """CREATE TABLE IF NOT EXISTS items (
        id INTEGER PRIMARY KEY AUTOINCREMENT, code BLOB NOT NULL, key TEXT UNIQUE, digest BLOB, metadata TEXT)""",
    "CREATE TABLE IF NOT EXISTS changes (id INTEGER PRIMARY KEY, generation INTEGER NOT NULL)",
    "CREATE INDEX IF NOT EXISTS changes_by_generation ON changes (generation)",
    "CREATE TABLE IF NOT EXISTS generations (number INTEGER PRIMARY KEY, name TEXT NOT NULL, items INTEGER NOT NULL)",
)
_MOST_VARIABLES = 500  # of one SQL statement; SQLite allows 999 at least
_ROWS_AT_ONCE = 65536  # read into Python objects, which are many times larger than the codes
_WAIT_SECONDS = 60.0
_PAGES_KIB = 65536  # keys come in any order: with SQLite's own 2 MB their index is read from the disk over and over
_LOG_PAGES = 16384  # of 4 KiB, between two transfers of the log to the table
_READING = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION}


class State(NamedTuple):
    """What is committed.

    Attributes:
        generation: Number of changes so far.
        name: Of this generation.
        items: Number of items.
        last_id: The largest id ever used, -1 at first.
    """

    generation: int
    name: str
    items: int
    last_id: int


class ItemTable:
    """The SQLite database of an index; one thread at a time.

    Every method raises :class:`DistillHashError` where the database cannot be used, :class:`FormatError` where it is damaged.
    """

    def __init__(self, database: Path | None, durability: Durability = "normal") -> None:
        """Open the file; None is a database in memory. :meth:`make` comes next, or :meth:`check`."""
        if durability not in get_args(Durability):
            raise ParameterError(f"durability must be one of {', '.join(get_args(Durability))}, got {durability!r}")
        self.name = "memory://" if database is None else str(database)
        try:
            self._connection = sqlite3.connect(
                _address(database), uri=True, timeout=_WAIT_SECONDS, isolation_level=None, check_same_thread=False
            )
        except sqlite3.Error as error:
            raise self._explained(error) from error
        try:
            self._run(f"PRAGMA synchronous={durability}")
            self._run(f"PRAGMA cache_size=-{_PAGES_KIB}")
            self._run(f"PRAGMA wal_autocheckpoint={_LOG_PAGES}")
        except DistillHashError:
            self._connection.close()
            raise

    def make(self) -> None:
        """Make the tables that are not there."""
        try:
            write_ahead(self._connection, wait=_WAIT_SECONDS)
        except sqlite3.Error as error:
            raise self._explained(error) from error
        with self.transaction():
            for table in _TABLES:
                self._run(table)
            if self._run("SELECT count(*) FROM generations").fetchone() == (0,):
                self._run("INSERT INTO generations VALUES (0, ?, 0)", secrets.token_hex(8))

    def check(self) -> None:
        """Raise :class:`FormatError` unless these are the tables of an index."""
        columns = [row[0] for row in self._run("SELECT name FROM pragma_table_info('items')")]
        tables = {row[0] for row in self._run("SELECT name FROM sqlite_master")}
        if columns != _COLUMNS or not {"changes", "generations"} <= tables:
            raise FormatError(f"{self.name} is not the database of an index; restore it or build the index again")

    def state(self) -> State:
        """What is committed now."""
        newest = self._run("SELECT number, name, items FROM generations ORDER BY number DESC LIMIT 1").fetchone()
        if newest is None:
            raise FormatError(f"{self.name} is damaged (no generation); restore it or build the index again")
        last = self._run("SELECT seq FROM sqlite_sequence WHERE name = 'items'").fetchone()
        number, name, items = newest
        return State(number, name, items, -1 if last is None else int(last[0]))

    def leads_here(self, generation: int, name: str) -> bool:
        """Whether what changed since that generation is known, and it was one of this database."""
        found = self._run("SELECT name FROM generations WHERE number = ?", generation).fetchone()
        return found is not None and found[0] == name

    def put(self, rows: Iterable[Row], ids: NDArray[np.int64], replaced: Collection[int]) -> None:
        """Store rows with these ids, of which ``replaced`` are there already; within a transaction."""
        last_id = self.state().last_id
        encoded = (
            (identifier, code, None if key is None else key_to_sql(key), digest, metadata)
            for identifier, code, key, digest, metadata in rows
        )
        self._run_many("INSERT OR REPLACE INTO items VALUES (?, ?, ?, ?, ?)", encoded)
        self._note({*replaced, *ids[ids <= last_id].tolist()}, len(ids) - len(replaced))

    def delete(self, ids: Collection[int]) -> None:
        """Remove the items with these ids, all of which are there; within a transaction."""
        self._run_many("DELETE FROM items WHERE id = ?", ((identifier,) for identifier in ids))
        self._note(ids, -len(ids))

    def _note(self, changed: Collection[int], more: int) -> None:
        generation, _, items, _ = self.state()
        generation += 1
        self._run("INSERT INTO generations VALUES (?, ?, ?)", generation, secrets.token_hex(8), items + more)
        self._run_many("INSERT OR REPLACE INTO changes VALUES (?, ?)", ((item, generation) for item in changed))

    def changed_since(self, generation: int) -> NDArray[np.int64]:
        """Ids of the items that were replaced or removed since, ascending."""
        rows = self._run("SELECT id FROM changes WHERE generation > ? ORDER BY id", generation)
        return np.fromiter((row[0] for row in rows), np.int64)

    def codes_since(self, generation: int, last_id: int) -> Iterator[list[tuple[int, bytes]]]:
        """Lists of (id, packed code) of the items that are new or replaced since, ascending."""
        cursor = self._run(
            """SELECT id, code FROM items WHERE id <= ?2 AND id IN (SELECT id FROM changes WHERE generation > ?1)
               UNION ALL SELECT id, code FROM items WHERE id > ?2 ORDER BY id""",
            generation,
            last_id,
        )
        while True:
            try:
                rows = cursor.fetchmany(_ROWS_AT_ONCE)
            except sqlite3.Error as error:
                raise self._explained(error) from error
            if not rows:
                return
            yield rows

    def rows(self, ids: Sequence[int]) -> dict[int, tuple[Any, ...]]:
        """All columns of those items that are there."""
        query = "SELECT id, code, key, digest, metadata FROM items WHERE id IN ({})"
        return {row[0]: row for row in self._select_in(query, ids)}

    def known(self, keys: Sequence[str]) -> dict[str, tuple[int, bytes | None]]:
        """Id and content digest of those keys that are there."""
        rows = self._select_in("SELECT key, id, digest FROM items WHERE key IN ({})", list(map(key_to_sql, keys)))
        return {key_from_sql(key): (identifier, digest) for key, identifier, digest in rows}

    def present(self, ids: Sequence[int]) -> set[int]:
        """Those of the ids that are there."""
        return {row[0] for row in self._select_in("SELECT id FROM items WHERE id IN ({})", ids)}

    def matching(self, condition: str) -> NDArray[np.int64]:
        """Ids of the items for which an SQL condition over their columns holds, ascending.

        Raises:
            ParameterError: no condition, or one that does more than read.
        """
        self._connection.set_authorizer(lambda action, *_: int(action not in _READING))  # 1 denies
        try:
            rows = self._connection.execute(f"SELECT id FROM items WHERE (\n{condition}\n) ORDER BY id")
            return np.fromiter((row[0] for row in rows), np.int64)
        except (sqlite3.Error, sqlite3.Warning, ValueError) as error:  # a second statement is a Warning in Python 3.11
            if isinstance(error, sqlite3.ProgrammingError) and "closed" in str(error):
                raise self._explained(error) from error
            raise ParameterError(
                f"where={condition!r} is no condition that SQLite takes ({error}); use the columns id, key and metadata, "
                "as in metadata->>'label' = 'cat'"
            ) from error
        finally:
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
        self._run(f"BEGIN {kind}")
        try:
            yield
            self._run("COMMIT")
        except BaseException:
            if self._connection.in_transaction:  # SQLite itself rolls back when the disk is full
                self._connection.execute("ROLLBACK")
            raise

    def _run(self, statement: str, *values: Any) -> sqlite3.Cursor:
        try:
            return self._connection.execute(statement, values)
        except sqlite3.Error as error:
            raise self._explained(error) from error

    def _run_many(self, statement: str, rows: Iterable[tuple[Any, ...]]) -> None:
        try:
            self._connection.executemany(statement, rows)
        except sqlite3.Error as error:
            raise self._explained(error) from error

    def _select_in(self, query: str, values: Sequence[Any]) -> Iterator[Any]:
        """Rows of a query with ``{}`` for the marks of its values, a bounded number of values at a time."""
        self._run("SELECT 1")  # says that the index is closed even where there are no values
        for start in range(0, len(values), _MOST_VARIABLES):
            part = values[start : start + _MOST_VARIABLES]
            yield from self._run(query.format(",".join("?" * len(part))), *part).fetchall()

    def _explained(self, error: sqlite3.Error) -> DistillHashError:
        if isinstance(error, sqlite3.ProgrammingError):
            return DataError(f"the index {self.name} is closed; open it again")
        if "locked" in str(error):
            return DistillHashError(
                f"another process has been writing to {self.name} for {_WAIT_SECONDS:g} s; try again when it is done"
            )
        if isinstance(error, sqlite3.OperationalError):
            return DistillHashError(f"{self.name} cannot be used now ({error}); check the disk and the permissions")
        return FormatError(f"{self.name} is damaged ({error}); restore it or build the index again")


def _address(database: Path | None) -> str:
    if database is None:
        return ":memory:"
    log = database.with_name(database.name + "-wal")
    # SQLite wants to make files beside a database to read it. Where it cannot and nothing waits in a log, nothing changes either.
    effective = os.access in os.supports_effective_ids
    writable = os.access(database.parent, os.W_OK, effective_ids=effective)
    frozen = database.exists() and not writable and not (log.exists() and log.stat().st_size)
    return f"file:{quote(str(database.absolute()))}" + ("?immutable=1" if frozen else "")
