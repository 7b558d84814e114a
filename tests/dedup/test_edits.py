"""Edits of an image, decoded again."""

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from distillhash.dedup import edits
from distillhash.errors import ParameterError
from distillhash.sources import decode_image, open_source
from image_factory import make_pixels

PIXELS = make_pixels(80, 60, seed=3)
IMAGE = Image.fromarray(PIXELS)


def differs(data: bytes) -> float:
    return float(np.abs(decode_image(data).astype(int) - PIXELS).mean())


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_a_turn_by_exif_shows_the_same_picture(orientation: int) -> None:
    data = edits.turn_by_exif(IMAGE, orientation=orientation)
    stored = Image.open(BytesIO(data))
    assert stored.size == ((80, 60) if orientation == 3 else (60, 80))
    assert differs(data) < 3


def test_edits_do_what_they_say() -> None:
    assert decode_image(edits.resize(IMAGE, scale=0.5)).shape == (30, 40, 3)
    cut = decode_image(edits.crop(IMAGE, keep=0.5, x=1, y=0)).astype(int)
    assert cut.shape == (30, 40, 3) and np.abs(cut - PIXELS[:30, 40:]).mean() < 3
    bright = decode_image(edits.brighten(IMAGE, factor=0.5)).astype(int)
    assert np.abs(bright - PIXELS // 2).mean() < 3
    assert np.abs(decode_image(edits.mirror(IMAGE)).astype(int) - PIXELS[:, ::-1]).mean() < 3
    text = np.abs(decode_image(edits.write_text(IMAGE, height=0.2, y=0.75)).astype(int) - PIXELS).mean(axis=(1, 2))
    assert text[40:52].mean() > 10 > text[:20].mean()
    assert len(edits.reencode(IMAGE, quality=10)) < len(edits.reencode(IMAGE, quality=95))
    with pytest.raises(ParameterError, match="above 0"):
        edits.crop(IMAGE, keep=0)


def test_the_source_of_edits_is_the_same_every_time() -> None:
    pictures = open_source(np.stack([make_pixels(40, 30, seed) for seed in range(3)]))
    made = edits.EditedImages(pictures, edits.LIGHT)  # type: ignore[arg-type]
    again = edits.EditedImages(pictures, edits.LIGHT)  # type: ignore[arg-type]
    assert len(made) == 18 and made.keys[7] == "1 (resized)"
    assert [made.read(row) for row in range(18)] == [again.read(row) for row in range(18)]
    other = edits.EditedImages(pictures, edits.LIGHT, seed=1)  # type: ignore[arg-type]
    assert other.read(1) != made.read(1)
    chosen = made.select(np.array([7, 2]))
    assert chosen.keys == [made.keys[7], made.keys[2]] and chosen.read(0) == made.read(7)


def test_large_originals_are_reduced_first() -> None:
    pictures = open_source(make_pixels(3000, 1500)[None])
    made = edits.EditedImages(pictures, {"kept": lambda image, rng: edits.reencode(image, quality=80)})  # type: ignore[arg-type]
    assert decode_image(made.read(0)).shape == (512, 1024, 3)
