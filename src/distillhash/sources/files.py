"""Images that are files: a folder, a list file, a sequence of paths."""

import errno
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillhash.errors import DataError, ParameterError, SkippedItemsWarning
from distillhash.files import read_file
from distillhash.sources.base import BadItemError, ImageSource, class_labels, printable, unique_keys

_SUFFIXES = ".jpg .jpeg .jpe .jfif .png .apng .webp .gif .bmp .dib .tif .tiff .ppm .pgm .pbm .pnm .avif .heic .heif"
IMAGE_SUFFIXES = frozenset(_SUFFIXES.split())  # any case counts; HEIC is here so that such photos are reported
_SPLIT_FOLDERS = frozenset({"train", "test", "val", "valid", "validation"})
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
        try:
            data = read_file(self.path(row), limit=self.max_file_size)
        except OSError as error:
            remedy = "; raise it with --max-file-size" if error.errno == errno.EFBIG else ""
            raise BadItemError(f"the file cannot be read: {error.strerror or error}{remedy}") from error
        if not data:
            raise BadItemError("the file is empty")
        return data


def open_folder(folder: Path, name: str) -> FileImages:
    """Every image under ``folder``, sorted by relative POSIX path.

    Files with an image suffix count, in sub-folders too; hidden ones do not. Links are followed, except back into a folder being listed.
    When every image lies in a sub-folder, the first-level names (sorted) are its classes. When those names are only ``train`` and
    ``test`` or ``val``, they are the named splits instead, and the level below gives the classes.
    """
    paths = find_images(folder)
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

    Blank lines are skipped. A path listed twice stays two items, the second under the key ``path#2``.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig", errors="surrogateescape").split("\n")  # "\r\n" is read as "\n"
    except OSError as error:
        raise DataError(f"{name}: the list file {path} cannot be read ({error.strerror})") from error
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
                    f"{name}: line {number} of {path} has the label {label!r}; write an integer after the tab on every line, or on none"
                ) from error
    probed = paths[:_PROBED]
    if not any(_exists(path.parent / probe) for probe in probed):
        raise DataError(
            f"{name}: nothing usable, none of the first {len(probed)} paths in {path} exists (the first is {probed[0]!r}); "
            f"write paths relative to {path.parent}, or absolute ones"
        )
    return FileImages(name, path.parent, paths, labels=labels)


def open_paths(paths: Sequence[Any], name: str) -> FileImages:
    """Image files given one by one, relative to the working directory or absolute; keys are the paths as given."""
    if not paths:
        raise DataError(f"{name}: nothing usable, the list of paths is empty")
    wrong = [item for item in paths if not isinstance(item, str | os.PathLike)]
    if wrong:
        raise ParameterError(f"a list holds paths, got {type(wrong[0]).__name__}; pass embeddings as an array (n, d)")
    return FileImages(name, Path.cwd(), [os.fsdecode(item) for item in paths])


def find_images(folder: Path) -> list[str]:
    """Relative POSIX paths of the candidate images under ``folder``, sorted; see :func:`open_folder`.

    A sub-folder that cannot be listed is left out with a :class:`SkippedItemsWarning`; for ``folder`` itself it is a :class:`DataError`.
    """
    found: list[str] = []
    pending: list[tuple[Path, str, tuple[tuple[int, int], ...]]] = [(folder, "", ())]
    while pending:
        current, prefix, ancestors = pending.pop()
        try:
            status = current.stat()
            here = (status.st_dev, status.st_ino)
            if here in ancestors:  # a link back up: a loop
                continue
            with os.scandir(current) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if _is_folder(entry):
                        pending.append((Path(entry.path), f"{prefix}{entry.name}/", (*ancestors, here)))
                    elif os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES:  # noqa: PTH122  # a Path per file is 4 times slower
                        found.append(prefix + entry.name)
        except OSError as error:
            if not prefix:
                raise DataError(
                    f"the folder {folder} cannot be listed ({error.strerror}); check its permissions"
                ) from error
            message = f"the folder {current} cannot be listed ({error.strerror}); its images are left out"
            warnings.warn(message, SkippedItemsWarning, stacklevel=2)
    found.sort()
    return found


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that points at itself; read() reports it if it is named like an image
        return False


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a line too long or too odd to be a path
        return False


def _folder_names(paths: Sequence[str], level: int) -> list[str] | None:
    """The folder of each path at ``level``; None when some image lies in no folder there."""
    parts = [path.split("/", level + 1) for path in paths]
    return None if any(len(split) < level + 2 for split in parts) else [printable(split[level]) for split in parts]
