"""Known edits of an image: what people and programs do to a picture that stays the same picture.

Calibration applies them to the user's own images, to learn how far a copy lies from its original. Each edit takes upright RGB pixels and
gives an encoded file, so that what is measured has passed through an encoder and the decoder like any file of the collection.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageEnhance, ImageFont

from distillhash.errors import ParameterError
from distillhash.sources import ImageSource, decode_image, digest
from distillhash.sources.base import check_rows

QUALITY = 90
"""JPEG quality of the edited file where the edit is not the encoding itself."""

LONGEST_SIDE = 1024
"""Larger originals are reduced to this before they are edited: features need fewer pixels, and edits of 50 megapixels are slow."""

_ORIENTATION_TAG = 0x0112
_TURNS = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}

Pixels = NDArray[np.uint8]
Edit = Callable[[Image.Image, np.random.Generator], bytes]


def reencode(image: Image.Image, *, quality: int, format: str = "JPEG") -> bytes:
    """The image saved again, ``quality`` 1 to 95."""
    return _encoded(image, quality=quality, format=format)


def resize(image: Image.Image, *, scale: float) -> bytes:
    """Both sides times ``scale``."""
    return _encoded(image.resize(_scaled(image, scale), Image.Resampling.LANCZOS))


def crop(image: Image.Image, *, keep: float, x: float = 0.5, y: float = 0.5) -> bytes:
    """A part whose sides are ``keep`` of the image's; ``x`` and ``y`` in [0, 1] say where it lies."""
    width, height = _scaled(image, keep)
    left, top = round(x * (image.width - width)), round(y * (image.height - height))
    return _encoded(image.crop((left, top, left + width, top + height)))


def brighten(image: Image.Image, *, factor: float) -> bytes:
    """Every value times ``factor``, clipped."""
    return _encoded(ImageEnhance.Brightness(image).enhance(factor))


def write_text(image: Image.Image, *, height: float, y: float = 0.9, text: str = "holiday 2026") -> bytes:
    """White ``text`` with a dark outline, letters ``height`` of the image's height, at ``y`` in [0, 1] from the top."""
    edited = image.copy()
    size = max(height * image.height, 6.0)
    place = (image.width / 2, y * image.height)
    ImageDraw.Draw(edited).text(
        place, text, fill="white", font=ImageFont.load_default(size), anchor="mm", stroke_width=1, stroke_fill="black"
    )
    return _encoded(edited)


def turn_by_exif(image: Image.Image, *, orientation: int) -> bytes:
    """The pixels turned by 90 or 180 degrees, and the EXIF orientation (3, 6 or 8) that turns them back."""
    exif = Image.Exif()
    exif[_ORIENTATION_TAG] = orientation
    return _encoded(image.transpose(_TURNS[orientation]), exif=exif)


def mirror(image: Image.Image) -> bytes:
    """Left and right exchanged."""
    return _encoded(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT))


LIGHT: dict[str, Edit] = {
    "re-encoded": lambda image, rng: reencode(image, quality=int(rng.integers(40, 86))),
    "resized": lambda image, rng: resize(image, scale=float(rng.uniform(0.5, 0.9))),
    "cropped": lambda image, rng: crop(
        image, keep=float(rng.uniform(0.9, 0.98)), x=float(rng.uniform()), y=float(rng.uniform())
    ),
    "brightness": lambda image, rng: brighten(image, factor=float(np.exp(rng.uniform(-0.3, 0.3)))),
    "text": lambda image, rng: write_text(
        image, height=float(rng.uniform(0.05, 0.09)), y=float(rng.uniform(0.05, 0.95))
    ),
    "turned by EXIF": lambda image, rng: turn_by_exif(image, orientation=int(rng.choice([3, 6, 8]))),
}
"""Light edits by name; the generator draws how strong each is."""

MIRRORED: dict[str, Edit] = {"mirrored": lambda image, rng: mirror(image)}  # noqa: ARG005  # nothing to draw


class EditedImages(ImageSource):
    """Every edit of every image of a source, made when it is read: item ``i * len(edits) + j`` is edit j of image i.

    An edit depends on the seed, its name and the image's content alone, so the feature cache knows it in the next run.
    """

    def __init__(
        self,
        source: ImageSource,
        edits: dict[str, Edit],
        *,
        seed: int = 0,
        max_pixels: int | None = None,
        rows: NDArray[np.intp] | None = None,
    ) -> None:
        """Keep references; nothing is read yet."""
        self.name = f"edits of {source.name}"
        self.labels = self.label_names = None
        self._source, self._edits, self._seed, self._max_pixels = source, edits, seed, max_pixels
        self._rows = np.arange(len(source) * len(edits)) if rows is None else rows
        names = list(edits)
        self.keys: Sequence[str] = [
            f"{source.keys[row // len(names)]} ({names[row % len(names)]})" for row in self._rows.tolist()
        ]

    def select(self, rows: NDArray[np.intp]) -> EditedImages:
        """The edits of ``rows``."""
        chosen = self._rows[check_rows(rows, len(self))]
        return EditedImages(self._source, self._edits, seed=self._seed, max_pixels=self._max_pixels, rows=chosen)

    def read(self, row: int) -> bytes:
        """The edited image as an encoded file."""
        image, number = divmod(int(self._rows[row]), len(self._edits))
        name = list(self._edits)[number]
        data = self._source.read(image)
        limit = {} if self._max_pixels is None else {"max_pixels": self._max_pixels}
        rng = np.random.default_rng([self._seed, *name.encode(), int.from_bytes(digest(data), "big")])
        return self._edits[name](_reduced(decode_image(data, **limit)), rng)


def _reduced(pixels: Pixels) -> Image.Image:
    image = Image.fromarray(pixels)
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.BICUBIC, reducing_gap=2.0)
    return image


def _scaled(image: Image.Image, scale: float) -> tuple[int, int]:
    if not scale > 0:
        raise ParameterError(f"an edit's scale must be above 0, got {scale}")
    return max(1, round(image.width * scale)), max(1, round(image.height * scale))


def _encoded(
    image: Image.Image, *, quality: int = QUALITY, format: str = "JPEG", exif: Image.Exif | None = None
) -> bytes:
    stream = BytesIO()
    options = {} if exif is None else {"exif": exif}
    image.save(stream, format, quality=quality, **options)
    return stream.getvalue()
