"""The write-ahead log of SQLite files that several processes open at once."""

import sqlite3
import threading
from pathlib import Path

import pytest

from distillhash.files import write_ahead


def test_it_waits_for_who_writes(tmp_path: Path) -> None:
    other = sqlite3.connect(tmp_path / "file", isolation_level=None, check_same_thread=False)
    other.execute("BEGIN EXCLUSIVE")
    connection = sqlite3.connect(tmp_path / "file", timeout=0)
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        write_ahead(connection, wait=0.05)
    timer = threading.Timer(0.2, other.execute, ["COMMIT"])
    timer.start()
    write_ahead(connection, wait=30)
    timer.join()
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_what_is_no_database_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"not a database" * 100)
    with pytest.raises(sqlite3.DatabaseError, match="not a database"):
        write_ahead(sqlite3.connect(tmp_path / "file"), wait=30)
