"""The pictures of items: where they are found, and small copies of them.

An item's picture is found through what the index holds, never through what a request says: the file that was indexed, the row of the table
it came from, or an upload kept beside the index. The index may be somebody else's: only regular files are read, up to a size, and shown
only while their content has the digest that the index holds. A source is opened only where that reads local data; nothing is fetched.
"""

import contextlib
import errno
import glob
import io
import logging
import os
import re
import threading
from collections import OrderedDict
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from distillhash.errors import DataError, DistillHashError
from distillhash.files import open_regular, read_file, write_atomic
from distillhash.index import Item
from distillhash.output import escaped
from distillhash.search import is_row
from distillhash.sources import BadItemError, ImageSource, Source, decode_image, digest, encode_thumbnail, open_source
from distillhash.sources.cifar10 import open_cifar10
from distillhash.sources.decode import image_format, image_size
from distillhash.sources.vectors import open_array

_UPLOAD = re.compile("upload:([0-9a-f]{32})")  # the key of an upload: the digest of its content
_MOST_SOURCES = 8  # open at one time
_MOST_ENTRIES = 10_000  # of a folder of tables
_MOST_ROWS = 10_000_000  # of a source; its keys are kept in a dictionary, about 100 bytes each
_SIDE = 400  # pixels of a thumbnail; rows of the page are about 200 high, and screens have two pixels a point
_MEMORY = 64 * 2**20  # bytes of thumbnails kept
_SHOWN_AS_THEY_ARE = {format: f"image/{format.lower()}" for format in ("JPEG", "PNG", "WEBP", "GIF", "AVIF")}
Picture = tuple[bytes, str]  # a file that browsers show, and its media type
_Rows = tuple[ImageSource | None, dict[str, int]]  # a source of images, and the row of each key
_HEADER = 1 << 17  # bytes of a file that hold its size

log = logging.getLogger("distillhash.serve")


class NoPictureError(DataError):
    """An item has no picture, or it is not there any more."""


class Pictures:
    """Pictures of items, thumbnails of the latest kept in memory; safe to use from several threads."""

    def __init__(self, folder: Path | None, *, max_pixels: int) -> None:
        """Uploads are kept in ``folder``, the index's; None keeps none. Pictures above ``max_pixels`` are not decoded."""
        self._uploads = None if folder is None else folder / "uploads"
        self.max_pixels = max_pixels
        self._thumbnails: OrderedDict[bytes, Picture] = OrderedDict()
        self._held = 0
        self._sources: OrderedDict[str, _Rows] = OrderedDict()
        self._lock, self._opening = threading.Lock(), threading.Lock()

    def original(self, item: Item) -> Picture:
        """The picture at its full size: the file itself where browsers know its format, else a PNG of it."""
        content = self.read(item)
        try:
            media_type = _SHOWN_AS_THEY_ARE.get(image_format(content)) if isinstance(content, bytes) else None
            if isinstance(content, bytes) and media_type is not None:
                return content, media_type
            pixels = decode_image(content, max_pixels=self.max_pixels)
        except BadItemError as error:
            raise NoPictureError(f"the picture of item {item.id} cannot be decoded: {error}") from error
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, "PNG", compress_level=3)
        return stream.getvalue(), "image/png"

    def thumbnail(self, item: Item) -> Picture:
        """The picture, small."""
        key = f"{item.id}:".encode() + (item.digest or b"")
        with self._lock:
            if key in self._thumbnails:
                self._thumbnails.move_to_end(key)
                return self._thumbnails[key]
        content = self.read(item)
        try:
            picture = encode_thumbnail(content, _SIDE, max_pixels=self.max_pixels)
        except BadItemError as error:
            raise NoPictureError(f"the picture of item {item.id} cannot be decoded: {error}") from error
        with self._lock:
            if key not in self._thumbnails:
                self._thumbnails[key] = picture
                self._held += len(picture[0])
            while self._held > _MEMORY:
                _, (dropped, _) = self._thumbnails.popitem(last=False)
                self._held -= len(dropped)
        return picture

    def size(self, item: Item) -> tuple[int, int] | None:
        """Width and height as shown, from the header alone; None where there is no picture."""
        try:
            path = self._file(item)
            if path is None:
                return image_size(self._row(item))
            with open_regular(path, follow_links=not self._is_upload(path)) as file, contextlib.suppress(BadItemError):
                return image_size(file.read(_HEADER) or b"")
            return image_size(read_file(path))  # some formats keep their header at the end
        except (ValueError, OSError):  # no picture, not an image, a path that cannot be one
            return None

    def keep_upload(self, content: bytes) -> str:
        """Store an uploaded file beside the index; returns the item's key."""
        name = digest(content).hex()
        if self._uploads is not None:
            try:
                if self._uploads.is_symlink():
                    raise OSError(errno.ELOOP, "its folder 'uploads' is a link")
                write_atomic(self._uploads / name, content)
            except OSError as error:
                text = f"the upload cannot be kept ({error.strerror}); check the index folder"
                raise DistillHashError(text) from error
        return f"upload:{name}"

    def forget(self, item: Item) -> None:
        """Delete what :meth:`keep_upload` stored of an item that is removed; no other file is ever touched."""
        upload = self._upload(item)
        with contextlib.suppress(OSError):  # it is not there, or not a file of ours
            if upload is not None and digest(read_file(upload, follow_links=False)) == item.digest:
                upload.unlink()

    def _upload(self, item: Item) -> Path | None:
        """Where an upload is kept; None for any other item, whatever its key looks like."""
        match = _UPLOAD.fullmatch(item.key or "")
        if match is None or item.digest is None or item.digest.hex() != match[1]:
            return None
        if self._uploads is None or self._uploads.is_symlink():
            return None
        return self._uploads / match[1]

    def _is_upload(self, path: Path) -> bool:
        return path.parent == self._uploads

    def _file(self, item: Item) -> Path | None:
        """The file behind an item, if it is one."""
        if item.key is None or item.digest is None:
            raise NoPictureError(f"item {item.id} was indexed without a picture")
        if (upload := self._upload(item)) is not None:
            return upload
        is_file = os.path.isabs(item.key) and not is_row(item)  # noqa: PTH117  # Path() of any text may raise
        return Path(item.key) if is_file else None

    def read(self, item: Item) -> bytes | NDArray[np.uint8]:
        """The content of an item as it was indexed; a :class:`NoPictureError` where it is gone or has changed."""
        path = self._file(item)
        content: bytes | NDArray[np.uint8]
        if path is None:
            content = self._row(item)
        else:
            try:
                content = read_file(path, follow_links=not self._is_upload(path))
            except (OSError, ValueError) as error:
                raise NoPictureError(f"the file of item {item.id} cannot be read any more") from error
        if digest(content) == item.digest:
            return content
        raise NoPictureError(f"the file of item {item.id} changed since it was indexed; run `distillhash index` again")

    def _row(self, item: Item) -> bytes | NDArray[np.uint8]:
        """The item's row of the source that was indexed."""
        metadata: dict[str, Any] = item.metadata or {}
        name, key = metadata.get("source"), metadata.get("key")
        if not isinstance(name, str) or not isinstance(key, str):
            raise NoPictureError(f"item {item.id} was indexed without a picture")
        with self._opening:
            place = name.partition("#")[0]
            if place not in self._sources:
                self._sources[place] = _open_rows(place)
            self._sources.move_to_end(place)
            if len(self._sources) > _MOST_SOURCES:
                self._sources.popitem(last=False)
            source, rows = self._sources[place]
        if source is None or key not in rows:
            raise NoPictureError(f"the source of item {item.id} is not where it was indexed from")
        try:
            return source.read(rows[key])
        except Exception as error:  # a damaged table raises anything
            raise NoPictureError(f"the picture of item {item.id} cannot be read any more: {error}") from error


def _open_rows(place: str) -> _Rows:
    """The source of an item, where it is one whose opening reads local data of a known kind, and little of it, and is still there."""
    source: Source | None = None
    try:
        path = Path(place).expanduser()
        if place == "digits:":
            source = open_source(place)
        elif place.startswith("cifar10:"):
            source = open_cifar10(Path(place.partition(":")[2]).expanduser(), place, may_download=False)
        elif path.suffix.lower() == ".npy" and path.is_file():
            array = np.load(path, mmap_mode="r", allow_pickle=False)
            source = open_array(array, place) if array.ndim == 4 else None
        elif _is_in_tars(place) or _holds_images(_tables(path)):
            source = open_source(place)
    except Exception as error:  # whatever a damaged file does to those who read it, it is no more than a picture less
        log.warning("pictures of %s are not shown: %s", escaped(place), escaped(str(error)))
    if not isinstance(source, ImageSource) or len(source) > _MOST_ROWS:
        return None, {}
    return source, {key: row for row, key in enumerate(source.keys)}


def _is_in_tars(place: str) -> bool:
    """Whether a source is one tar file, or some of one folder; a pattern of folders could look through a whole disk."""
    return place.lower().endswith(".tar") and not glob.has_magic(os.path.dirname(place))  # noqa: PTH120  # any text


def _tables(path: Path) -> list[Path]:
    """The table at a path, or those in a folder; none where one is no regular file. No more than some names are looked at."""
    if not path.is_dir():
        return [path] if path.suffix.lower() == ".parquet" and path.is_file() else []
    entries = list(islice(path.rglob("*"), _MOST_ENTRIES + 1))
    named = [entry for entry in entries if entry.suffix.lower() == ".parquet"]
    tables = [table for table in named if table.is_symlink() or not table.is_dir()]
    return tables if len(entries) <= _MOST_ENTRIES and all(table.is_file() for table in tables) else []


def _holds_images(tables: list[Path]) -> bool:
    """Whether a column could hold images; a table of vectors would be read whole."""
    import pyarrow.parquet as pq
    from pyarrow import types

    kinds = (types.is_struct, types.is_binary, types.is_large_binary)
    return bool(tables) and any(is_kind(field.type) for field in pq.read_schema(tables[0]) for is_kind in kinds)


def name_of(item: Item) -> str:
    """What people call an item, without where it lies: its key within its source."""
    metadata = item.metadata or {}
    for name in (metadata.get("name"), metadata.get("key")):
        if isinstance(name, str) and name and not os.path.isabs(name):  # noqa: PTH117
            return name
    return os.path.basename(item.key) if item.key else f"item {item.id}"  # noqa: PTH119
