"""Moving duplicates away, and back: a trash folder with a journal.

The journal, ``journal.jsonl`` in the trash folder, gets a line for a file, forced to the disk, *before* the file moves (see
:mod:`distillhash.dedup.moving`). So after a kill at any point every image is in its place, or in the trash with a journal entry, or both at
once, which :func:`undo` and the next :func:`move` set right. What the disk holds decides what an entry means, so an entry whose file never
moved costs nothing, and neither does one whose file was brought back or deleted since.

A trash may come from somebody else, with the folder it lies in. Its journal is believed in nothing that reaches outside of the collection,
unless it was written by this user (a seal says so) or ``anywhere`` is given; and a file goes back only if its content is what was moved.
"""

from __future__ import annotations

import contextlib
import errno
import hmac
import json
import os
import re
import secrets
import stat
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import BinaryIO

from platformdirs import user_data_path

from distillhash.dedup.moving import LeftBehindError, Place, content_digest, move_file, open_folder, sync_file
from distillhash.errors import DataError, DistillHashError
from distillhash.files import digest, read_file, sync_folder
from distillhash.progress import Progress

JOURNAL = "journal.jsonl"
FOLDER_NAME = ".distillhash-trash"
"""Default trash inside a folder of images: hidden, so that sources do not see it, and on the same disk, so that moving copies nothing."""

_LONGEST_LINE = 1 << 16  # bytes of a journal line
_FILES_IN_BATCH = 5000  # FAT holds few long names in one folder
_MOST_REPORTED = 100  # damaged lines that are listed one by one
_TRASH_PLACE = re.compile(r"([0-9]{1,9})/([^/\0]+)")


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


@dataclass
class Outcome:
    """What was done: paths moved (or brought back: where they are now), and paths left alone, each with its reason."""

    done: list[str] = field(default_factory=list)
    left: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # what else people should know
    collections: set[str] = field(default_factory=set)  # the folders that files went back to
    n_gone: int = 0  # files of the journal that are neither in the trash nor at their place: deleted or renamed by hand
    n_other: int = 0  # files in the trash that belong to another collection than the one asked for


class _Refused(Exception):  # noqa: N818  # not an error: a reason, caught where the file is listed
    """Why a file is left where it is."""


class _OtherCollection(Exception):  # noqa: N818
    """The file belongs to another collection than the one asked for."""


def move(moves: Sequence[Move], trash: Path, root: Path | None, *, progress: bool = False) -> Outcome:
    """Move files into the trash.

    A file is left where it is when it or its keeper changed or vanished since it was judged, when it is a link, or when it really lies
    outside of ``root``, the collection (links resolved; None takes any place). What happens to one file never stops the others.

    Raises:
        DistillHashError: the trash cannot be written, is behind a link, or is in use.
    """
    outcome = Outcome()
    with _opened(trash, root, outcome, write=True) as bin_:
        bin_.finish_moves()
        leaving = {os.path.realpath(one.path) for one in moves if not Path(one.path).is_symlink()}
        with Progress("moving", len(moves), unit="files", quiet=not progress) as shown:
            for number, one in enumerate(moves):
                shown.advance(1)
                try:
                    bin_.take(one, number, leaving)
                except _Refused as reason:
                    outcome.left.append((one.path, str(reason)))
                except (OSError, ValueError) as error:
                    outcome.left.append((one.path, f"it could not be moved: {_reason(error)}"))
                else:
                    outcome.done.append(one.path)
    return outcome


def undo(trash: Path, root: Path | None = None, *, anywhere: bool = False, progress: bool = False) -> Outcome:
    """Bring everything in the trash back to where it was in its collection; content and modification time are what they were.

    ``root`` is where the collection is now; by default the folder that holds a trash of the default name, else where it was. A place that
    another file has taken since is not overwritten: the image stays in the trash and is listed. Running it again is safe.
    ``anywhere`` believes a journal that names places outside of the collection.

    Raises:
        DataError: no journal.
        DistillHashError: the trash is behind a link, or in use.
    """
    outcome = Outcome()
    with _opened(trash, root, outcome, write=False, anywhere=anywhere) as bin_:
        held = bin_.held()
        absent = bin_.absent - {bin_.shown(entry) for entry in held} if bin_.absent else ()
        outcome.n_gone = len(absent)
        with Progress("bringing back", len(held), unit="files", quiet=not progress) as shown:
            for entry in reversed(held):
                shown.advance(1)
                where = f"it is {trash / entry.trash}"
                try:
                    bin_.bring_back(entry)
                except _OtherCollection:
                    outcome.n_other += 1
                except _Refused as reason:
                    outcome.left.append((bin_.shown(entry), f"{reason}; {where}"))
                except (OSError, ValueError) as error:
                    outcome.left.append((bin_.shown(entry), f"it could not be moved: {_reason(error)}; {where}"))
    return outcome


@dataclass
class _Trash:
    """An open trash: its folder as a descriptor, its journal open and locked."""

    path: Path
    real: str
    folder: int
    journal: BinaryIO
    outcome: Outcome
    asked: str | None  # real path of the collection that was named
    anywhere: bool
    end: int = 0  # bytes of whole lines in the journal
    batch: str = ""  # the folder that files go to
    n_taken: int = 0
    absent: set[str] = field(default_factory=set)  # places of entries whose file is neither there nor in the trash
    roots: Counter[str] = field(default_factory=Counter)  # where collections of old entries were, by keepers found
    gone: set[str] = field(default_factory=set)  # recorded collections that are not there

    @property
    def collection(self) -> str | None:
        """Real path of the collection that is served: the one asked for, else the folder around a trash of the default name."""
        here, name = os.path.split(self.real)
        return self.asked if self.asked is not None or name != FOLDER_NAME else here

    def entries(self) -> Iterator[Entry]:
        """What the journal holds, oldest first; damaged lines are reported. A last line without its end was never followed by a move."""
        self.journal.seek(0)
        number = n_damaged = 0
        while line := self.journal.readline(_LONGEST_LINE + 1):
            number += 1
            rest = line
            while rest and not rest.endswith(b"\n"):
                rest = self.journal.readline(1 << 20)
            if not rest:
                break
            self.end = self.journal.tell()
            if not line.strip():
                continue
            try:
                if line is not rest:
                    raise ValueError(f"longer than {_LONGEST_LINE:,} bytes")
                yield _parse(line)
            except (ValueError, TypeError, RecursionError) as error:
                n_damaged += 1
                if n_damaged <= _MOST_REPORTED:
                    self.outcome.left.append((f"line {number} of {self.path / JOURNAL}", f"it is damaged ({error})"))
        if n_damaged > _MOST_REPORTED:
            more = f"{n_damaged - _MOST_REPORTED:,} more lines of {self.path / JOURNAL}"
            self.outcome.left.append((more, "they are damaged"))

    def held(self) -> list[Entry]:
        """Entries whose file is in the trash, oldest first; partial copies are removed."""
        held = []
        for entry in self.entries():
            batch, name = entry.trash.split("/")
            try:
                with open_folder(self.folder, [batch]) as folder:
                    _remove_part(Place(folder, f"{name}.part"))
                    there = Place(folder, name).exists()
            except FileNotFoundError:
                there = False
            except OSError:
                there = True  # reported when it is to move
            if there:
                held.append(entry)
                if entry.up is None and entry.root is not None and not _is_collection(entry.root):
                    self.gone.add(entry.root)
                if os.path.isabs(entry.path) and self.collection is not None:
                    self.roots.update(_old_roots(entry.keeper, self.collection))
            else:
                self._look_for(entry)
        return held

    def finish_moves(self) -> None:
        """Finish moves that were killed between the two names, and cut off a last line without its end."""
        reports, self.outcome.left = self.outcome.left, []  # what is damaged concerns an undo
        for entry in self.held():
            with contextlib.suppress(OSError, ValueError, _Refused, _OtherCollection):
                base, parts, _ = self._home(entry)
                with open_folder(base, parts[:-1]) as near:
                    self._finish(entry, Place(near, parts[-1]))
        self.outcome.left = reports
        os.ftruncate(self.journal.fileno(), self.end)
        sync_folder(".", inside=self.folder)

    def take(self, one: Move, number: int, leaving: set[str]) -> None:
        """Move one file into the trash."""
        path = _settled(one.path)
        if Path(one.path).is_symlink():
            raise _Refused("it is a link")
        if self.asked is not None and not _below(path, self.asked):
            raise _Refused(f"it lies outside of {self.asked}")
        if _below(path, self.real):
            raise _Refused("it lies in the trash")
        if os.path.realpath(one.keeper) in leaving:
            raise _Refused("its keeper is to be moved as well")
        base = self.asked or "/"
        parts = _parts(path, base)
        with open_folder(base, parts[:-1]) as near:
            home = Place(near, parts[-1])
            try:
                data = home.open()
            except OSError as error:
                raise _Refused(f"it cannot be read: {_reason(error)}") from error
            with data:
                if content_digest(data) != one.digest:
                    raise _Refused("it changed since it was looked at")
                status = os.fstat(data.fileno())
                self._check_keeper(one.keeper, status)
                entry = self._entry(one, path, number, status)
                with open_folder(self.folder, [self.batch]) as folder:
                    away = Place(folder, entry.trash.partition("/")[2])
                    self._record(entry)
                    self._move(entry, data, home, away)

    def bring_back(self, entry: Entry) -> None:
        """Move one file back."""
        base, parts, create = self._home(entry)
        batch, name = entry.trash.split("/")
        with open_folder(self.folder, [batch]) as folder, contextlib.ExitStack() as stack:
            away = Place(folder, name)
            data = stack.enter_context(away.open())
            if os.fstat(data.fileno()).st_size != entry.size or content_digest(data) != entry.digest:
                raise _Refused("the file in the trash is not the one that was moved there")
            try:
                near = stack.enter_context(open_folder(base, parts[:-1], create=create))
            except FileNotFoundError as error:
                raise _Refused(f"its folder {base.rstrip('/')}/{'/'.join(parts[:-1])} is not there") from error
            except OSError as error:
                if error.errno not in (errno.ENOTDIR, errno.ELOOP):
                    raise
                raise _Refused("a folder on its way is a file or a link now") from error
            home = Place(near, parts[-1])
            if home.exists():
                if not self._finish(entry, home):
                    raise _Refused("another file is there now")
                return
            place = os.path.join(base, *parts)
            part = _part_name(entry)
            _remove_part(Place(near, part))
            try:
                move_file(data, away, home, part=part, digest=entry.digest, mtime_ns=entry.mtime_ns)
            except FileExistsError as error:
                raise _Refused("another file is there now") from error
            except LeftBehindError as error:
                self.outcome.notes.append(f"{place} is back, and still in the trash as well: {_reason(error)}")
            self.outcome.done.append(place)
            self.outcome.collections.add(base)

    def _finish(self, entry: Entry, home: Place) -> bool:
        """Remove the trash's name of a file that is whole at its own place; whether that was so."""
        _remove_part(Place(home.folder, _part_name(entry)))
        batch, name = entry.trash.split("/")
        with open_folder(self.folder, [batch]) as folder:
            away = Place(folder, name)
            if os.path.samestat(os.fstat(folder), os.fstat(home.folder)):
                return False  # two spellings of one name
            with home.open() as ours, away.open() as theirs:
                if not os.path.samestat(os.fstat(ours.fileno()), os.fstat(theirs.fileno())) and not all(
                    content_digest(file) == entry.digest for file in (ours, theirs)
                ):
                    return False
            away.remove()
        return True

    def _move(self, entry: Entry, data: BinaryIO, home: Place, away: Place) -> None:
        part = f"{away.name}.part"
        try:
            move_file(data, home, away, part=part, digest=entry.digest, mtime_ns=entry.mtime_ns)
        except LeftBehindError:
            away.remove()
            raise

    def _check_keeper(self, keeper: str, leaving: os.stat_result) -> None:
        try:
            status = os.stat(keeper)
        except OSError as error:
            raise _Refused("its keeper is gone") from error
        if not stat.S_ISREG(status.st_mode) or os.path.samestat(status, leaving):
            raise _Refused("its keeper is gone")

    def _entry(self, one: Move, path: str, number: int, status: os.stat_result) -> Entry:
        """The line for a file; the batch folder is made if it is the first in it."""
        if self.n_taken % _FILES_IN_BATCH == 0:
            self._new_batch()
        root, up = self.asked, None
        if root is not None:
            one = replace(one, path="/".join(_parts(path, root)))
            keeper = _settled(one.keeper)
            one = replace(one, keeper="/".join(_parts(keeper, root)) if _below(keeper, root) else keeper)
            up = len(_parts(self.real, root)) if _below(self.real, root) else None
        else:
            one = replace(one, path=path, keeper=_settled(one.keeper))
        place = f"{self.batch}/{_trash_name(number, os.path.basename(path))}"
        entry = Entry(**asdict(one), trash=place, size=status.st_size, mtime_ns=status.st_mtime_ns, root=root, up=up)
        return entry if self._is_default(entry) else replace(entry, seal=_seal(entry, create=True))

    def _new_batch(self) -> None:
        handle = os.open(".", os.O_RDONLY, dir_fd=self.folder)
        try:
            numbers = [int(name) for name in os.listdir(handle) if re.fullmatch("[0-9]{4,8}", name)]
        finally:
            os.close(handle)
        number = 1 + max(numbers, default=0)
        while True:
            with contextlib.suppress(FileExistsError):
                os.mkdir(f"{number:04}", dir_fd=self.folder)
                break
            number += 1
        self.batch = f"{number:04}"
        sync_folder(".", inside=self.folder)

    def _record(self, entry: Entry) -> None:
        """Write a line, forced to the disk; after an error none of it stays."""
        line = json.dumps({name: value for name, value in asdict(entry).items() if value is not None}).encode() + b"\n"
        if len(line) > _LONGEST_LINE:
            raise _Refused(f"its line in the journal would have {len(line):,} bytes, over {_LONGEST_LINE:,}")
        handle = self.journal.fileno()
        try:
            rest = line
            while rest:
                rest = rest[os.write(handle, rest) :]
            sync_file(handle)
        except BaseException:
            with contextlib.suppress(OSError):
                os.ftruncate(handle, self.end)
            raise
        self.end += len(line)
        self.n_taken += 1

    def _look_for(self, entry: Entry) -> None:
        """Note the place of an entry if nothing is there, as far as that can be told."""
        with contextlib.suppress(OSError, ValueError, _Refused, _OtherCollection):
            base, parts, _ = self._home(entry)
            place = os.path.join(base, *parts)
            if not os.path.lexists(place):
                self.absent.add(place)

    def _home(self, entry: Entry) -> tuple[str, list[str], bool]:
        """Where an entry goes back: a folder it must not leave, the path below it, and whether missing folders on it may be made."""
        bound, path = self._absolute(entry) if os.path.isabs(entry.path) else self._relative(entry)
        place = _settled(path)
        if _below(place, self.real):
            raise _Refused("its place is in the trash")
        if bound is None:
            return "/", _parts(place, "/"), False
        if not _below(place, bound):
            raise _Refused(f"a link leads out of {bound} now")
        return bound, _parts(place, bound), True

    def shown(self, entry: Entry) -> str:
        """The place of an entry, as far as it is known."""
        try:
            base, parts, _ = self._home(entry)
        except (OSError, ValueError, _Refused, _OtherCollection):
            return entry.path
        return os.path.join(base, *parts)

    def _absolute(self, entry: Entry) -> tuple[str | None, str]:
        """The bound and the place of a file that no collection was recorded for: an older version's, or one of a list of files."""
        collection, place = self.collection, os.path.normpath(entry.path)
        if collection is not None:
            if _below(_settled(entry.path), collection):
                return collection, entry.path
            roots = [root for root in self.roots if _below(place, root)]
            if entry.seal is None and roots:
                root = max(roots, key=lambda root: (self.roots[root], -len(root)))
                return collection, f"{collection}/{'/'.join(_parts(place, root))}"
        sealed = self._sealed(entry)
        if self.anywhere or (sealed and self.asked is None):
            return None, entry.path
        if sealed:
            raise _OtherCollection
        raise self._outside()

    def _relative(self, entry: Entry) -> tuple[str | None, str]:
        """The bound and the place of a file of a recorded collection."""
        asked, own = self.asked, os.path.realpath(entry.root or "/")
        if entry.up is not None:
            own = os.path.normpath(os.path.join(self.real, *[os.pardir] * entry.up))
        there, place = _is_collection(own), f"{own}/{entry.path}"
        if asked is None:
            if not self._is_default(entry):
                if not self.anywhere and not self._sealed(entry):
                    raise self._outside()
                if not there:
                    raise _Refused(f"its collection {own} is not there, or empty; say where it is: {self._remedy('')}")
            return own, place
        moved = f"{asked}/{entry.path}"
        if _same(asked, own) or (not there and (len(self.gone) < 2 or _holds(asked, entry.keeper))):
            return asked, moved
        if there and _below(_settled(place), asked):
            return asked, place
        if _holds(asked, entry.keeper) and not _holds(own, entry.keeper):
            return asked, moved
        if self.anywhere:
            return own, place
        if self._sealed(entry) or self._is_default(entry):
            raise _OtherCollection
        raise self._outside()

    def _is_default(self, entry: Entry) -> bool:
        """Whether an entry belongs to the folder around the trash, as the name of the trash says, whoever wrote it."""
        return entry.up == 1 and os.path.basename(self.real) == FOLDER_NAME

    def _outside(self) -> _Refused:
        collection = self.collection
        if collection is None:
            return _Refused(f"the journal was not written by you here; name the collection: {self._remedy('')}")
        return _Refused(f"its place is outside of {collection}; {self._remedy(' --anywhere')} puts it there")

    def _remedy(self, option: str) -> str:
        return f"`distillhash dedup SOURCE --undo --trash {self.path}{option}`"

    def _sealed(self, entry: Entry) -> bool:
        known = _seal(entry)
        return known is not None and entry.seal is not None and hmac.compare_digest(known, entry.seal)


@contextlib.contextmanager
def _opened(
    trash: Path, root: Path | None, outcome: Outcome, *, write: bool, anywhere: bool = False
) -> Iterator[_Trash]:
    """The trash, for this process alone. No part of its path below the collection is a link, nor are the folder itself and the journal."""
    if os.open not in os.supports_dir_fd:
        raise DistillHashError("files are moved on Linux and macOS only; use the report of `dedup --out`")
    with contextlib.ExitStack() as stack:
        try:
            base, parts = _split(trash, root)
            if write:
                Path(base).mkdir(parents=True, exist_ok=True)
            folder = stack.enter_context(open_folder(base, parts, create=write))
            handle = _open_journal(folder, write=write)
        except FileNotFoundError as error:
            raise DataError(_no_journal(trash, root)) from error
        except OSError as error:
            if error.errno in (errno.ENOTDIR, errno.ELOOP):
                raise DistillHashError(
                    f"the trash {trash} is not used: it, a folder above it or its journal is a link, or no folder; give its real path"
                ) from error
            verb = "written" if write else "read"
            raise DistillHashError(
                f"the trash {trash} cannot be {verb} ({_reason(error)}); give --trash DIR"
            ) from error
        journal = stack.enter_context(os.fdopen(handle, "rb", buffering=1 << 16))
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
            raise DistillHashError(f"{trash / JOURNAL} is no plain file of its own; it is not used as a journal")
        try:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise DistillHashError(
                    f"another process is moving files into or out of {trash}; wait for it to end"
                ) from error
            outcome.notes.append(f"{trash} cannot be locked ({_reason(error)}); let no other process move files there")
        asked = None if root is None else os.path.realpath(root)
        yield _Trash(trash, os.path.realpath(trash), folder, journal, outcome, asked, anywhere)


def _no_journal(trash: Path, root: Path | None) -> str:
    text = f"there is no journal of moved files in {trash}; give the trash folder of an earlier --apply"
    for folder in () if root is None else Path(os.path.realpath(root)).parents:
        if (folder / FOLDER_NAME / JOURNAL).is_file():
            return f"{text}, or undo that of the folder above: `distillhash dedup {folder} --undo`"
    return text


def _split(trash: Path, root: Path | None) -> tuple[str, list[str]]:
    """The folder that the user vouches for, and the path of the trash below it, which must have no links."""
    whole = os.path.abspath(trash)
    if root is not None:
        base = os.path.abspath(root)
        if whole == base:
            raise DataError(f"the trash {trash} is the collection itself; give another folder")
        if _below(whole, base):
            return base, _parts(whole, base)
    if whole == "/":
        raise DataError("the trash cannot be /; give another folder")
    return os.path.dirname(whole), [os.path.basename(whole)]


def _open_journal(folder: int, *, write: bool) -> int:
    """A descriptor, for reading alone where that is all there is."""
    flags = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_APPEND
    try:
        return os.open(JOURNAL, flags | os.O_RDWR | (os.O_CREAT if write else 0), 0o666, dir_fd=folder)
    except OSError as error:
        if write or error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        return os.open(JOURNAL, flags | os.O_RDONLY, dir_fd=folder)


def _parse(line: bytes) -> Entry:
    """An entry; a ValueError or TypeError where it is none."""
    found = json.loads(line.decode("utf-8", "surrogateescape"))
    if not isinstance(found, dict):
        raise TypeError("it is no object")
    entry = Entry(**{one.name: found[one.name] for one in fields(Entry) if one.name in found})
    kinds = {"path": str, "digest": str, "keeper": str, "trash": str, "size": int, "mtime_ns": int}
    optional = {"root": str, "up": int, "seal": str}
    for name, kind in (kinds | optional).items():
        value = getattr(entry, name)
        if type(value) is not kind and (value is not None or name in kinds):
            raise TypeError(f"its {name} is {value!r:.40}")
    place = _TRASH_PLACE.fullmatch(entry.trash)
    if place is None or place[2] in (".", ".."):
        raise ValueError(f"its place in the trash is {entry.trash!r:.100}, outside of the trash")
    os.fsencode(entry.path + entry.keeper + entry.trash + (entry.root or ""))
    if "\0" in entry.path + entry.keeper + (entry.root or "") or not os.path.basename(entry.path):
        raise ValueError(f"its path is {entry.path!r:.100}")
    if not os.path.isabs(entry.path):
        if not {"", ".", ".."}.isdisjoint(entry.path.split("/")) or (entry.up is None and entry.root is None):
            raise ValueError(f"its path is {entry.path!r:.100}, outside of a collection")
        if entry.up is not None and not 0 < entry.up < 1000:
            raise ValueError(f"its collection is {entry.up} levels up")
    elif os.path.basename(entry.path) in (".", ".."):
        raise ValueError(f"its path is {entry.path!r:.100}")
    if not re.fullmatch("[0-9a-f]{32}", entry.digest) or not (entry.seal or "").isascii():
        raise ValueError("its digest or seal is none")
    return entry


def _seal(entry: Entry, *, create: bool = False) -> str | None:
    """What only this user can write under an entry: a keyed digest; None without a key, which is in the user's data folder."""
    try:
        file = user_data_path("distillhash") / "trash.key"
        if not file.is_absolute():
            return None
        if create and (not file.exists() or file.stat().st_size < 32):
            file.parent.mkdir(parents=True, exist_ok=True)
            with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT, 0o600), "wb") as out:
                out.write(secrets.token_bytes(32))
        key = read_file(file, limit=1024)
    except (OSError, RuntimeError, ValueError, KeyError):
        return None
    text = json.dumps([entry.path, entry.root, entry.up, entry.trash, entry.digest])
    return hmac.new(key, text.encode(), "sha256").hexdigest() if len(key) >= 32 else None


def _trash_name(number: int, name: str) -> str:
    """A name that every file system takes: short, ASCII, and unlike any other of the batch; it still tells what the file was."""

    def plain(text: str) -> str:
        ascii_text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
        return re.sub("[^A-Za-z0-9_-]+", "_", ascii_text)

    stem, suffix = os.path.splitext(name)
    suffix = plain(suffix[1:])[:10]
    return f"{number:06}-{plain(stem)[:40]}" + (f".{suffix}" if suffix else "")


def _part_name(entry: Entry) -> str:
    """The name of a copy on its way back, beside its place."""
    return f".distillhash-{digest(f'{entry.trash}/{entry.digest}'.encode()).hex()[:16]}.part"


def _remove_part(part: Place) -> None:
    """Remove a partial copy that a kill left."""
    with contextlib.suppress(OSError):
        if stat.S_ISREG(part.status().st_mode):
            part.remove()


def _old_roots(keeper: str, collection: str) -> list[str]:
    """Where the collection may have been when an older version wrote down ``keeper``, by what of its path is found in it now."""
    parts = os.path.normpath(keeper).split("/")
    return ["/".join(parts[:k]) or "/" for k in range(1, len(parts)) if _holds(collection, "/".join(parts[k:]))]


def _holds(collection: str, path: str) -> bool:
    return not os.path.isabs(path) and os.path.isfile(f"{collection}/{path}")


def _same(a: str, b: str) -> bool:
    with contextlib.suppress(OSError):
        return os.path.samefile(a, b)
    return False


def _is_collection(folder: str) -> bool:
    """Whether a folder is there and holds anything; one for a disk that is not mounted is empty."""
    try:
        with os.scandir(folder) as found:
            return next(found, None) is not None
    except OSError:
        return False


def _settled(path: str) -> str:
    """The path with links resolved, but for its last part."""
    return os.path.join(os.path.realpath(os.path.dirname(path) or "."), os.path.basename(path))


def _below(path: str, folder: str) -> bool:
    return path != folder and path.startswith(folder.rstrip("/") + "/")


def _parts(path: str, folder: str) -> list[str]:
    """The names on the way from ``folder`` to ``path``, which lies below it."""
    return path[len(folder.rstrip("/")) + 1 :].split("/")


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
