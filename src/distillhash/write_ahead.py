"""SQLite's write-ahead log, which lets one process write while others read."""

from __future__ import annotations

import sqlite3
import time


def write_ahead(connection: sqlite3.Connection, *, wait: float) -> None:
    """Keep the file's changes in a write-ahead log.

    SQLite does not wait for other processes when it switches to it, whatever the connection's timeout, so this does.

    Args:
        connection: To the file.
        wait: Seconds to wait for other processes at most.

    Raises:
        sqlite3.Error: the file is damaged, cannot be written, or is still locked after ``wait``.
    """
    give_up = time.monotonic() + wait
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.Error as error:
            if "locked" not in str(error) or time.monotonic() > give_up:
                raise
            time.sleep(0.01)
