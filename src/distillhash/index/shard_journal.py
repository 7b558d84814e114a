"""What makes a change of several shards happen as a whole: it is written down first, and finished by whoever comes next.

``journal.sqlite`` holds the change under way and the largest id ever used; ``writer.sqlite`` is empty and there to be locked, because
SQLite gives up its lock when a process dies.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from distillhash.errors import DataError, DistillHashError, FormatError
from distillhash.index.incoming import Row
from distillhash.index.rows import key_from_sql, key_to_sql

_WAIT_SECONDS = 60.0
_TABLES = """
CREATE TABLE IF NOT EXISTS counter (one INTEGER PRIMARY KEY CHECK (one = 1), last_id INTEGER NOT NULL);
INSERT OR IGNORE INTO counter VALUES (1, -1);
CREATE TABLE IF NOT EXISTS rows (id INTEGER PRIMARY KEY, code BLOB NOT NULL, key TEXT, digest BLOB, metadata TEXT);
CREATE TABLE IF NOT EXISTS removals (id INTEGER PRIMARY KEY);
"""


class Journal:
    """The journal in a folder; all but :meth:`writing` and :meth:`close` is called while writing."""

    def __init__(self, folder: Path, durability: Literal["normal", "full"]) -> None:
        """Open the files, made where they are absent."""
        self._folder = folder
        try:
            self._lock = sqlite3.connect(
                folder / "writer.sqlite", timeout=_WAIT_SECONDS, isolation_level=None, check_same_thread=False
            )
            self._journal = sqlite3.connect(
                folder / "journal.sqlite", timeout=_WAIT_SECONDS, isolation_level=None, check_same_thread=False
            )
            self._journal.execute(f"PRAGMA synchronous={'full' if durability == 'full' else 'normal'}")
            self._journal.executescript(_TABLES)
        except sqlite3.Error as error:
            raise self._explained(error) from error

    @contextmanager
    def writing(self, *, wait: bool = True) -> Iterator[bool]:
        """Keep other writers out; False where there is one and ``wait`` is not set."""
        try:
            self._lock.execute(f"PRAGMA busy_timeout={int(1000 * _WAIT_SECONDS) if wait else 0}")
            self._lock.execute("BEGIN IMMEDIATE")
        except sqlite3.Error as error:
            if not wait and "locked" in str(error):
                yield False
                return
            raise self._explained(error) from error
        try:
            yield True
        except sqlite3.Error as error:
            raise self._explained(error) from error
        finally:
            self._lock.execute("ROLLBACK")

    def last_id(self) -> int:
        """The largest id ever used."""
        return int(self._journal.execute("SELECT last_id FROM counter").fetchone()[0])

    def write(self, rows: Iterable[Row], removals: Iterable[int], last_id: int) -> None:
        """Write a change down in one transaction; from then on it will happen."""
        self._journal.execute("BEGIN IMMEDIATE")
        try:
            as_sql = ((i, code, None if key is None else key_to_sql(key), *rest) for i, code, key, *rest in rows)
            self._journal.executemany("INSERT INTO rows VALUES (?, ?, ?, ?, ?)", as_sql)
            self._journal.executemany("INSERT INTO removals VALUES (?)", ((identifier,) for identifier in removals))
            self._journal.execute("UPDATE counter SET last_id = ?", (last_id,))
            self._journal.execute("COMMIT")
        except BaseException:
            if self._journal.in_transaction:
                self._journal.execute("ROLLBACK")
            raise

    def change(self) -> tuple[list[Row], list[int]]:
        """Rows to store and ids to remove of the change under way; both empty when there is none."""
        rows = [
            (identifier, code, key_from_sql(key), digest, metadata)
            for identifier, code, key, digest, metadata in self._journal.execute("SELECT * FROM rows ORDER BY id")
        ]
        return rows, [row[0] for row in self._journal.execute("SELECT id FROM removals ORDER BY id")]

    def clear(self) -> None:
        """The change under way has happened."""
        self._journal.execute("BEGIN IMMEDIATE")
        self._journal.execute("DELETE FROM rows")
        self._journal.execute("DELETE FROM removals")
        self._journal.execute("COMMIT")

    def close(self) -> None:
        """Close the files."""
        self._lock.close()
        self._journal.close()

    def _explained(self, error: sqlite3.Error) -> DistillHashError:
        if isinstance(error, sqlite3.ProgrammingError):
            return DataError(f"the index {self._folder} is closed; open it again")
        if "locked" in str(error):
            return DistillHashError(
                f"another process has been writing to {self._folder} for {_WAIT_SECONDS:g} s; try again when it is done"
            )
        if isinstance(error, sqlite3.OperationalError):
            return DistillHashError(f"{self._folder} cannot be used now ({error}); check the disk and the permissions")
        return FormatError(f"the journal in {self._folder} is damaged ({error}); restore it or build the index again")
