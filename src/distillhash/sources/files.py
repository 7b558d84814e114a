"""Images that are files: a folder, a list file, a sequence of paths."""

import codecs
import contextlib
import errno
import os
import re
import stat
import warnings
from collections import Counter, deque
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from distillhash.errors import DataError, ParameterError, SkippedItemsWarning
from distillhash.files import read_file
from distillhash.sources.base import BadItemError, ImageSource, class_labels, printable, unique_keys

_SUFFIXES = ".jpg .jpeg .jpe .jfif .png .apng .webp .gif .bmp .dib .tif .tiff .ppm .pgm .pbm .pnm .avif .heic .heif"
IMAGE_SUFFIXES = frozenset(_SUFFIXES.split())  # any case counts; HEIC is here so that such photos are reported
_SPLIT_FOLDERS = frozenset({"train", "test", "val", "valid", "validation"})
_MAX_TEXT_BYTES = 1 << 30  # of a file that lists images or captions
_PROBED = 100  # entries of a list file looked up on opening, to tell a list of images from any other text


class FileImages(ImageSource):
    """Images read from files when asked for; holds their paths, relative to ``root`` or absolute, and nothing more."""

    def __init__(
        self, name: str, root: Path, paths: Sequence[str], *, keys: Sequence[str] | None = None, **labelling: Any
    ) -> None:
        keys = unique_keys(paths) if keys is None else keys
        super().__init__(name, keys, **labelling)
        self._root, self._own_paths = root.absolute(), None if keys == paths else paths  # one list where they are equal

    def _take(self, rows: NDArray[np.intp]) -> None:
        self._own_paths = None if self._own_paths is None else [self._own_paths[row] for row in rows.tolist()]

    def path(self, row: int) -> str:
        """Absolute path of image ``row``."""
        return str(self._root / (self._own_paths or self.keys)[row])

    def read(self, row: int) -> bytes:
        """The file of image ``row``, whole."""
        return read_image(self.path(row), self.max_file_size)


def read_image(path: str, limit: int) -> bytes:
    """A file of at most ``limit`` bytes, whole; a :class:`BadItemError` where that cannot be."""
    try:
        data = read_file(path, limit=limit)
    except OSError as error:
        remedy = "; raise it with --max-file-size" if error.errno == errno.EFBIG else ""
        raise BadItemError(f"the file cannot be read: {error.strerror or error}{remedy}") from error
    except MemoryError as error:
        raise BadItemError("the file cannot be read: it does not fit into memory") from error
    if not data:
        raise BadItemError("the file is empty")
    return data


def open_folder(folder: Path, paths: Sequence[str], name: str) -> FileImages:
    """The images ``paths`` that :func:`find_images` found in ``folder``, sorted by relative POSIX path.

    Files with an image suffix count, in sub-folders too; hidden ones do not. Each counts once, see :func:`find_files`.
    When every image lies in a sub-folder, the first-level names (sorted) are its classes. When those names are only ``train`` and
    ``test`` or ``val``, they are the named splits instead, and the level below gives the classes.
    """
    if not paths:
        raise DataError(
            f"{name}: nothing usable, the folder {folder} holds no images (files with a suffix such as .jpg, .png, .webp or .tif); "
            "give a folder of images, a list file, or a .parquet table"
        )
    classes, splits = _folder_names(paths, 0), {}
    names = set(classes or ())
    if len(names) > 1 and "train" in names and names <= _SPLIT_FOLDERS:
        splits = {split: np.flatnonzero(np.array(classes) == split) for split in sorted(names)}
        classes = _folder_names(paths, 1)
    labels, label_names = (None, None) if classes is None else class_labels(np.array(classes), len(paths), name)
    return FileImages(name, folder, paths, labels=labels, label_names=label_names, splits=splits)


def open_list(path: Path, name: str) -> FileImages:
    """The images named in a text file: one path a line, relative to the file's folder or absolute, optionally a tab and an integer label.

    Lines end as on any system; the text is UTF-8, or UTF-16 that begins with its mark. Blank lines are skipped. A path listed
    twice stays two items, the second under the key ``path#2``.
    """
    lines = re.split("\r\n|\n|\r", read_text(path, f"{name}: the list file", errors="surrogateescape"))
    entries = [(number, *line.partition("\t")) for number, line in enumerate(lines, 1) if line.strip()]
    if not entries:
        raise DataError(f"{name}: nothing usable, the list file {path} names no images; write one path per line")
    paths = [entry.strip() for _, entry, _, _ in entries]
    labels = None
    if any(tab for _, _, tab, _ in entries):
        labels = np.empty(len(entries), np.int64)
        for row, (number, _, _, label) in enumerate(entries):
            try:
                labels[row] = int(label)
            except (ValueError, OverflowError) as error:
                raise DataError(
                    f"{name}: line {number} of {path} has the label {label[:60]!r}; write an integer after the tab on each line, or on none"
                ) from error
    probed = paths[:_PROBED]
    if not any(path_exists(path.parent / probe) for probe in probed):
        raise DataError(
            f"{name}: nothing usable, none of the first {len(probed)} paths in {path} exists (the first is {probed[0][:200]!r}); "
            f"write paths relative to {path.parent}, or absolute ones"
        )
    return FileImages(name, path.parent, paths, labels=labels)


def read_text(path: Path, what: str, *, errors: str = "strict") -> str:
    """A text file, whole: UTF-8, or UTF-16 that begins with its byte order mark. ``what`` starts the message of a :class:`DataError`."""
    try:
        data = read_file(path, limit=_MAX_TEXT_BYTES)
        if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            return data.decode("utf-16")
        return data.decode("utf-8-sig", errors)
    except OSError as error:
        raise DataError(f"{what} {path} cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{what} {path} is not {error.encoding.upper()}: line {line} holds the byte 0x{data[error.start]:02x}; save it as UTF-8"
        ) from error


def open_paths(paths: Sequence[Any], name: str) -> FileImages:
    """Image files given one by one, relative to the working directory or absolute; keys are the paths as given."""
    if not paths:
        raise DataError(f"{name}: nothing usable, the list of paths is empty")
    wrong = [item for item in paths if not isinstance(item, str | os.PathLike)]
    if wrong:
        raise ParameterError(f"a list holds paths, got {type(wrong[0]).__name__}; pass embeddings as an array (n, d)")
    return FileImages(name, Path.cwd(), [os.fsdecode(item) for item in paths])


def find_images(folder: Path) -> list[str]:
    """Relative POSIX paths of the candidate images under ``folder``, sorted; see :func:`find_files`."""
    return find_files(folder, IMAGE_SUFFIXES)


def find_files(folder: Path, suffixes: Collection[str]) -> list[str]:
    """Relative POSIX paths of the files under ``folder`` with one of the lower-case ``suffixes``, sorted. Hidden names do not count.

    Links are followed. A file with several names (links to it or to its folders, hard links, a folder mounted twice) is listed once,
    whatever order the file system gives: under a name without links if it has one, else through the highest link; of several such
    names the first counts. Links to nothing are listed. A sub-folder that cannot be listed is left out with a
    :class:`SkippedItemsWarning`; for ``folder`` itself it is a :class:`DataError`.
    """
    walk = _Walk(folder, suffixes)
    walk.descend("", os.path.realpath(folder))
    while walk.links:  # those that lie in the folders of this round make the next one
        walk.round += 1
        links, walk.links = sorted(walk.links, key=lambda link: (link[0].count("/"), link)), []
        for name, path in links:
            walk.follow(name, path)
    return walk.names()


class _File(NamedTuple):
    """One way to a file; the first one by these fields counts. Paths are strings: a Path per file takes 4 times as long."""

    n_links: int
    depth: int
    name: str
    real: str
    device: int
    inode: int


class _Walk:
    """The folders and files met so far."""

    def __init__(self, folder: Path, suffixes: Collection[str]) -> None:
        self._folder, self._suffixes = folder, suffixes
        self.round = 0  # links on the way to what is being listed
        self.links: list[tuple[str, str]] = []  # to folders and files, yet to be followed: name and path
        self._listed: set[str] = set()  # real paths of folders
        self._twins: dict[tuple[int, int], str] = {}  # the first real path of each folder
        self._files: list[_File] = []

    def descend(self, prefix: str, real: str) -> None:
        """List the folder at ``real`` and those below it, the higher ones first; the names start with ``prefix``."""
        waiting = deque([(prefix, real)])
        while waiting:
            prefix, real = waiting.popleft()
            try:
                waiting += sorted(self._list(prefix, real))
            except OSError as error:
                if not prefix:
                    raise DataError(
                        f"the folder {self._folder} cannot be listed ({error.strerror}); check its permissions"
                    ) from error
                where = self._folder / prefix
                message = f"the folder {where} cannot be listed ({error.strerror}); its images are left out"
                warnings.warn(message, SkippedItemsWarning, stacklevel=4)

    def _list(self, prefix: str, real: str) -> list[tuple[str, str]]:
        """Note the files and links of one folder; its sub-folders as (prefix, real path)."""
        below: list[tuple[str, str]] = []
        if real in self._listed:
            return below
        status = os.stat(real)  # noqa: PTH116
        twin = self._twins.setdefault((status.st_dev, status.st_ino), real) if status.st_ino else real
        if twin != real and set(os.listdir(twin)) == set(os.listdir(real)):  # noqa: PTH208
            return below  # one folder mounted twice; some file systems give the same inode to unlike folders
        with os.scandir(real) as entries:
            self._listed.add(real)
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                name = prefix + entry.name
                if entry.is_symlink():
                    self.links.append((name, entry.path))
                elif entry.is_dir():
                    below.append((f"{name}/", entry.path))
                elif _suffix(name) in self._suffixes:
                    self._note(name, entry.path, status.st_dev, entry.inode())
        return below

    def _note(self, name: str, real: str, device: int = 0, inode: int = 0) -> None:
        self._files.append(_File(self.round, name.count("/"), name, real, device, inode))

    def follow(self, name: str, path: str) -> None:
        """List what a link leads to, unless it is listed already."""
        wanted = _suffix(name) in self._suffixes
        try:
            real = os.path.realpath(path)
            status = os.stat(real)  # noqa: PTH116
        except OSError:  # it leads nowhere, or to itself, which reading reports
            if wanted:
                self._note(name, path)
            return
        if stat.S_ISDIR(status.st_mode):
            self.descend(f"{name}/", real)
        elif wanted:
            self._note(name, real, status.st_dev, status.st_ino)

    def names(self) -> list[str]:
        """Every file once, sorted. What a folder said of inodes is checked, since some file systems make them up."""
        once: dict[object, str] = {}
        met = Counter((file.device, file.inode) for file in self._files if file.inode)
        for file in sorted(self._files):
            identity: object = file.real
            if met[file.device, file.inode] > 1:
                with contextlib.suppress(OSError):
                    status = os.stat(file.real)  # noqa: PTH116
                    identity = (status.st_dev, status.st_ino) if status.st_nlink > 1 else file.real
            once.setdefault(identity, file.name)
        return sorted(once.values())


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()  # noqa: PTH122


def path_exists(path: Path) -> bool:
    """Whether there is a file, folder or the like."""
    try:
        return path.exists()
    except (OSError, ValueError):  # a line too long or too odd to be a path
        return False


def _folder_names(paths: Sequence[str], level: int) -> list[str] | None:
    """The folder of each path at ``level``; None when some image lies in no folder there."""
    parts = [path.split("/", level + 1) for path in paths]
    return None if any(len(split) < level + 2 for split in parts) else [printable(split[level]) for split in parts]
