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
import os
import re
import stat
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from distillhash.dedup.journal import JOURNAL, Entry, Journal, Move
from distillhash.dedup.moving import LeftBehindError, Place, content_digest, move_file, open_folder, remove_old
from distillhash.errors import DataError, DistillHashError
from distillhash.files import digest, open_regular, sync_folder
from distillhash.output import Progress

__all__ = ["FOLDER_NAME", "JOURNAL", "Move", "Outcome", "move", "undo"]

FOLDER_NAME = ".distillhash-trash"
"""Default trash inside a folder of images: hidden, so that sources do not see it, and on the same disk, so that moving copies nothing."""

_FILES_IN_BATCH = 5000  # FAT holds few long names in one folder
_BATCH = "[0-9]{4,8}"
_TIME_STEP = 2 * 10**9  # ns in which FAT counts


@dataclass
class Outcome:
    """What was done: paths moved (or brought back: where they are now), and paths left alone, each with its reason."""

    done: list[str] = field(default_factory=list)
    left: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # what else people should know
    collections: set[str] = field(default_factory=set)  # the folders that files went back to
    n_gone: int = 0  # files of the journal that are neither in the trash nor at their place: deleted or renamed by hand
    n_other: int = 0  # files in the trash that belong to another collection than the one asked for


class _Refused(ValueError):  # noqa: N818  # not an error: a reason, caught where the file is listed
    """Why a file is left where it is."""


class _OtherCollection(_Refused):
    """The file belongs to another collection than the one asked for."""


def move(
    moves: Sequence[Move],
    trash: Path,
    root: Path | None,
    *,
    together: Mapping[str, Sequence[Move]] | None = None,
    progress: bool = False,
) -> Outcome:
    """Move files into the trash; with a path in ``together`` go these others, or none of them does.

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
            for one in moves:
                shown.advance(1)
                unit, taken = [*(together or {}).get(one.path, ()), one], []
                try:
                    for each in unit:
                        taken.append(bin_.take(each, leaving))  # noqa: PERF401  # what was taken must be known after an error
                except (OSError, ValueError) as error:
                    outcome.left.append((one.path, _reason(error)))
                    bin_.take_back(taken)
                else:
                    outcome.done += [each.path for each in unit]
    return outcome


def link(moves: Sequence[Move], root: Path | None, *, progress: bool = False) -> Outcome:
    """Put a hard link to the keeper in the place of each file, which must have the keeper's content. At any moment a whole file is there.

    A file is left as it is where :func:`move` leaves it, where its keeper has other content by now, and where no hard link can be made
    (another disk, a file system without them).
    """
    outcome, base = Outcome(), os.path.realpath(root) if root is not None else "/"
    with Progress("linking", len(moves), unit="files", quiet=not progress) as shown:
        for one in moves:
            shown.advance(1)
            try:
                _link(one, base)
            except (OSError, ValueError) as error:
                outcome.left.append((one.path, _reason(error)))
            else:
                outcome.done.append(one.path)
    return outcome


def _inside(name: str, base: str) -> str:
    """Where a file really lies; a link, or a file outside of ``base``, is refused."""
    path = _settled(name)
    if os.path.islink(name):
        raise _Refused("it is a link")
    if not _below(path, base):
        raise _Refused(f"it lies outside of {base}")
    return path


def _link(one: Move, base: str) -> None:
    parts = _parts(_inside(one.path, base), base)
    with open_folder(base, parts[:-1]) as near:
        home, new = Place(near, parts[-1]), Place(near, f".{parts[-1]}.distillhash-link")
        with home.open() as data, open_regular(one.keeper, follow_links=False) as kept:
            if content_digest(data) != one.digest or content_digest(kept) != one.digest:
                raise _Refused("it or its keeper changed since they were looked at")
            if os.path.samestat(os.fstat(data.fileno()), os.fstat(kept.fileno())):
                return
            os.link(one.keeper, new.name, dst_dir_fd=near, follow_symlinks=False)
            try:
                if not os.path.samestat(new.status(), os.fstat(kept.fileno())):
                    raise _Refused("its keeper changed meanwhile")
                os.replace(new.name, home.name, src_dir_fd=near, dst_dir_fd=near)
            except BaseException:
                new.remove()
                raise
        home.sync()


SIDECARS = frozenset({".xmp", ".json", ".aae"})
ATTACHED = frozenset({".mov", ".mp4", ".cr2", ".cr3", ".nef", ".arw", ".dng", ".raf", ".orf", ".rw2", ".pef", ".srw"})
"""Endings of what belongs to an image of the same name in its folder: what programs wrote about it; and the clip of a Live Photo and the
RAW file, which hold more than the image does."""


class Beside:
    """The files beside images; every folder is listed once."""

    def __init__(self) -> None:
        """Nothing is listed yet."""
        self._folders: dict[str, dict[str, list[str]]] = {}

    def of(self, path: str) -> list[str]:
        """Names in the folder of ``path`` that begin with its stem and a dot; its own is not among them."""
        folder, name = os.path.split(path)
        if folder not in self._folders:
            by_start: dict[str, list[str]] = {}
            with contextlib.suppress(OSError, ValueError), os.scandir(folder or ".") as entries:
                for entry in entries:
                    by_start.setdefault(entry.name.partition(".")[0].casefold(), []).append(entry.name)
            self._folders[folder] = by_start
        stem = os.path.splitext(name)[0].casefold()
        names = self._folders[folder].get(name.partition(".")[0].casefold(), [])
        return sorted(other for other in names if other != name and other.casefold().startswith(f"{stem}."))

    def companions(self, path: str, endings: frozenset[str]) -> list[str]:
        """Those with one of the endings that have the stem of ``path``, or its whole name, before it."""
        name = os.path.basename(path)
        stem = os.path.splitext(name)[0].casefold()
        return [
            other
            for other in self.of(path)
            if os.path.splitext(other)[1].lower() in endings
            and (os.path.splitext(other)[0].casefold() == stem or other.startswith(f"{name}."))
        ]


def companion_moves(moves: Sequence[Move]) -> tuple[dict[str, list[Move]], list[tuple[str, str]]]:
    """What goes with each of the moves, by path; and the paths that must stay, each with its reason.

    A RAW file or a clip goes only where the keeper has the same beside it. What two images share stays, and they do.
    """
    beside = Beside()
    together: dict[str, list[Move]] = {}
    left = []
    for one in moves:
        own = beside.companions(one.path, SIDECARS | ATTACHED)
        if not own:
            continue
        folder, name = os.path.split(one.path)
        stem = os.path.splitext(name)[0]
        try:
            shared = [n for n in beside.of(one.path) if n not in own and os.path.splitext(n)[0] == stem]
            if shared and any(not n.startswith(f"{name}.") for n in own):
                raise _Refused(f"{own[0]} belongs to {shared[0]} as well")
            kept_in = os.path.dirname(one.keeper)
            kept = {_digest_of(os.path.join(kept_in, n)) for n in beside.companions(one.keeper, ATTACHED)}
            unit = []
            for other in own:
                content = _digest_of(os.path.join(folder, other))
                if os.path.splitext(other)[1].lower() in ATTACHED and content not in kept:
                    raise _Refused(f"{other} belongs to it, and the keeper has no copy of that beside it")
                unit.append(replace(one, path=os.path.join(folder, other), digest=content))
            together[one.path] = unit
        except (OSError, ValueError) as error:
            left.append((one.path, _reason(error)))
    return together, left


def _digest_of(path: str) -> str:
    with open_regular(path, follow_links=False) as file:
        return content_digest(file)


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
        held = bin_.held(outcome.left)
        outcome.n_gone = len(bin_.absent - {bin_.place(entry) for entry in held if bin_.absent})
        with Progress("bringing back", len(held), unit="files", quiet=not progress) as shown:
            for entry in reversed(held):
                shown.advance(1)
                try:
                    bin_.bring_back(entry)
                except _OtherCollection:
                    outcome.n_other += 1
                except (OSError, ValueError) as error:
                    where = bin_.place(entry) or entry.path
                    outcome.left.append((where, f"{_reason(error)}; it is {trash / entry.trash}"))
        unnamed = "it is in the trash, and no line of the journal that can be read says where it belongs"
        outcome.left += [(str(trash / name), unnamed) for name in bin_.unnamed()]
    return outcome


@dataclass
class _Trash:
    """An open trash."""

    path: Path
    folder: int  # a descriptor
    journal: Journal
    outcome: Outcome
    asked: str | None  # real path of the collection that was named
    anywhere: bool
    real: str  # its real path
    batch: str = ""  # the folder that files go to
    n_taken: int = 0
    absent: set[str] = field(default_factory=set)  # places of entries whose file is neither there nor in the trash
    roots: Counter[str] = field(default_factory=Counter)  # where collections of old entries may have been
    gone: set[str] = field(default_factory=set)  # recorded collections that are not there
    named: set[str] = field(default_factory=set)  # what the journal names in the trash

    @property
    def collection(self) -> str | None:
        """Real path of the collection that is served: the one asked for, else the folder around a trash of the default name."""
        here, name = os.path.split(self.real)
        return self.asked if self.asked is not None or name != FOLDER_NAME else here

    def held(self, damaged: list[tuple[str, str]]) -> list[Entry]:
        """Entries whose file is in the trash, oldest first; damaged lines are listed, and partial copies removed."""
        held = []
        for entry in self.journal.read(damaged):
            self.named.add(entry.trash)
            try:
                with self._away(entry) as away:
                    _remove_part(Place(away.folder, f"{away.name}.part"))
                    there = away.exists()
            except OSError as error:
                there = not isinstance(error, FileNotFoundError)  # it is reported when it is to move
            if there:
                held.append(entry)
                if entry.up is None and entry.root is not None and not _is_collection(entry.root):
                    self.gone.add(entry.root)
                if os.path.isabs(entry.path) and self.collection is not None:
                    for known in (entry.keeper, os.path.dirname(entry.path)):
                        self.roots.update(_old_roots(known, self.collection))
            else:
                place = self.place(entry)
                if place is not None and not os.path.lexists(place):
                    self.absent.add(place)
        return held

    def unnamed(self) -> list[str]:
        """Files with names of ours, relative to the trash, that no entry names: their lines are damaged, or lost."""
        found = []
        for batch in _names(self.folder, _BATCH):
            with contextlib.suppress(OSError), open_folder(self.folder, [batch]) as folder:
                found += [f"{batch}/{name}" for name in _names(folder, "[0-9]{6,}-.*")]
        return sorted(set(found) - self.named)

    def finish_moves(self) -> None:
        """Finish moves that were killed between the two names, and cut off a last line without its end."""
        for entry in self.held([]):  # what is damaged concerns an undo
            with contextlib.suppress(OSError, ValueError):
                base, parts, _ = self._home(entry)
                with open_folder(base, parts[:-1]) as near:
                    self._finish(entry, Place(near, parts[-1]))
        self.journal.cut_off()
        sync_folder(".", inside=self.folder)

    def take(self, one: Move, leaving: set[str]) -> Entry:
        """Move one file into the trash."""
        base = self.asked or "/"
        path = _inside(one.path, base)
        if _below(path, self.real):
            raise _Refused("it lies in the trash")
        if os.path.realpath(one.keeper) in leaving:
            raise _Refused("its keeper is to be moved as well")
        parts = _parts(path, base)
        with open_folder(base, parts[:-1]) as near:
            home = Place(near, parts[-1])
            try:
                data = home.open()
            except OSError as error:
                raise _Refused(f"it cannot be read: {error.strerror}") from error
            with data:
                if content_digest(data) != one.digest:
                    raise _Refused("it changed since it was looked at")
                status = os.fstat(data.fileno())
                if not os.path.isfile(one.keeper) or os.path.samestat(os.stat(one.keeper), status):
                    raise _Refused("its keeper is gone")
                entry = self._entry(one, path, self.n_taken, status)
                with self._away(entry) as away:
                    self.journal.append(entry)
                    self.n_taken += 1
                    part = f"{away.name}.part"
                    try:
                        move_file(data, home, away, part=part, digest=entry.digest, mtime_ns=entry.mtime_ns)
                    except LeftBehindError:
                        away.remove()
                        raise
        return entry

    def take_back(self, taken: Sequence[Entry]) -> None:
        """Bring back the files of a unit that could not be taken whole."""
        done, collections = list(self.outcome.done), set(self.outcome.collections)
        for entry in reversed(taken):
            try:
                self.bring_back(entry)
            except (OSError, ValueError) as error:
                self.outcome.left.append((self.place(entry) or entry.path, f"it is in the trash: {_reason(error)}"))
        self.outcome.done, self.outcome.collections = done, collections

    def bring_back(self, entry: Entry) -> None:
        """Move one file back."""
        base, parts, create = self._home(entry)
        place, part = os.path.join(base, *parts), _part_name(entry)
        with self._away(entry) as away, contextlib.ExitStack() as stack:
            try:
                data = stack.enter_context(away.open())
            except FileNotFoundError:
                return  # another line named the same file
            if os.fstat(data.fileno()).st_size != entry.size or content_digest(data) != entry.digest:
                raise _Refused("the file in the trash is not the one that was moved there")
            try:
                near = stack.enter_context(open_folder(base, parts[:-1], create=create))
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                    raise
                reason = "is not there" if error.errno == errno.ENOENT else "is, or lies in, a file or a link now"
                raise _Refused(f"its folder {os.path.dirname(place)} {reason}") from error
            home = Place(near, parts[-1])
            taken = home.exists()
            try:
                if taken and not self._finish(entry, home):
                    raise _Refused("another file is there now")
                if not taken:
                    _remove_part(Place(near, part))
                    move_file(data, away, home, part=part, digest=entry.digest, mtime_ns=entry.mtime_ns)
            except FileExistsError as error:
                raise _Refused("another file is there now") from error
            except LeftBehindError as error:
                self.outcome.notes.append(f"{place} is back, and still in the trash as well: {error.strerror}")
            if not taken:
                self.outcome.done.append(place)
                self.outcome.collections.add(base)

    @contextlib.contextmanager
    def _away(self, entry: Entry) -> Iterator[Place]:
        """The place of an entry in the trash."""
        batch, name = entry.place
        with open_folder(self.folder, [batch]) as folder:
            yield Place(folder, name)

    def _finish(self, entry: Entry, home: Place) -> bool:
        """Remove the trash's name of a file that is whole at its own place; whether that was so."""
        _remove_part(Place(home.folder, _part_name(entry)))
        with self._away(entry) as away:
            if os.path.samestat(os.fstat(away.folder), os.fstat(home.folder)):
                return False  # two spellings of one name
            try:
                with home.open() as ours, away.open() as theirs:
                    times = [os.fstat(file.fileno()).st_mtime_ns for file in (ours, theirs)]
                    if abs(times[0] - times[1]) > _TIME_STEP or content_digest(ours) != content_digest(theirs):
                        return False
            except OSError:
                return False
            remove_old(away)
        return True

    def _entry(self, one: Move, path: str, number: int, status: os.stat_result) -> Entry:
        """The line for a file; its batch folder is made."""
        root, keeper, up = self.asked, _settled(one.keeper), None
        if root is not None:
            path = "/".join(_parts(path, root))
            keeper = "/".join(_parts(keeper, root)) if _below(keeper, root) else keeper
            up = len(_parts(self.real, root)) if _below(self.real, root) else None
        if not self.batch or (self.n_taken and self.n_taken % _FILES_IN_BATCH == 0):
            self.batch = _new_batch(self.folder)
        place = f"{self.batch}/{_trash_name(number, os.path.basename(path))}"
        facts = asdict(replace(one, path=path, keeper=keeper))
        entry = Entry(**facts, trash=place, size=status.st_size, mtime_ns=status.st_mtime_ns, root=root, up=up)
        return entry if self._is_default(entry) else entry.sealed()

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

    def place(self, entry: Entry) -> str | None:
        """Where an entry goes back, if it does."""
        with contextlib.suppress(OSError, ValueError):
            base, parts, _ = self._home(entry)
            return os.path.join(base, *parts)
        return None

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
        sealed = entry.is_sealed()
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
                if not self.anywhere and not entry.is_sealed():
                    raise self._outside()
                known = os.path.isabs(entry.keeper) or _holds(own, entry.keeper)
                if not there or not (known or _holds(own, os.path.dirname(entry.path))):
                    reason = f"its collection is not at {own}, or lost what it duplicates"
                    raise _Refused(f"{reason}; say where it is: {self._remedy('')}")
            return own, place
        moved = f"{asked}/{entry.path}"
        if there and _below(_settled(place), asked):
            return asked, place
        same = asked == own or (there and os.path.samefile(asked, own)) or (not there and len(self.gone) < 2)
        if same or (_holds(asked, entry.keeper) and not _holds(own, entry.keeper)):
            return asked, moved
        if self.anywhere:
            return own, place
        if entry.is_sealed() or self._is_default(entry):
            raise _OtherCollection
        raise self._outside()

    def _is_default(self, entry: Entry) -> bool:
        """Whether an entry belongs to the folder around the trash, as the name of the trash says, whoever wrote it."""
        return entry.up == 1 and os.path.basename(self.real) == FOLDER_NAME

    def _outside(self) -> _Refused:
        if self.collection is None:
            remedy = f"name the collection: {self._remedy('')}, or say --anywhere"
            return _Refused(f"the journal was not written by you here; {remedy}")
        return _Refused(f"its place is outside of {self.collection}; {self._remedy(' --anywhere')} puts it there")

    def _remedy(self, option: str) -> str:
        return f"`distillhash dedup SOURCE --undo --trash {self.path}{option}`"


@contextlib.contextmanager
def _opened(
    trash: Path, root: Path | None, outcome: Outcome, *, write: bool, anywhere: bool = False
) -> Iterator[_Trash]:
    """The trash, for this process alone. No part of its path below the collection is a link, nor are the folder itself and the journal."""
    if os.open not in os.supports_dir_fd:  # Windows
        raise DistillHashError("this system has no folder descriptors to move files safely by; use the list of --csv")
    with contextlib.ExitStack() as stack:
        base, parts = _split(trash, root)
        try:
            if write:
                Path(base).mkdir(parents=True, exist_ok=True)
            folder = stack.enter_context(open_folder(base, parts, create=write))
            journal = stack.enter_context(contextlib.closing(Journal(folder, write=write)))
        except FileNotFoundError as error:
            raise DataError(_no_journal(trash, root)) from error
        except BlockingIOError as error:
            text = f"another process is moving files into or out of {trash}; wait for it to end"
            raise DistillHashError(text) from error
        except OSError as error:
            reason = error.strerror
            if error.errno in (errno.ENOTDIR, errno.ELOOP):
                reason = "it, a folder above it or its journal is a link, or no folder"
            raise DistillHashError(f"the trash {trash} cannot be used ({reason}); give --trash DIR") from error
        if journal.unlocked:
            reason = journal.unlocked
            outcome.notes.append(f"{trash} cannot be locked ({reason}); let no other process use it meanwhile")
        asked = None if root is None else os.path.realpath(root)
        yield _Trash(trash, folder, journal, outcome, asked, anywhere, os.path.realpath(trash))


def _no_journal(trash: Path, root: Path | None) -> str:
    text = f"there is no journal of moved files in {trash}; give the trash folder of an earlier --apply"
    for folder in () if root is None else Path(os.path.realpath(root)).parents:
        if (folder / FOLDER_NAME / JOURNAL).is_file():
            text += f", or undo that of the folder above: `distillhash dedup {folder} --undo`"
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


def _names(folder: int, pattern: str) -> list[str]:
    """The names in a folder that match."""
    handle = os.open(".", os.O_RDONLY, dir_fd=folder)
    try:
        return [name for name in os.listdir(handle) if re.fullmatch(pattern, name)]
    finally:
        os.close(handle)


def _new_batch(folder: int) -> str:
    """A folder in the trash that nothing is in."""
    number = 1 + max(map(int, _names(folder, _BATCH)), default=0)
    while True:
        with contextlib.suppress(FileExistsError):
            os.mkdir(f"{number:04}", dir_fd=folder)
            sync_folder(".", inside=folder)
            return f"{number:04}"
        number += 1


def _trash_name(number: int, name: str) -> str:
    """A name that every file system takes: short, ASCII, and unlike any other of the batch; it still tells what the file was."""
    return f"{number:06}-{re.sub('[^A-Za-z0-9.-]+', '_', name)[-48:]}".rstrip(".")


def _part_name(entry: Entry) -> str:
    """The name of a copy on its way back, beside its place."""
    return f".distillhash-{digest(f'{entry.trash}/{entry.digest}'.encode()).hex()[:16]}.part"


def _remove_part(part: Place) -> None:
    """Remove a partial copy that a kill left."""
    with contextlib.suppress(OSError):
        if stat.S_ISREG(part.status().st_mode):
            part.remove()


def _old_roots(known: str, collection: str) -> list[str]:
    """Where the collection may have been when ``known`` was a file or folder in it, by what of its path is found there now."""
    parts = os.path.normpath(known).split("/")
    return ["/".join(parts[:k]) for k in range(1, len(parts)) if _holds(collection, "/".join(parts[k:]))]


def _holds(collection: str, path: str) -> bool:
    return bool(path) and not os.path.isabs(path) and os.path.exists(f"{collection}/{path}")


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


def _reason(error: OSError | ValueError) -> str:
    return (
        str(error)
        if isinstance(error, _Refused)
        else f"it could not be moved: {getattr(error, 'strerror', None) or error}"
    )
