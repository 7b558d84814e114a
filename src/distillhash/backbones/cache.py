"""Features kept between runs: one SQLite file per backbone, preprocessing and view settings.

The key is the digest of an item's content: moved files keep their features, changed ones are computed anew. Each batch is one
transaction, so killing the process loses at most the batches being computed. Several processes may share a cache.

A cache saves time and nothing else. Where it cannot be read or written, that is logged once and the job goes on without it.
"""

import logging
import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distillhash.files import user_folder, write_ahead

_logger = logging.getLogger(__name__)
_WAIT_SECONDS = 60.0
_HEADER_BYTES = 100  # of an SQLite file
_warned: set[str] = set()  # folders that were complained about


class FeatureStore:
    """Feature rows by content digest; safe to use from several threads and processes. It holds nothing where it cannot be opened."""

    def __init__(self, path: Path | None, dim: int) -> None:
        self.path, self.dim, self._lock = path, dim, threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._is_writable = True
        if path is None:
            return
        with self._doing_without():
            path.parent.mkdir(parents=True, exist_ok=True)
            if (
                path.exists() and 0 < path.stat().st_size < _HEADER_BYTES
            ):  # SQLite takes one byte for a locked file, and waits
                raise sqlite3.DatabaseError("file is cut short")
            connection = sqlite3.connect(path, timeout=_WAIT_SECONDS, check_same_thread=False)
            try:
                write_ahead(connection, wait=_WAIT_SECONDS)
                connection.execute("PRAGMA synchronous=NORMAL")
                with connection:
                    columns = "digest BLOB PRIMARY KEY, row BLOB NOT NULL"
                    connection.execute(f"CREATE TABLE IF NOT EXISTS features ({columns})")
            except BaseException:
                connection.close()
                raise
            self._connection = connection

    def get(self, digests: Sequence[bytes]) -> dict[bytes, NDArray[np.float32]]:
        """The rows there are, by digest; a call takes a few thousand digests. Damaged rows are not there."""
        query = f"SELECT digest, row FROM features WHERE digest IN ({','.join('?' * len(digests))})"
        rows: list[tuple[bytes, bytes]] = []
        with self._doing_without(), self._lock:
            if self._connection is not None:
                rows = self._connection.execute(query, digests).fetchall()
        width = 4 * self.dim
        return {
            key: np.frombuffer(row, np.float32) for key, row in rows if isinstance(row, bytes) and len(row) == width
        }

    def put(self, digests: Sequence[bytes], rows: NDArray[np.float32]) -> None:
        """Store rows in one transaction."""
        pairs = [(digest, row.tobytes()) for digest, row in zip(digests, rows, strict=True)]
        with self._doing_without(), self._lock:
            if self._connection is not None and self._is_writable:
                self._is_writable = False
                with self._connection:
                    self._connection.executemany("INSERT OR REPLACE INTO features VALUES (?, ?)", pairs)
                self._is_writable = True

    def close(self) -> None:
        """Close the file."""
        if self._connection is not None:
            self._connection.close()

    @contextmanager
    def _doing_without(self) -> Iterator[None]:
        """Go on after an error of the file, and say so once for each folder."""
        try:
            yield
        except (sqlite3.Error, OSError, UnicodeDecodeError) as error:  # the last from a damaged schema
            assert self.path is not None
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            _warn_once(str(self.path.parent), f"the feature cache {self.path} cannot be used ({reason})")


class FeatureCache:
    """A folder of feature stores: ``folder``, or the environment's ``DISTILLHASH_CACHE``, or the user's cache folder.

    ``folder`` is None for a user without a home folder; then nothing is kept.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        given, own = folder or os.environ.get("DISTILLHASH_CACHE"), user_folder("cache")
        self.folder = Path(given) if given else None if own is None else own / "features"

    def store(self, identity: str, dim: int) -> FeatureStore:
        """The store of everything computed under ``identity`` (backbone fingerprint and view settings)."""
        if self.folder is None:
            _warn_once("", "there is no home folder for the feature cache")
            return FeatureStore(None, dim)
        name = blake2b(identity.encode(), digest_size=12).hexdigest()
        return FeatureStore(self.folder / f"{name}.sqlite", dim)


def engine_folder() -> Path | None:
    """Where networks that were exported for an engine are kept, beside the features; None for a user without a home folder."""
    given, own = os.environ.get("DISTILLHASH_CACHE"), user_folder("cache")
    return Path(given) / "engines" if given else None if own is None else own / "engines"


def _warn_once(folder: str, reason: str) -> None:
    if folder not in _warned:
        _warned.add(folder)
        _logger.warning(
            "%s; features are not kept: free space there, delete a damaged file, or choose --cache DIR or --no-cache",
            reason,
        )
