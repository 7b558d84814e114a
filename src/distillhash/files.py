"""Files: bounded reads, whole writes, content digests, SQLite's write-ahead log, and the processors this process may use."""

import contextlib
import errno
import hashlib
import os
import re
import secrets
import sqlite3
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

MAX_FILE_SIZE = 256 * 2**20
"""Bytes of the largest file that is read as one item, unless the user gives another limit."""

_KINDS = {
    stat.S_IFDIR: "folder",
    stat.S_IFIFO: "pipe",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "device",
    stat.S_IFBLK: "device",
}


def open_regular(path: str | Path, *, follow_links: bool = True, inside: int | None = None) -> BinaryIO:
    """Open a regular file for reading; anything else (a pipe, a device, a folder) is an :class:`OSError` and never blocks.

    Without ``follow_links`` a symbolic link as the last part of the path is refused as well (``ELOOP``). A relative path starts at the
    open folder ``inside`` (a descriptor) where one is given.
    """
    flags = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    # A pipe without a writer would block the call that opens it.
    flags |= getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)
    if not follow_links:
        flags |= getattr(os, "O_NOFOLLOW", 0)
        if not hasattr(os, "O_NOFOLLOW") and os.path.islink(path):  # noqa: PTH114  # Windows
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), os.fspath(path))
    try:
        handle = os.open(path, flags, dir_fd=inside)
    except ValueError as error:  # a NUL in the path
        raise OSError(errno.EINVAL, str(error), os.fspath(path)) from error
    try:
        mode = os.fstat(handle).st_mode
        if not stat.S_ISREG(mode):
            kind = _KINDS.get(stat.S_IFMT(mode), "special file")
            raise OSError(errno.EINVAL, f"it is a {kind}, not a regular file", os.fspath(path))
        return os.fdopen(handle, "rb")
    except BaseException:
        with contextlib.suppress(OSError):  # a signal in fdopen closes it
            os.close(handle)
        raise


def read_file(path: str | Path, *, limit: int = MAX_FILE_SIZE, follow_links: bool = True) -> bytes:
    """A regular file, whole. Everything that was not written by this program is read through here or :func:`open_regular`.

    Raises:
        OSError: it cannot be read, is no regular file, or holds more than ``limit`` bytes (``EFBIG``; its size is looked at first).
    """
    with open_regular(path, follow_links=follow_links) as file:
        size = os.fstat(file.fileno()).st_size
        data = (
            (file.read(size + 1) or b"") if size <= limit else b""
        )  # None where it would block, as some files in /proc
        if len(data) > size:  # it grows, or its size says 0 as in /proc
            data += file.read(limit + 1 - len(data)) or b""
        if size > limit or len(data) > limit:
            raise OSError(
                errno.EFBIG, f"it has {max(size, len(data)):,} bytes, over the limit of {limit:,}", os.fspath(path)
            )
        return data


def _in_system(path: Path) -> bool:
    """Whether a path lies in a folder of the system's own links, such as /dev/stdout."""
    return path.parent.resolve().parts[1:2] in (("dev",), ("proc",))


def check_target(path: Path) -> None:
    """Raise the :class:`OSError` that :func:`write_atomic` would, where it is known beforehand; nothing is left on the disk."""
    _check_regular(path)
    with tempfile.TemporaryFile(dir=next(folder for folder in path.absolute().parents if folder.exists())):
        pass


def _check_regular(path: Path) -> None:
    for status in (os.lstat, os.stat):
        with contextlib.suppress(FileNotFoundError):
            mode = status(path).st_mode
            if stat.S_ISDIR(mode):
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
            if not (stat.S_ISREG(mode) or (stat.S_ISLNK(mode) and not _in_system(path))):
                raise OSError(errno.EINVAL, "it is a device or a pipe, not a regular file", str(path))


def write_atomic(path: str | Path, data: bytes, *, durable: bool = False) -> None:
    """Write a file that appears whole or not at all, whatever process or power fails meanwhile.

    The data goes to a hidden temporary file in the same folder, which is renamed at the end and removed after an error. An existing
    file is replaced, and missing folders are made. Of several writers of one path the last one wins. ``durable`` waits until data and
    name are on the disk, so that the file also survives a power failure after the return. A device or a pipe (``/dev/stdout`` too) is an
    :class:`OSError`: a file would take its place.
    """
    path = Path(path)
    _check_regular(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{secrets.token_hex(8)}.partial")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if durable:
        sync_folder(path.parent)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that replaces ``path`` when the block succeeds, and is removed otherwise; missing folders are made.

    After a kill the hidden temporary file stays; :func:`remove_partial` removes such files.
    """
    temporary = path.with_name(f".{secrets.token_hex(8)}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.replace(path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def remove_partial(folder: Path) -> None:
    """Remove what writers that were killed left in a folder."""
    for path in folder.glob(".*.partial"):
        if re.fullmatch(r"\.[0-9a-f]{16}\.partial", path.name):
            with contextlib.suppress(OSError):
                path.unlink()


def sync_folder(folder: str | Path, *, inside: int | None = None) -> None:
    """Wait until the names in ``folder`` are on the disk, where the system offers that (Windows does not).

    A relative path starts at the open folder ``inside`` (a descriptor) where one is given.
    """
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY, dir_fd=inside)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def digest(data: bytes | NDArray[Any]) -> bytes:
    """Digest of an encoded file or of pixels: BLAKE2b of 16 bytes (RFC 7693), the same on every machine.

    Of an array, dtype, shape and content (C order) count. The same pixels encoded in two files have different digests.
    """
    hasher = hashlib.blake2b(digest_size=16)
    if isinstance(data, np.ndarray):
        array = np.ascontiguousarray(data.astype(data.dtype.newbyteorder("<"), copy=False))
        hasher.update(f"{array.dtype.str}{data.shape}".encode())
        hasher.update(array.reshape(-1).view(np.uint8).data)
    else:
        hasher.update(data)
    return hasher.digest()


def user_folder(kind: Literal["cache", "data"]) -> Path | None:
    """Where this user's caches or data belong on this system; None for a user without a home folder. It may not exist."""
    from platformdirs import user_cache_path, user_data_path

    try:
        folder = {"cache": user_cache_path, "data": user_data_path}[kind]("distillhash")
    except RuntimeError:  # an unknown user id, and no HOME
        return None
    return folder if folder.is_absolute() else None


def write_ahead(connection: sqlite3.Connection, *, wait: float) -> None:
    """Keep an SQLite file's changes in a write-ahead log, so that one process can write while others read.

    SQLite does not wait for other processes when it switches to the log, so this function does, for at most ``wait`` seconds.
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


def cores() -> int:
    """Number of processors that this process may use, at least 1; ``taskset`` and containers allow fewer than the machine has.

    The environment's ``DISTILLHASH_CORES`` sets a limit where the system tells none, as for the share of a processor in a container.
    """
    n = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = os.environ.get("DISTILLHASH_CORES", "")
    return min(n, max(1, int(limit))) if re.fullmatch(r"[0-9]{1,6}", limit) else n
