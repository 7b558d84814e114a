"""The journal of a trash: a JSON object a line for every file that was to move there, written by us, or by somebody else."""

from __future__ import annotations

import contextlib
import errno
import hmac
import json
import os
import re
import secrets
import stat
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace

from distillhash.dedup.moving import sync_file
from distillhash.files import read_file, user_folder

JOURNAL = "journal.jsonl"
_LONGEST_LINE = 1 << 16  # bytes
_LONGEST_PATH = 4096  # bytes
_MOST_REPORTED = 100  # damaged lines that are listed one by one
_KINDS = {"path": str, "digest": str, "keeper": str, "trash": str, "size": int, "mtime_ns": int}
_OPTIONAL = {"root": str, "up": int, "seal": str}


@dataclass(frozen=True)
class Move:
    """A file to move: where it lies, its content digest (32 hex digits) when it was judged, and the file it duplicates."""

    path: str
    digest: str
    keeper: str
    distance: int


@dataclass(frozen=True)
class Entry(Move):
    """A line of the journal: a move, its place in the trash relative to the journal, size in bytes and modification time.

    ``path`` and ``keeper`` are relative to the collection where they lie in it. ``root`` is its real path when the file was moved, ``up``
    how many levels it lies above the trash (None for a trash outside of it), ``seal`` shows which user wrote the line. Lines of older
    versions have absolute paths and none of the three.
    """

    trash: str
    size: int
    mtime_ns: int
    root: str | None = None
    up: int | None = None
    seal: str | None = None

    @property
    def place(self) -> tuple[str, str]:
        """The batch folder in the trash, and the name in it."""
        batch, _, name = self.trash.partition("/")
        return batch, name

    def sealed(self) -> Entry:
        """This line with the seal of this user, whose key is made on first use; without one where no key can be kept."""
        return replace(self, seal=_seal(self, create=True))

    def is_sealed(self) -> bool:
        """Whether this user wrote the line."""
        known = _seal(self, create=False)
        return known is not None and self.seal is not None and hmac.compare_digest(known, self.seal)


class Journal:
    """An open journal, for this process alone."""

    def __init__(self, folder: int, *, write: bool) -> None:
        """Open that of the trash ``folder`` (a descriptor), and make it where that is asked for.

        Raises:
            OSError: it is a link (``ELOOP``), no file of its own (``EMLINK``), cannot be opened, or is in use (``BlockingIOError``).
        """
        import fcntl

        flags = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_APPEND
        try:
            handle = os.open(JOURNAL, flags | os.O_RDWR | (os.O_CREAT if write else 0), 0o666, dir_fd=folder)
        except OSError as error:
            if write or error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise
            handle = os.open(JOURNAL, flags | os.O_RDONLY, dir_fd=folder)
        self._file = os.fdopen(handle, "rb", buffering=1 << 16)
        self._end = 0  # bytes of whole lines
        self.unlocked: str | None = None  # why it could not be locked, where the file system has no locks
        try:
            status = os.fstat(handle)
            if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
                raise OSError(errno.EMLINK, "its journal is no plain file of its own")
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if isinstance(error, BlockingIOError) or error.errno == errno.EMLINK:
                self._file.close()
                raise
            self.unlocked = error.strerror

    def close(self) -> None:
        """Close and unlock."""
        self._file.close()

    def read(self, damaged: list[tuple[str, str]]) -> Iterator[Entry]:
        """The entries, oldest first; damaged lines are listed. A last line without its end was never followed by a move."""
        self._file.seek(0)
        number = n_damaged = 0
        while line := self._file.readline(_LONGEST_LINE + 1):
            number += 1
            rest = line
            while rest and not rest.endswith(b"\n"):
                rest = self._file.readline(1 << 20)
            if not rest:
                break
            self._end = self._file.tell()
            if not line.strip():
                continue
            try:
                if line is not rest:
                    raise ValueError(f"longer than {_LONGEST_LINE:,} bytes")
                yield parse(line)
            except (ValueError, TypeError, RecursionError) as error:
                n_damaged += 1
                if n_damaged <= _MOST_REPORTED:
                    damaged.append((f"line {number} of its journal", f"it is damaged: {error}"))
        if n_damaged > _MOST_REPORTED:
            damaged.append((f"{n_damaged - _MOST_REPORTED:,} more lines of its journal", "they are damaged"))

    def cut_off(self) -> None:
        """Remove what follows the last whole line, once all of them were read."""
        os.ftruncate(self._file.fileno(), self._end)

    def append(self, entry: Entry) -> None:
        """Write a line, forced to the disk; after an error none of it stays. ``ValueError`` for one that :meth:`read` would not take."""
        facts = {name: value for name, value in asdict(entry).items() if value is not None}
        line = json.dumps(facts).encode() + b"\n"
        if len(line) > _LONGEST_LINE:
            raise ValueError(f"its line in the journal would have {len(line):,} bytes, over {_LONGEST_LINE:,}")
        handle = self._file.fileno()
        try:
            rest = line
            while rest:
                rest = rest[os.write(handle, rest) :]
            sync_file(handle)
        except BaseException:
            with contextlib.suppress(OSError):
                self.cut_off()
            raise
        self._end += len(line)


def parse(line: bytes) -> Entry:
    """The entry of a line; a ValueError or TypeError where it is none, or names a place that no trash or collection has."""
    try:
        found = json.loads(line.decode("utf-8-sig", "surrogateescape"))
    except ValueError as error:
        raise ValueError("it is no JSON") from error
    if not isinstance(found, dict):
        raise TypeError("it is no object")
    if missing := [name for name in _KINDS if name not in found]:
        raise ValueError(f"it has no {missing[0]}")
    entry = Entry(**{one.name: found[one.name] for one in fields(Entry) if one.name in found})
    for name, kind in (_KINDS | _OPTIONAL).items():
        value = getattr(entry, name)
        if type(value) is not kind and (value is not None or name in _KINDS):
            raise TypeError(f"its {name} is {value!r:.40}")
    path, names = entry.path, entry.path.split("/")
    absolute = path.startswith("/")
    for reason, wrong in (
        (f"its digest is {entry.digest!r:.40}", not re.fullmatch("[0-9a-f]{32}", entry.digest)),
        ("its seal is none", not (entry.seal or "").isascii()),
        (f"its trash is {entry.trash!r:.99}", not re.fullmatch(r"[0-9]{1,9}/(?!\.\.?\Z)[^/\0]{1,255}", entry.trash)),
        (f"its up is {entry.up}", entry.up is not None and not 0 < entry.up < _LONGEST_PATH),
        ("it has a NUL", "\0" in path + entry.keeper + (entry.root or "")),
        ("its path is longer than any", len(os.fsencode(path)) > _LONGEST_PATH),
        (f"its path is {path!r:.99}", names[-1] in ("", ".", "..")),
        (f"its path is {path!r:.99}, outside", not absolute and not {"", ".", ".."}.isdisjoint(names)),
        ("its collection is missing", not absolute and entry.up is None and entry.root is None),
    ):
        if wrong:
            raise ValueError(reason)
    os.fsencode(entry.trash + entry.keeper + (entry.root or ""))
    return entry


def _seal(entry: Entry, *, create: bool) -> str | None:
    """What only this user can write under an entry: a keyed digest; None without a key, which is in the user's data folder."""
    folder = user_folder("data")
    if folder is None:
        return None
    file = folder / "trash.key"
    try:
        if create and (not file.exists() or file.stat().st_size < 32):
            folder.mkdir(parents=True, exist_ok=True)
            with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT, 0o600), "wb") as out:
                out.write(secrets.token_bytes(32))
        key = read_file(file, limit=1024)
    except OSError:
        return None
    text = json.dumps([entry.path, entry.root, entry.up, entry.trash, entry.digest])
    return hmac.new(key, text.encode(), "sha256").hexdigest() if len(key) >= 32 else None
