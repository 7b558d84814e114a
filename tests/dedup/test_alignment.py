"""Where one picture lies on another: crops, frames and mirror images whose place is known."""

from collections.abc import Callable
from io import BytesIO

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter
from scipy.signal import correlate2d

from distillhash.dedup import edits
from distillhash.dedup.alignment import SCENE, Look, _correlate, _summed, align
from distillhash.sources import decode_image


def picture(seed: int, width: int = 240, height: int = 180) -> Image.Image:
    """Blobs of all sizes, as natural pictures have."""
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((height, width, 3))
    layers = [gaussian_filter(noise, (s, s, 0)) * s for s in (1, 2, 4, 8, 16)]
    values = np.sum(layers, axis=0)
    return Image.fromarray(np.clip(128 + 45 * values / values.std(), 0, 255).astype(np.uint8))


def look(data: bytes | Image.Image) -> Look:
    return Look(np.asarray(data) if isinstance(data, Image.Image) else decode_image(data))


ORIGINAL = picture(0)


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_crop_lies_where_it_was_cut(mirrored: bool) -> None:
    cut = decode_image(edits.crop(ORIGINAL, keep=0.6, x=0.25, y=1))
    found = align(look(ORIGINAL), Look(np.ascontiguousarray(cut[:, ::-1]) if mirrored else cut))
    assert found.same and found.inside and found.mirrored == mirrored
    assert np.allclose(found.box, (0.1, 0.4, 0.7, 1.0), atol=0.015)
    back = found.swapped()
    assert not back.inside and back.mirrored == mirrored
    left, right = (0.3, 0.9) if mirrored else (0.1, 0.7)
    assert np.allclose(back.box, (left, 0.4, right, 1.0), atol=0.015)


def test_a_screenshot_holds_the_picture() -> None:
    framed = edits.put_in_frame(ORIGINAL, width=0.25, height=0.5, y=0.2)
    found = align(look(ORIGINAL), look(framed))
    assert found.same and not found.inside and not found.mirrored
    assert np.allclose(found.box, (0.1, 0.2 / 3, 0.9, 0.2 / 3 + 2 / 3), atol=0.015)


@pytest.mark.parametrize(
    "edit",
    [
        lambda image: edits.reencode(image, quality=15),
        lambda image: edits.thumbnail(image, side=64),
        lambda image: edits.brighten(image, factor=0.4),
        lambda image: edits.write_text(image, height=0.09),
        lambda image: edits.put_sticker(image, side=0.3, x=0.2, y=0.7),
        lambda image: edits.shift_colours(image, saturation=0, gains=np.array([1.2, 1, 0.8])),
        edits.mirror,
    ],
)
def test_edits_that_leave_the_picture_whole(edit: Callable[[Image.Image], bytes]) -> None:
    found = align(look(ORIGINAL), look(edit(ORIGINAL)))
    assert found.same and np.allclose(found.box, (0, 0, 1, 1), atol=0.02)


def test_a_turned_picture_is_found_where_it_is_asked_for() -> None:
    turned = look(edits.rotate(ORIGINAL, angle=-90))
    assert not align(look(ORIGINAL), turned).same
    found = align(look(ORIGINAL), turned, turns=(0, 90, 270))
    assert found.same and found.turned == 90


def test_other_pictures_and_blank_ones_do_not_agree() -> None:
    for seed in range(1, 6):
        assert align(look(ORIGINAL), look(picture(seed))).score < SCENE
    blank = look(Image.new("RGB", (100, 80), "white"))
    assert not align(blank, blank).same and not align(look(ORIGINAL), blank).same


def test_two_frames_of_a_burst_are_no_copies() -> None:
    """The scene is the same, and what was in its middle has moved."""
    scene, subject = np.asarray(picture(7)).copy(), np.asarray(picture(8))[:110, :130]
    frames = []
    for place in (40, 75):
        frame = scene.copy()
        frame[35:145, place : place + 130] = subject
        frames.append(Look(frame))
    assert not align(*frames).same


def test_the_correlation_is_the_textbooks() -> None:
    rng = np.random.default_rng(0)
    whole, part = rng.standard_normal((20, 24)).astype(np.float32), rng.standard_normal((9, 11)).astype(np.float32)
    whole[5:14, 8:19] += 2 * part
    score, y, x = _correlate(whole, _summed(whole), part)
    ones = np.ones_like(part)
    centred = part - part.mean()
    spread = correlate2d(whole**2, ones, "valid") - correlate2d(whole, ones, "valid") ** 2 / part.size
    expected: NDArray[np.float64] = correlate2d(whole, centred, "valid") / np.sqrt(spread * (centred**2).sum())
    assert [y, x] == list(np.unravel_index(expected.argmax(), expected.shape)) == [5, 8]
    assert score == pytest.approx(expected.max(), abs=1e-4)


def test_tiny_and_long_pictures() -> None:
    for size in ((1, 1), (3, 200), (2, 2), (500, 4)):
        image = look(Image.fromarray(np.random.default_rng(1).integers(0, 256, (*size, 3), np.uint8)))
        assert align(image, image).score <= 1.001 and align(look(ORIGINAL), image).score < SCENE


def test_a_file_is_read_as_it_is_shown() -> None:
    stream = BytesIO()
    ORIGINAL.save(stream, "PNG")
    assert align(look(stream.getvalue()), look(edits.turn_by_exif(ORIGINAL, orientation=6))).same
