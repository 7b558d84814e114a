"""The pictures of items: where they are found, and small copies of them.

An item's picture is found through what the index holds, never through what a request says: the file that was indexed, the row of the table
it came from, or an upload kept beside the index. A file is shown only while its content is what was indexed.
"""

import contextlib
import io
import os
import re
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from distillhash.errors import DataError, DistillHashError
from distillhash.files import write_atomic
from distillhash.index import Item
from distillhash.search import is_row
from distillhash.sources import BadItemError, ImageSource, decode_image, digest, encode_thumbnail, open_source
from distillhash.sources.decode import image_format, image_size

UPLOAD_PREFIX = "upload:"
_SIDE = 400  # pixels of a thumbnail; rows of the page are about 200 high, and screens have two pixels a point
_MEMORY = 64 * 2**20  # bytes of thumbnails kept
_SHOWN_AS_THEY_ARE = {format: f"image/{format.lower()}" for format in ("JPEG", "PNG", "WEBP", "GIF", "AVIF")}
Picture = tuple[bytes, str]  # a file that browsers show, and its media type
_HEADER = 1 << 17  # bytes of a file that hold its size


class NoPictureError(DataError):
    """An item has no picture, or it is not there any more."""


class Pictures:
    """Pictures of items, thumbnails of the latest kept in memory; safe to use from several threads."""

    def __init__(self, folder: Path | None, *, max_pixels: int) -> None:
        """Uploads are kept in ``folder``, the index's; None keeps none. Pictures above ``max_pixels`` are not decoded."""
        self._uploads = None if folder is None else folder / "uploads"
        self._max_pixels = max_pixels
        self._thumbnails: OrderedDict[bytes, Picture] = OrderedDict()
        self._held = 0
        self._sources: dict[str, tuple[ImageSource, dict[str, int]] | None] = {}
        self._lock = threading.Lock()

    def original(self, item: Item) -> Picture:
        """The picture at its full size: the file itself where browsers know its format, else a PNG of it."""
        content = self._read(item)
        try:
            media_type = _SHOWN_AS_THEY_ARE.get(image_format(content)) if isinstance(content, bytes) else None
            if isinstance(content, bytes) and media_type is not None:
                return content, media_type
            pixels = decode_image(content, max_pixels=self._max_pixels)
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
        content = self._read(item)
        try:
            picture = encode_thumbnail(content, _SIDE, max_pixels=self._max_pixels)
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
            with path.open("rb") as file, contextlib.suppress(BadItemError):
                return image_size(file.read(_HEADER))
            return image_size(path.read_bytes())  # some formats keep their header at the end
        except (ValueError, OSError):  # no picture, not an image, a path that cannot be one
            return None

    def keep_upload(self, content: bytes) -> str:
        """Store an uploaded file beside the index; returns the item's key."""
        key = UPLOAD_PREFIX + digest(content).hex()
        if self._uploads is not None:
            try:
                write_atomic(self._uploads / key.removeprefix(UPLOAD_PREFIX), content)
            except OSError as error:
                text = f"the upload cannot be kept ({error.strerror}); check the index folder"
                raise DistillHashError(text) from error
        return key

    def forget(self, item: Item) -> None:
        """Delete what was kept of an item that is removed; files the user has are never touched."""
        if self._uploads is not None and item.key is not None and item.key.startswith(UPLOAD_PREFIX):
            (self._uploads / item.key.removeprefix(UPLOAD_PREFIX)).unlink(missing_ok=True)

    def _file(self, item: Item) -> Path | None:
        """The file behind an item, if it is one."""
        if item.key is None:
            raise NoPictureError(f"item {item.id} was indexed without a picture")
        if self._uploads is not None and (upload := re.fullmatch(f"{UPLOAD_PREFIX}([0-9a-f]{{32}})", item.key)):
            return self._uploads / upload[1]
        is_file = os.path.isabs(item.key) and not is_row(item)  # noqa: PTH117  # Path() of any text may raise
        return Path(item.key) if is_file else None

    def _read(self, item: Item) -> bytes | NDArray[np.uint8]:
        path = self._file(item)
        content: bytes | NDArray[np.uint8]
        if path is None:
            content = self._row(item)
        else:
            try:
                content = path.read_bytes()
            except (OSError, ValueError) as error:
                raise NoPictureError(f"the file of item {item.id} cannot be read any more") from error
        if item.digest is None or digest(content) == item.digest:
            return content
        raise NoPictureError(f"the file of item {item.id} changed since it was indexed; run `distillhash index` again")

    def _row(self, item: Item) -> bytes | NDArray[np.uint8]:
        """The item's row of the source that was indexed."""
        metadata: dict[str, Any] = item.metadata or {}
        name, key = metadata.get("source"), metadata.get("key")
        if not isinstance(name, str) or not isinstance(key, str):
            raise NoPictureError(f"item {item.id} was indexed without a picture")
        place = name.partition("#")[0]
        with self._lock:
            if place not in self._sources:
                self._sources[place] = None
                with contextlib.suppress(DistillHashError):
                    source = open_source(place)
                    if isinstance(source, ImageSource):
                        self._sources[place] = source, {key: row for row, key in enumerate(source.keys)}
            opened = self._sources[place]
        if opened is None or key not in opened[1]:
            raise NoPictureError(f"the source of item {item.id} is not where it was indexed from")
        try:
            return opened[0].read(opened[1][key])
        except BadItemError as error:
            raise NoPictureError(f"the picture of item {item.id} cannot be read any more: {error}") from error


def name_of(item: Item) -> str:
    """What people call an item, without where it lies: its key within its source."""
    metadata = item.metadata or {}
    for name in (metadata.get("name"), metadata.get("key")):
        if isinstance(name, str) and name and not os.path.isabs(name):  # noqa: PTH117
            return name
    return os.path.basename(item.key) if item.key else f"item {item.id}"  # noqa: PTH119
