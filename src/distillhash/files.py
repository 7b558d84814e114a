"""SQLite's write-ahead log, which lets one process write while others read."""

from __future__ import annotations

import hashlib
import sqlite3
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray


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


# A short content digest, the key of caches and the first test for exact duplicates.


def digest(data: bytes | NDArray[Any]) -> bytes:
    """Digest of an encoded file or of pixels: BLAKE2b of 16 bytes (RFC 7693), the same on every machine.

    Args:
        data: An encoded file, or an array of any shape and dtype; of an array, dtype, shape and content (C order) count.

    Returns:
        16 bytes. Equal content gives equal digests; the same pixels encoded in two files do not.
    """
    hasher = hashlib.blake2b(digest_size=16)
    if isinstance(data, np.ndarray):
        array = np.ascontiguousarray(data.astype(data.dtype.newbyteorder("<"), copy=False))
        hasher.update(f"{array.dtype.str}{data.shape}".encode())
        hasher.update(array.reshape(-1).view(np.uint8).data)
    else:
        hasher.update(data)
    return hasher.digest()
