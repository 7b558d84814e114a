"""Encoded images of every awkward kind, made on the spot; shared by the tests of every package that reads images."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def make_pixels(width: int = 37, height: int = 23, seed: int = 0) -> NDArray[np.uint8]:
    """Smooth random RGB pixels ``(height, width, 3)``, no two corners alike, so that a turn or a swap shows."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8))
    return np.array(small.resize((width, height), Image.Resampling.BICUBIC))


def encode(image: Image.Image | NDArray[Any], suffix: str, **options: Any) -> bytes:
    """``image`` as Pillow writes it in the format ``suffix`` (``PNG``, ``JPEG``, ``TIFF``, ...)."""
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    stream = io.BytesIO()
    image.save(stream, suffix, **options)
    return stream.getvalue()


def make_png(width: int = 37, height: int = 23, seed: int = 0) -> bytes:
    """An RGB PNG of :func:`make_pixels`: decodes to exactly those."""
    return encode(make_pixels(width, height, seed), "PNG")


def make_jpeg(width: int = 37, height: int = 23, seed: int = 0, quality: int = 95) -> bytes:
    """An RGB JPEG of :func:`make_pixels`."""
    return encode(make_pixels(width, height, seed), "JPEG", quality=quality)


def make_rotated(orientation: int, suffix: str = "JPEG", width: int = 40, height: int = 24) -> bytes:
    """:func:`make_pixels` stored as they are with an EXIF orientation tag of 1 to 8."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode(make_pixels(width, height), suffix, exif=exif)


def make_png16(values: NDArray[np.uint16]) -> bytes:
    """A 16-bit grey PNG of ``values`` ``(h, w)``."""
    return encode(Image.fromarray(values), "PNG")


def make_cmyk(seed: int = 0) -> bytes:
    """A CMYK JPEG."""
    return encode(Image.fromarray(make_pixels(seed=seed)).convert("CMYK"), "JPEG", quality=95)


def make_transparent_palette() -> bytes:
    """A 2x1 palette PNG: pixel 0 is red, pixel 1 is blue but fully transparent."""
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    return encode(image, "PNG", transparency=1)


def make_bomb(width: int = 25_000, height: int = 20_000) -> bytes:
    """A PNG of a few bytes whose header announces ``width`` x ``height`` pixels."""
    return _png(
        [
            (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
            (b"IDAT", zlib.compress(b"\0" * 64)),
            (b"IEND", b""),
        ]
    )


def make_truncated(seed: int = 0) -> bytes:
    """The beginning of a JPEG, as a copy leaves it that was interrupted before the pixels."""
    data = make_jpeg(200, 150, seed)
    return data[: data.index(b"\xff\xda") + 20]


def make_cut(share: float = 0.5, seed: int = 0) -> bytes:
    """The first part of a JPEG of 200 x 150 pixels, as an interrupted copy leaves it."""
    data = make_jpeg(200, 150, seed)
    return data[: round(share * len(data))]


def make_gif() -> bytes:
    """A GIF of two frames, red then blue, 5x3 pixels."""
    frames = [Image.new("RGB", (5, 3), color) for color in ("red", "blue")]
    return encode(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=100)


def _png(chunks: list[tuple[bytes, bytes]]) -> bytes:
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body
