"""Known edits of a collection's own images, from which the calibration learns how far copies lie.

Light edits keep the picture as it was, but for a little. Heavy ones are those that people make on purpose, and those of messengers.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageEnhance, ImageFont

from distillhash.sources import MAX_PIXELS, ImageSource, decode_image, digest

QUALITY = 90  # of the JPEG file of an edit
_KEPT_ORIGINALS = 4  # decoded images, of which several edits are read one after the other
LONGEST_SIDE = 1024  # larger originals are reduced first: features need fewer pixels, and edits of many are slow

_ORIENTATION_TAG = 0x0112
_TURNS = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}

Edit = Callable[[Image.Image, np.random.Generator], bytes]


def reencode(image: Image.Image, *, quality: int = QUALITY, exif: Image.Exif | bytes = b"") -> bytes:
    """The image as a JPEG file, ``quality`` 1 to 95."""
    stream = BytesIO()
    image.save(stream, "JPEG", quality=quality, exif=exif)
    return stream.getvalue()


def resize(image: Image.Image, *, scale: float) -> bytes:
    """Both sides times ``scale``."""
    return reencode(image.resize(_scaled(image, scale), Image.Resampling.LANCZOS))


def crop(image: Image.Image, *, keep: float, x: float = 0.5, y: float = 0.5) -> bytes:
    """A part whose sides are ``keep`` of the image's; ``x`` and ``y`` in [0, 1] say where it lies."""
    width, height = _scaled(image, keep)
    left, top = round(x * (image.width - width)), round(y * (image.height - height))
    return reencode(image.crop((left, top, left + width, top + height)))


def brighten(image: Image.Image, *, factor: float) -> bytes:
    """Every value times ``factor``, clipped."""
    return reencode(ImageEnhance.Brightness(image).enhance(factor))


def write_text(image: Image.Image, *, height: float, y: float = 0.9, text: str = "holiday 2026") -> bytes:
    """White ``text`` with a dark outline, letters ``height`` of the image's height, at ``y`` in [0, 1] from the top."""
    edited = image.copy()
    size = max(height * image.height, 6.0)
    place = (image.width / 2, y * image.height)
    ImageDraw.Draw(edited).text(
        place, text, fill="white", font=ImageFont.load_default(size), anchor="mm", stroke_width=1, stroke_fill="black"
    )
    return reencode(edited)


def turn_by_exif(image: Image.Image, *, orientation: int) -> bytes:
    """The pixels turned by 90 or 180 degrees, and the EXIF orientation (3, 6 or 8) that turns them back."""
    exif = Image.Exif()
    exif[_ORIENTATION_TAG] = orientation
    return reencode(image.transpose(_TURNS[orientation]), exif=exif)


def mirror(image: Image.Image) -> bytes:
    """Left and right exchanged."""
    return reencode(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT))


def rotate(image: Image.Image, *, angle: float, fill: str = "black") -> bytes:
    """Turned by ``angle`` degrees against the clock; the canvas grows, and its corners get one colour."""
    return reencode(image.rotate(angle, Image.Resampling.BICUBIC, expand=True, fillcolor=fill))


def put_in_frame(image: Image.Image, *, width: float, height: float, y: float = 0.5, fill: str = "black") -> bytes:
    """A screenshot: the image on a larger canvas, whose sides are larger by these shares; ``y`` in [0, 1] from the top."""
    canvas = Image.new("RGB", (round((1 + width) * image.width), round((1 + height) * image.height)), fill)
    canvas.paste(image, ((canvas.width - image.width) // 2, round(y * (canvas.height - image.height))))
    return reencode(canvas)


def put_sticker(image: Image.Image, *, side: float, x: float, y: float, fill: str = "gold") -> bytes:
    """A disc over the image, ``side`` of its shorter side wide, at ``x`` and ``y`` in [0, 1]."""
    edited, size = image.copy(), side * min(image.size)
    left, top = x * (image.width - size), y * (image.height - size)
    ImageDraw.Draw(edited).ellipse((left, top, left + size, top + size), fill=fill, outline="black", width=2)
    return reencode(edited)


def thumbnail(image: Image.Image, *, side: int) -> bytes:
    """The longer side reduced to ``side`` pixels."""
    small = image.copy()
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    return reencode(small)


def shift_colours(image: Image.Image, *, saturation: float, gains: NDArray[np.float64]) -> bytes:
    """Colours times ``saturation`` (0 is grey), then each channel times its gain, clipped."""
    values = np.asarray(ImageEnhance.Color(image).enhance(saturation)) * gains
    return reencode(Image.fromarray(np.clip(values, 0, 255).astype(np.uint8)))


LIGHT: dict[str, Edit] = {
    "re-encoded": lambda image, rng: reencode(image, quality=int(rng.integers(40, 86))),
    "resized": lambda image, rng: resize(image, scale=rng.uniform(0.5, 0.9)),
    "cropped": lambda image, rng: crop(image, keep=rng.uniform(0.9, 0.98), x=rng.uniform(), y=rng.uniform()),
    "brightness": lambda image, rng: brighten(image, factor=float(np.exp(rng.uniform(-0.3, 0.3)))),
    "text": lambda image, rng: write_text(image, height=rng.uniform(0.05, 0.09), y=rng.uniform(0.05, 0.95)),
    "turned by EXIF": lambda image, rng: turn_by_exif(image, orientation=int(rng.choice([3, 6, 8]))),
}
"""Light edits by name; the generator draws how strong each is."""

HEAVY: dict[str, Edit] = {
    "cut to a part": lambda image, rng: crop(image, keep=rng.uniform(0.6, 0.85), x=rng.uniform(), y=rng.uniform()),
    "mirrored": lambda image, rng: mirror(image),  # noqa: ARG005  # nothing to draw
    "rotated": lambda image, rng: rotate(image, angle=float(rng.choice([-1, 1]) * rng.uniform(10, 25))),
    "screenshot": lambda image, rng: put_in_frame(
        image, width=rng.uniform(0, 0.3), height=rng.uniform(0.2, 0.8), y=rng.uniform(0.2, 0.8)
    ),
    "sticker": lambda image, rng: put_sticker(image, side=rng.uniform(0.3, 0.5), x=rng.uniform(), y=rng.uniform()),
    "thumbnail": lambda image, rng: thumbnail(image, side=int(rng.integers(48, 97))),
    "strong JPEG": lambda image, rng: reencode(image, quality=int(rng.integers(8, 20))),
    "colours": lambda image, rng: shift_colours(
        image, saturation=rng.uniform(0, 1.6), gains=np.exp(rng.uniform(-0.3, 0.3, 3))
    ),
}
"""Heavy edits by name; light ones leave the picture whole."""


class EditedImages(ImageSource):
    """Every edit of every image of a source, made when it is read: item ``i * len(edits) + j`` is edit j of image i.

    An edit depends on the seed, its name and the image's content alone, so the feature cache knows it in the next run.
    """

    def __init__(
        self, source: ImageSource, edits: dict[str, Edit], *, seed: int = 0, max_pixels: int | None = None
    ) -> None:
        """Keep references; nothing is read yet."""
        super().__init__(f"edits of {source.name}", [f"{key} ({name})" for key in source.keys for name in edits])
        self._source, self._edits, self._seed = source, list(edits.items()), seed
        self._max_pixels = MAX_PIXELS if max_pixels is None else max_pixels
        self._rows = np.arange(len(self))
        self._original = lru_cache(_KEPT_ORIGINALS)(self._decode)

    def _take(self, rows: NDArray[np.intp]) -> None:
        self._rows = self._rows[rows]

    def read(self, row: int) -> bytes:
        """The edited image as an encoded file."""
        image, number = divmod(int(self._rows[row]), len(self._edits))
        name, edit = self._edits[number]
        original, content = self._original(image)
        return edit(original, np.random.default_rng([self._seed, *name.encode(), content]))

    def _decode(self, image: int) -> tuple[Image.Image, int]:
        """What is edited, and the digest of its file as a number."""
        data = self._source.read(image)
        original = Image.fromarray(decode_image(data, max_pixels=self._max_pixels))
        original.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.BICUBIC, reducing_gap=2.0)
        return original, int.from_bytes(digest(data), "big")


def _scaled(image: Image.Image, scale: float) -> tuple[int, int]:
    return max(1, round(image.width * scale)), max(1, round(image.height * scale))
