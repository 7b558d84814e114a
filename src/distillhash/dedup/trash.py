"""Moving duplicates away, and back: a trash folder with a journal.

The journal, ``journal.jsonl`` in the trash folder, gets a line for a file, forced to the disk, *before* the file moves. A file moves by a
hard link to its new name and the removal of the old one (where links do not work, by a copy forced to the disk, or a rename): at no
moment is it under neither name, and nothing is ever overwritten. So after a kill at any point every image is in its place, or in the trash
with a journal entry, or both at once, which :func:`undo` and the next :func:`move` set right. What the disk holds decides what an entry
means, so an entry whose file never moved costs nothing.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO

from distillhash.errors import DataError, DistillHashError, FormatError
from distillhash.files import digest, sync_folder
from distillhash.progress import Progress

JOURNAL = "journal.jsonl"
FOLDER_NAME = ".distillhash-trash"
"""Default trash inside a folder of images: hidden, so that sources do not see it, and on the same disk, so that moving copies nothing."""


@dataclass(frozen=True)
class Move:
    """A file to move: where it lies, its content digest (32 hex digits) when it was judged, and the file it duplicates."""

    path: str
    digest: str
    keeper: str
    distance: int


@dataclass(frozen=True)
class Entry(Move):
    """A line of the journal: a move, its place in the trash relative to the journal, size in bytes and modification time."""

    trash: str
    size: int
    mtime_ns: int


@dataclass
class Outcome:
    """What was done: paths moved (or brought back), and paths left alone, each with its reason."""

    done: list[str] = field(default_factory=list)
    left: list[tuple[str, str]] = field(default_factory=list)


def move(moves: Sequence[Move], trash: Path, root: Path | None, *, progress: bool = False) -> Outcome:
    """Move files into the trash.

    A file is left where it is when it or its keeper changed or vanished since it was judged, when it is a link, or when it really lies
    outside of ``root`` (links resolved; None takes any place).
    """
    outcome = Outcome()
    real_root = None if root is None else os.path.realpath(root)
    with _journal(trash) as (file, entries):
        batch = 1 + max((int(entry.trash.partition("/")[0]) for entry in entries), default=0)
        leaving = {os.path.realpath(one.path) for one in moves if not Path(one.path).is_symlink()}
        with Progress("moving", len(moves), unit="files", quiet=not progress) as shown:
            for number, one in enumerate(moves):
                shown.advance(1)
                reason = _refusal(one, real_root, leaving)
                if reason is not None:
                    outcome.left.append((one.path, reason))
                    continue
                status = Path(one.path).stat()
                place = f"{batch:04}/{number:06}-{Path(one.path).name}"
                entry = Entry(**asdict(one), trash=place, size=status.st_size, mtime_ns=status.st_mtime_ns)
                (trash / place).parent.mkdir(exist_ok=True)
                file.write(json.dumps(asdict(entry)).encode("utf-8", "surrogateescape") + b"\n")
                file.flush()
                os.fsync(file.fileno())
                try:
                    _move(Path(one.path), trash / place)
                except OSError as error:
                    outcome.left.append((one.path, f"it could not be moved: {error.strerror or error}"))
                else:
                    outcome.done.append(one.path)
    return outcome


def undo(trash: Path, *, progress: bool = False) -> Outcome:
    """Bring everything in the trash back to where it was; content and modification time are what they were.

    A place that another file has taken since is not overwritten: the image stays in the trash and is listed. Running it again is safe.
    """
    if not (trash / JOURNAL).exists():
        raise DataError(f"there is no journal of moved files in {trash}; give the trash folder of an earlier --apply")
    outcome = Outcome()
    with _journal(trash) as (_, entries):
        held = [entry for entry in entries if os.path.lexists(trash / entry.trash)]
        with Progress("bringing back", len(held), unit="files", quiet=not progress) as shown:
            for entry in reversed(held):
                shown.advance(1)
                home = Path(entry.path)
                if os.path.lexists(home):
                    outcome.left.append((entry.path, f"another file is there now; yours is {trash / entry.trash}"))
                    continue
                try:
                    home.parent.mkdir(parents=True, exist_ok=True)
                    _move(trash / entry.trash, home)
                except OSError as error:
                    reason = f"it could not be moved: {error.strerror or error}; it is {trash / entry.trash}"
                    outcome.left.append((entry.path, reason))
                else:
                    outcome.done.append(entry.path)
    return outcome


def read_journal(trash: Path) -> list[Entry]:
    """The entries, oldest first; a last line without its end was never followed by a move and does not count."""
    try:
        data = (trash / JOURNAL).read_bytes()
    except FileNotFoundError:
        return []
    entries = []
    for number, line in enumerate(data[: data.rfind(b"\n") + 1].splitlines(), 1):
        try:
            entry = Entry(**json.loads(line.decode("utf-8", "surrogateescape")))
            if Path(entry.trash).is_absolute() or ".." in Path(entry.trash).parts:
                raise ValueError("a place outside of the trash")
        except (ValueError, TypeError) as error:
            raise FormatError(
                f"line {number} of {trash / JOURNAL} is damaged ({error}); repair or remove that line, the others stay valid"
            ) from error
        entries.append(entry)
    return entries


@contextlib.contextmanager
def _journal(trash: Path) -> Iterator[tuple[IO[bytes], list[Entry]]]:
    """The journal, open for appending by this process alone, and what it holds; cut-off moves are finished first."""
    try:
        trash.mkdir(parents=True, exist_ok=True)
        file = (trash / JOURNAL).open("ab")
    except OSError as error:
        raise DistillHashError(f"the trash {trash} cannot be written ({error.strerror}); give --trash DIR") from error
    with file:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:  # pragma: no cover  # Windows: one process at a time is then up to the user
            pass
        except OSError as error:
            raise DistillHashError(
                f"another process is moving files into or out of {trash}; wait for it to end"
            ) from error
        entries = read_journal(trash)
        file.truncate((trash / JOURNAL).read_bytes().rfind(b"\n") + 1)  # a line that was cut off by a crash
        sync_folder(trash)
        for entry in entries:  # moves that were killed between the two names: the file is under both
            home, away = Path(entry.path), trash / entry.trash
            away.with_name(away.name + ".part").unlink(missing_ok=True)
            if not home.is_file() or not away.is_file():
                continue
            # Two names of one file, or a copy to another disk that was cut off before the original went.
            if home.samefile(away) or all(digest(path.read_bytes()).hex() == entry.digest for path in (home, away)):
                away.unlink()
                sync_folder(away.parent)
        yield file, entries


def _refusal(one: Move, root: str | None, leaving: set[str]) -> str | None:
    """Why a file is not moved, or None."""
    path = Path(one.path)
    if path.is_symlink():
        return "it is a link"
    if root is not None and not os.path.realpath(path).startswith(root.rstrip(os.sep) + os.sep):
        return f"it lies outside of {root}"
    if os.path.realpath(one.keeper) in leaving:
        return "its keeper is to be moved as well"
    try:
        if digest(path.read_bytes()).hex() != one.digest:
            return "it changed since it was looked at"
        if not Path(one.keeper).is_file() or Path(one.keeper).samefile(path):
            return "its keeper is gone"
    except OSError as error:
        return f"it cannot be read: {error.strerror}"
    return None


def _move(source: Path, target: Path) -> None:
    """``source`` under the name ``target``, which must be free; the file is under one of the names, or both, at any moment."""
    try:
        os.link(source, target, follow_symlinks=False)
    except FileExistsError:
        raise
    except OSError as error:
        if error.errno == errno.EXDEV:
            _copy(source, target)
        elif error.errno in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EACCES):
            if os.path.lexists(target):
                raise FileExistsError(errno.EEXIST, "the place is taken", str(target)) from error
            source.rename(target)
            sync_folder(target.parent)
            return
        else:
            raise
    sync_folder(target.parent)
    source.unlink()
    sync_folder(source.parent)


def _copy(source: Path, target: Path) -> None:
    """A copy on another disk, whole and forced to it before it gets its name."""
    part = target.with_name(target.name + ".part")
    with source.open("rb") as data, part.open("wb") as out:
        shutil.copyfileobj(data, out)
        out.flush()
        os.fsync(out.fileno())
    shutil.copystat(source, part)
    os.link(part, target)
    part.unlink()
