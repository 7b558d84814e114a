"""Images in tar files, in the WebDataset layout: the files of one key lie beside each other, an image and perhaps its ``.cls``.

Nothing is unpacked. Opening reads the headers once and notes where every image lies; an image is read by seeking there. A tar file may be
somebody else's: a header says what is read, and a name never becomes a path.
"""

import glob
import logging
import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from distillhash.errors import DataError, ParameterError
from distillhash.files import open_regular
from distillhash.sources.base import BadItemError, ImageSource, class_labels, unique_keys
from distillhash.sources.files import IMAGE_SUFFIXES

_logger = logging.getLogger(__name__)
_BLOCK = 512
_MOST_TARS = 100_000  # files that a pattern stands for
_LONGEST_HEADER = 1 << 20  # bytes of a long name, or of the extended header of a member
_LONGEST_CLASS = 256  # bytes of a .cls file
_SPARSE = "it is stored as a sparse file, which is not read; pack it without --sparse"
# Types of members, as POSIX (pax) and GNU tar number them; whatever else there is is a file.
_LONG_NAME, _LONG_LINK, _SPARSE_FILE, _EXTENDED, _GLOBAL, _FOLDER = b"L", b"K", b"S", (b"x", b"X"), b"g", b"5"
_NO_CONTENT = {b"1": "hard link", b"2": "symbolic link", b"3": "device", b"4": "device", b"6": "pipe"}
_RANGE = re.compile(r"\{(\d{1,9})\.\.(\d{1,9})\}")
_RECORD = re.compile(rb"([0-9]{1,7}) ")  # the length of one in an extended header
_MAGIC = re.compile(r"[*?\[{]")


def is_tar_pattern(place: str) -> bool:
    """Whether a SOURCE stands for several tar files: it has ``*``, ``?``, ``[...]`` or ``{000..009}``, and ends in ``.tar``."""
    return place.lower().endswith(".tar") and _MAGIC.search(place) is not None


def open_tar_pattern(pattern: str, name: str) -> "TarImages":
    """The tar files that a pattern stands for as one source: ranges in their order, each expanded in alphabetical order.

    Keys begin with the name of the tar file, relative to the folder that all of them lie in. The source is named by the real path of that
    folder, so that it means the same wherever one stands. A :class:`DataError` where there is none, or where a file of a range is missing.
    """
    varies = _MAGIC.search(pattern)
    assert varies is not None
    n_fixed = pattern[: varies.start()].rfind("/") + 1
    root = os.path.realpath(os.path.expanduser(pattern[:n_fixed] or "."))  # noqa: PTH111
    whole = f"{root.rstrip('/')}/{pattern[n_fixed:]}"
    files = [path for one in _ranges(glob.escape(root) + whole[len(root) :], name) for path in _matches(one, name)]
    if len(files) > _MOST_TARS:
        raise ParameterError(f"{name}: the pattern stands for more than {_MOST_TARS:,} files; take fewer, larger ones")
    return open_tars(list(dict.fromkeys(files)), whole + name[len(pattern) :], root=root)


def _ranges(pattern: str, name: str) -> Iterator[str]:
    """A pattern with each combination of the numbers that its ranges ``{first..last}`` stand for."""
    parts = _RANGE.split(pattern)  # text, first, last, text, first, last, text ...
    texts, bounds = parts[::3], list(zip(parts[1::3], parts[2::3], strict=True))
    if math.prod(abs(int(last) - int(first)) + 1 for first, last in bounds) > _MOST_TARS:
        raise ParameterError(f"{name}: the ranges stand for more than {_MOST_TARS:,} files; give a * instead")
    for numbers in product(*(_numbers(first, last) for first, last in bounds)):
        yield texts[0] + "".join(number + text for number, text in zip(numbers, texts[1:], strict=True))


def _matches(pattern: str, name: str) -> list[Path]:
    """The files that a pattern without ranges stands for, at least one."""
    found = sorted(glob.glob(pattern))  # noqa: PTH207  # a Path takes no absolute pattern
    if not found:
        raise DataError(f"{name}: there is no {pattern}; check the pattern")
    return list(map(Path, found))


def _numbers(first: str, last: str) -> Iterator[str]:
    """The numbers of ``{first..last}``, as wide as its bounds where one starts with 0."""
    width = max(len(first), len(last)) if "0" in (first[0], last[0]) else 1
    a, b = int(first), int(last)
    return (f"{number:0{width}}" for number in range(a, b + 1 if b >= a else b - 1, 1 if b >= a else -1))


def open_tars(files: Sequence[Path], name: str, *, root: str | None = None) -> "TarImages":
    """The images in tar files, in the order of ``files`` and of the archives.

    Every file with an image suffix counts; hidden ones do not. Its key is its name in the archive, after the name of the tar file relative
    to ``root`` where one is given. The labels are what the ``.cls`` files say: integers or words, one for each image.
    """
    members: list[_Image] = []
    tars: list[int] = []
    for number, path in enumerate(files):
        prefix = "" if root is None else f"{Path(os.path.relpath(path, root)).as_posix()}/"
        found = _images(path, prefix, name)
        members += found
        tars += [number] * len(found)
    if not members:
        what = f"the tar file {files[0]} holds" if len(files) == 1 else f"the {len(files)} tar files hold"
        raise DataError(f"{name}: nothing usable, {what} no images (files with a suffix such as .jpg, .png or .webp)")
    labels, label_names = None, None
    classes = [member.label for member in members if member.label is not None]
    if len(classes) == len(members):
        whole = all(re.fullmatch(r"-?\d{1,18}", label) for label in classes)
        labels, label_names = class_labels(
            np.array([int(c) for c in classes] if whole else classes), len(members), name
        )
    elif classes:
        _logger.warning("%s: %d of %d images have a .cls; the labels are ignored", name, len(classes), len(members))
    return TarImages(name, files, members, np.array(tars, np.int32), labels=labels, label_names=label_names)


@dataclass
class _Image:
    """One image, and where it lies."""

    key: str
    start: int
    size: int
    flaw: str | None  # why it cannot be read
    label: str | None = None


class TarImages(ImageSource):
    """Images in tar files, read where their headers say; holds a key, a place and a size for each."""

    def __init__(
        self, name: str, files: Sequence[Path], members: Sequence[_Image], tars: NDArray[np.int32], **labelling: object
    ) -> None:
        super().__init__(name, unique_keys(member.key for member in members), **labelling)  # type: ignore[arg-type]
        self._files, self._tars = [path.absolute() for path in files], tars
        self._places = np.array([(member.start, member.size) for member in members], np.int64)
        self._flaws = {row: member.flaw for row, member in enumerate(members) if member.flaw is not None}
        self._rows = np.arange(len(members))

    def _take(self, rows: NDArray[np.intp]) -> None:
        self._rows = self._rows[rows]  # the rest is shared

    def read(self, row: int) -> bytes:
        """The encoded image of item ``row``."""
        place = int(self._rows[row])
        start, size = self._places[place].tolist()
        if place in self._flaws:
            raise BadItemError(self._flaws[place])
        if size > self.max_file_size:
            limit = f"over the limit of {self.max_file_size:,}; raise it with --max-file-size"
            raise BadItemError(f"the image has {size:,} bytes, {limit}")
        path = self._files[self._tars[place]]
        try:
            with open_regular(path) as file:
                file.seek(start)
                data = file.read(size)
        except OSError as error:
            raise BadItemError(f"{path.name} cannot be read: {error.strerror or error}") from error
        if len(data) < size:
            raise BadItemError(_cut(path))
        if not data:
            raise BadItemError("the file is empty")
        return data


def _cut(path: Path) -> str:
    return f"{path.name} ends within it; copy the tar file again"


def _images(path: Path, prefix: str, name: str) -> list[_Image]:
    """The images of one tar file, and one entry that cannot be read for what is damaged."""
    images: list[tuple[str, _Image]] = []  # with their WebDataset keys
    labels: dict[str, str] = {}
    try:
        with open_regular(path) as file:
            end = file.seek(0, os.SEEK_END)
            walk = _Members(file, end)
            for member in walk:
                own, _, suffix = member.name.rpartition("/")[2].partition(".")
                sample = f"{member.name.rpartition('/')[0]}/{own}"
                whole = member.start + member.size <= end
                if suffix == "cls" and member.flaw is None and whole and member.size <= _LONGEST_CLASS:
                    file.seek(member.start)
                    labels[sample] = file.read(member.size).decode("utf-8", "replace").strip()
                elif f".{suffix.rpartition('.')[2].lower()}" in IMAGE_SUFFIXES:
                    flaw = member.flaw or (None if whole else _cut(path))
                    images.append((sample, _Image(prefix + member.name, member.start, member.size, flaw)))
            if walk.damage is not None:
                images.append(("", _Image(f"{prefix or path.name + '/'}(the rest)", 0, 0, walk.damage)))
    except OSError as error:
        raise DataError(f"{name}: the tar file {path} cannot be read ({error.strerror or error})") from error
    if walk.damage is not None and walk.is_first:
        raise DataError(f"{name}: {path} is no tar file ({walk.damage}); {_remedy(path)}")
    for sample, image in images:
        image.label = labels.get(sample)
    return [image for _, image in images]


def _remedy(path: Path) -> str:
    """What to do with a file that starts as no tar file does."""
    with open_regular(path) as file:
        packed = file.read(4).startswith((b"\x1f\x8b", b"BZh", b"\xfd7zX", b"\x28\xb5\x2f\xfd"))
    return "it is compressed, and cannot be read by seeking: unpack it to a plain .tar" if packed else "check the file"


class _Member(NamedTuple):
    """A file of an archive."""

    name: str
    start: int  # of its content
    size: int
    flaw: str | None  # why it cannot be read


@dataclass
class _Members:
    """The files of an archive that are not hidden, from its headers; what comes after a damaged one is not found."""

    file: BinaryIO
    end: int  # its size
    damage: str | None = None
    is_first: bool = True
    _extended: dict[str, str] = field(default_factory=dict)  # of the member to come

    def __iter__(self) -> Iterator[_Member]:
        import tarfile

        position = 0
        while self.is_first or position < self.end:
            self.file.seek(position)
            block = self.file.read(_BLOCK)
            if block == bytes(_BLOCK) and not self.is_first:  # ends an archive
                return
            try:
                info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
                following, member = self._next(info, block, position + _BLOCK)
            except (tarfile.HeaderError, ValueError):
                self.damage = (
                    f"the header at byte {position:,} of the tar file is damaged, and what follows was not read"
                )
                return
            self.is_first, position = False, following
            if position > self.end and (member is None or member.start + member.size > self.end):
                self.damage = "the tar file ends early; copy it again"
            if member is not None and not re.search(r"(^|/)\.(?!\.?/)", member.name):
                yield member

    def _next(self, info: Any, block: bytes, position: int) -> tuple[int, _Member | None]:
        """Where the next header lies, and the file that this one (a ``TarInfo``) is about, if it is about one."""
        size, flaw = info.size, None
        if info.type == _LONG_NAME or info.type in _EXTENDED:
            if size > _LONGEST_HEADER:
                raise ValueError("too long")
            following, data = _after(position, size), self.file.read(size)
            long_name = {"path": data.partition(b"\0")[0].decode("utf-8", "surrogateescape")}
            self._extended |= long_name if info.type == _LONG_NAME else _records(data)
            return following, None
        if info.type in (_LONG_LINK, _GLOBAL):
            return _after(position, size), None
        extended, self._extended = self._extended, {}
        if info.type == _SPARSE_FILE:
            flaw, extends = _SPARSE, block[482]
            while extends:
                more = self.file.read(_BLOCK)
                extends, position = more[504] if len(more) == _BLOCK else 0, position + _BLOCK
        if any(key.startswith("GNU.sparse.") for key in extended):
            flaw = _SPARSE
        if re.fullmatch(r"[0-9]{1,18}", extended.get("size", "")):
            size = int(extended["size"])
        name = extended.get("GNU.sparse.name") or extended.get("path") or info.name
        name = re.sub(r"^(\.?/+)+", "", name)
        if info.type == _FOLDER:
            return position, None
        if info.type in _NO_CONTENT:
            kind = _NO_CONTENT[info.type]
            return position, _Member(name, position, 0, f"it is a {kind} in the tar file, which is not followed")
        return _after(position, size), _Member(name, position, size, flaw)


def _after(position: int, size: int) -> int:
    """The block after ``size`` bytes of content."""
    if size < 0:
        raise ValueError("a negative size")
    return position + -(-size // _BLOCK) * _BLOCK


def _records(data: bytes) -> dict[str, str]:
    """The records ``LENGTH KEY=VALUE`` of an extended header that bear on where a file is and what it is called."""
    found: dict[str, str] = {}
    place = 0
    while match := _RECORD.match(data, place):
        length = int(match[1])
        key, equals, value = data[match.end() : place + length].removesuffix(b"\n").partition(b"=")
        if length <= len(match[0]) or not equals:
            break
        name = key.decode("utf-8", "replace")
        if name in ("path", "size") or name.startswith("GNU.sparse."):
            found[name] = value.decode("utf-8", "surrogateescape")
        place += length
    return found
