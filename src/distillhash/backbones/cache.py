"""Features kept between runs: one SQLite file per backbone, preprocessing and view settings.

The key is the digest of an item's content: moved files keep their features, changed ones are computed anew. Each batch is one
transaction, so killing the process loses at most the batches being computed. Several processes may share a cache.
"""

import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distillhash.errors import DistillHashError, FormatError
from distillhash.files import write_ahead

_WAIT_SECONDS = 60.0


class FeatureStore:
    """Feature rows by content digest; safe to use from several threads and processes."""

    def __init__(self, path: Path, dim: int) -> None:
        self.path, self.dim, self._lock = path, dim, threading.Lock()
        with self._explaining():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(path, timeout=_WAIT_SECONDS, check_same_thread=False)
            write_ahead(self._connection, wait=_WAIT_SECONDS)
            self._connection.execute("PRAGMA synchronous=NORMAL")
            with self._connection:
                columns = "digest BLOB PRIMARY KEY, row BLOB NOT NULL"
                self._connection.execute(f"CREATE TABLE IF NOT EXISTS features ({columns})")

    def get(self, digests: Sequence[bytes]) -> dict[bytes, NDArray[np.float32]]:
        """The rows there are, by digest; a call takes a few thousand digests."""
        query = f"SELECT digest, row FROM features WHERE digest IN ({','.join('?' * len(digests))})"
        with self._explaining(), self._lock:
            rows = self._connection.execute(query, digests).fetchall()
        if any(len(row) != 4 * self.dim for _, row in rows):
            raise FormatError(f"the feature cache {self.path} holds rows of another width; delete the file")
        return {digest: np.frombuffer(row, np.float32) for digest, row in rows}

    def put(self, digests: Sequence[bytes], rows: NDArray[np.float32]) -> None:
        """Store rows in one transaction."""
        pairs = [(digest, row.tobytes()) for digest, row in zip(digests, rows, strict=True)]
        with self._explaining(), self._lock, self._connection:
            self._connection.executemany("INSERT OR REPLACE INTO features VALUES (?, ?)", pairs)

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    @contextmanager
    def _explaining(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.OperationalError, OSError) as error:
            raise DistillHashError(
                f"the feature cache {self.path} cannot be used ({error}); free space there, or choose --cache DIR or --no-cache"
            ) from error
        except sqlite3.DatabaseError as error:
            raise FormatError(f"the feature cache {self.path} is damaged ({error}); delete the file") from error


class FeatureCache:
    """A folder of feature stores: ``folder``, or the environment's ``DISTILLHASH_CACHE``, or the user's cache folder."""

    def __init__(self, folder: str | Path | None = None) -> None:
        from platformdirs import user_cache_path

        default = os.environ.get("DISTILLHASH_CACHE") or user_cache_path("distillhash") / "features"
        self.folder = Path(folder or default)

    def store(self, identity: str, dim: int) -> FeatureStore:
        """The store of everything computed under ``identity`` (backbone fingerprint and view settings)."""
        name = blake2b(identity.encode(), digest_size=12).hexdigest()
        return FeatureStore(self.folder / f"{name}.sqlite", dim)
