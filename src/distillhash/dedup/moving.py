"""Moving one file between two open folders: nothing is overwritten, with or without hard links, on one disk or between two.

Folders are descriptors, so that no link put into their path meanwhile leads elsewhere. A file moves by a hard link to its new name and the
removal of the old one; where there are no hard links (exFAT, FAT, SMB) by a rename; between disks by a copy that gets its name when it is
whole and on the disk. At any moment the file is under one of the two names, or both.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

from distillhash.files import open_regular, sync_folder

_FOLDER = getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_PATH", 0)
_NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)
_UNSUPPORTED = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP}
_NO_LINKS = _UNSUPPORTED | {errno.EPERM, errno.EACCES, errno.EMLINK}
_RENAME_NOREPLACE = 1


class LeftBehindError(OSError):
    """The file is whole at its new place, and could not be removed from the old one."""


@dataclass(frozen=True)
class Place:
    """A name in an open folder."""

    folder: int
    name: str

    def status(self) -> os.stat_result:
        """Of the file itself, not of what a link leads to."""
        return os.stat(self.name, dir_fd=self.folder, follow_symlinks=False)

    def exists(self) -> bool:
        """Whether anything is there, a link to nowhere included."""
        try:
            self.status()
        except FileNotFoundError:
            return False
        return True

    def remove(self) -> None:
        """Remove the name, on the disk as well."""
        os.remove(self.name, dir_fd=self.folder)
        self.sync()

    def sync(self) -> None:
        """Wait until the names in the folder are on the disk."""
        sync_folder(".", inside=self.folder)

    def open(self) -> BinaryIO:
        """The regular file there, for reading; a link is an :class:`OSError`."""
        return open_regular(self.name, follow_links=False, inside=self.folder)


@contextlib.contextmanager
def open_folder(base: str | int, parts: Sequence[str], *, create: bool = False) -> Iterator[int]:
    """A descriptor of the folder ``parts`` below ``base`` (a path, or an open folder). No part may be a link (``ENOTDIR``).

    ``create`` makes missing parts.
    """
    handle = os.open(base, _FOLDER) if isinstance(base, str) else os.dup(base)
    try:
        for part in parts:
            try:
                below = os.open(part, _FOLDER | _NOFOLLOW, dir_fd=handle)
            except FileNotFoundError:
                if not create:
                    raise
                with contextlib.suppress(FileExistsError):
                    os.mkdir(part, dir_fd=handle)
                sync_folder(".", inside=handle)
                below = os.open(part, _FOLDER | _NOFOLLOW, dir_fd=handle)
            os.close(handle)
            handle = below
        yield handle
    finally:
        os.close(handle)


def content_digest(file: BinaryIO) -> str:
    """What :func:`distillhash.files.digest` says of the whole file, in hex, read in pieces."""
    file.seek(0)
    hasher = hashlib.blake2b(digest_size=16)
    while piece := file.read(1 << 20):
        hasher.update(piece)
    return hasher.hexdigest()


def sync_file(handle: int) -> None:
    """``fsync``, where the file system knows it (some in user space do not)."""
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise


def move_file(data: BinaryIO, source: Place, target: Place, *, part: str, digest: str, mtime_ns: int) -> None:
    """Move the file ``data``, which is open, was found to have ``digest`` and lies at ``source``, to ``target``, which must be free.

    A copy is named ``part`` until it is whole, and gets the modification time ``mtime_ns``; after an error none is left.

    Raises:
        FileExistsError: ``target`` is taken.
        LeftBehindError: the file is at ``target``, and at ``source`` too, which cannot be removed or is another file by now.
        OSError: it stays at ``source``.
    """
    try:
        _rename(source, target, data, digest)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        _copy(data, target, part, digest, mtime_ns)
        if not _is(source, data, digest):
            raise LeftBehindError(errno.EBUSY, "it changed meanwhile") from error
        remove_old(source)


def _rename(source: Place, target: Place, data: BinaryIO, digest: str) -> None:
    """``source``, which is the open file ``data``, under a free name on the same disk."""
    folders = {"src_dir_fd": source.folder, "dst_dir_fd": target.folder}
    try:
        os.link(source.name, target.name, **folders, follow_symlinks=False)
    except FileExistsError:
        raise
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if not _is(source, data, digest):
            raise OSError(errno.EBUSY, "it changed meanwhile") from error
        if not _rename_exclusively(source, target):
            # Neither hard links nor an exclusive rename: a file that appears between these two lines would be replaced.
            if target.exists():
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST)) from error
            os.rename(source.name, target.name, **folders)
        target.sync()
        source.sync()
        return
    if not _is(target, data, digest):
        target.remove()
        raise OSError(errno.EBUSY, "it changed meanwhile")
    target.sync()
    remove_old(source)


def _rename_exclusively(source: Place, target: Place) -> bool:
    """Rename unless ``target`` exists, in one step; False where system or file system cannot."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    names = os.fsencode(source.name), os.fsencode(target.name)
    if rename(source.folder, names[0], target.folder, names[1], _RENAME_NOREPLACE) == 0:
        return True
    code = ctypes.get_errno()
    if code in _UNSUPPORTED:
        return False
    raise OSError(code, os.strerror(code))


def _copy(data: BinaryIO, target: Place, part: str, digest: str, mtime_ns: int) -> None:
    """A copy on another disk, whole and forced to it before it gets its name."""
    copy = Place(target.folder, part)
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | _NOFOLLOW | getattr(os, "O_CLOEXEC", 0)
    with os.fdopen(os.open(part, flags, 0o600, dir_fd=copy.folder), "w+b") as out:
        try:
            data.seek(0)
            shutil.copyfileobj(data, out, 1 << 20)
            out.flush()
            handle = out.fileno()
            # What the other file system cannot hold is lost: permissions and attributes on exFAT, say.
            with contextlib.suppress(OSError, OverflowError):
                shutil.copystat(data.fileno(), handle)  # type: ignore[arg-type]  # it takes what os.stat takes
            with contextlib.suppress(OSError, OverflowError):
                os.utime(handle, ns=(mtime_ns, mtime_ns))
            sync_file(handle)
            if content_digest(out) != digest:
                raise OSError(errno.EBUSY, "it changed meanwhile")
            _rename(copy, target, out, digest)
        except BaseException:
            with contextlib.suppress(OSError):
                copy.remove()
            raise


def _is(place: Place, data: BinaryIO, digest: str) -> bool:
    """Whether ``place`` is the open file, or has its content: some file systems give a file another number under each name."""
    try:
        if os.path.samestat(place.status(), os.fstat(data.fileno())):
            return True
        with place.open() as other:
            return content_digest(other) == digest
    except OSError:
        return False


def remove_old(source: Place) -> None:
    """Remove the old name of a file that is whole at the new one, or a :class:`LeftBehindError`."""
    try:
        source.remove()
    except OSError as error:
        raise LeftBehindError(error.errno, error.strerror) from error
