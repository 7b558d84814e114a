"""Where one picture lies on another: crops, frames and mirror images whose place is known."""

from collections.abc import Callable
from io import BytesIO

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.signal import correlate2d

from distillhash.dedup import edits
from distillhash.dedup.alignment import MOVED, SCENE, Aligned, Look, _correlate, _moves, _summed, align, movement
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


def photographed(scene: Image.Image, *, parallax: float, seed: int, noise: float = 2) -> Image.Image:
    """The scene from a little to the right: near things, a wave of them, move by up to ``parallax`` pixels. The noise is its own."""
    values = np.asarray(scene, np.float64)
    y, x = np.mgrid[: scene.height, : scene.width]
    nearness = np.sin(x / 23) * np.cos(y / 31)
    moved = [
        map_coordinates(v, [y, x + parallax * nearness], order=3, mode="nearest") for v in np.moveaxis(values, 2, 0)
    ]
    seen = np.stack(moved, 2) + noise * np.random.default_rng(seed).standard_normal(values.shape)
    return Image.fromarray(np.clip(seen, 0, 255).round().astype(np.uint8))


def moved_between(first: Image.Image | bytes, second: Image.Image | bytes) -> tuple[Aligned, float]:
    pixels = [np.asarray(data) if isinstance(data, Image.Image) else decode_image(data) for data in (first, second)]
    lies = align(*map(Look, pixels))
    grey = [np.asarray(Image.fromarray(one).convert("L"), np.float32) for one in pixels]
    return lies, movement(grey[0], grey[1], lies)


@pytest.mark.parametrize("parallax", [1.0, 2.0])
def test_two_photographs_of_a_scene_are_told_from_copies(parallax: float) -> None:
    scene = picture(3, 256, 192)
    shots = [photographed(scene, parallax=p, seed=seed) for seed, p in enumerate((0, parallax))]
    for second in (shots[1], edits.reencode(shots[1], quality=40), edits.resize(shots[1], scale=0.6)):
        lies, moved = moved_between(shots[0], second)
        assert lies.score >= SCENE and moved >= 2 * MOVED


@pytest.mark.parametrize(
    "edit",
    [
        lambda image: edits.reencode(image, quality=10),
        lambda image: edits.thumbnail(image, side=64),
        lambda image: edits.brighten(image, factor=0.4),
        lambda image: edits.brighten(image, factor=1.3),
        lambda image: edits.write_text(image, height=0.25, y=0.5, text="SAMPLE"),
        lambda image: edits.crop(image, keep=0.7, x=0.3, y=0.7),
        lambda image: edits.put_in_frame(image, width=0.2, height=0.4),
        lambda image: edits.reencode(
            image.rotate(0.6, Image.Resampling.BICUBIC).crop((3, 3, image.width - 3, image.height - 3))
        ),
        edits.mirror,
    ],
)
def test_the_parts_of_a_copy_stay_where_they_are(edit: Callable[[Image.Image], bytes]) -> None:
    shot = photographed(picture(3, 256, 192), parallax=0, seed=0)
    small = Image.open(
        BytesIO(edits.resize(shot, scale=0.7))
    )  # a copy of a copy, by the rule that its file does not show
    for first, second in ((shot, edit(shot)), (shot, edit(small)), (edit(shot), edits.reencode(shot, quality=60))):
        lies, moved = moved_between(first, second)
        assert lies.score >= SCENE and moved < MOVED


def test_noise_alone_tells_nothing() -> None:
    scene = picture(3, 256, 192)
    assert moved_between(*(photographed(scene, parallax=0, seed=seed, noise=6) for seed in (0, 1)))[1] < 2
    blank = np.full((192, 256), 200, np.float32)
    assert movement(blank, blank, Aligned(1.0, False, 0, True, (0, 0, 1, 1))) == 0
    assert movement(blank[:12], blank[:12], Aligned(1.0, False, 0, True, (0, 0, 1, 1))) == 0


def test_moves_and_their_errors_are_those_that_were_made() -> None:
    """Of known shifts under known noise: found within the errors, which are as large as what is wrong."""
    rng = np.random.default_rng(0)
    scene = 400 * gaussian_filter(rng.standard_normal((300, 300)), 4)
    y, x = np.mgrid[:256, :256] + 20.0
    wrong = []
    for down, right in ((0, 0), (0.2, -0.1), (-0.15, 0.3)):
        one, other = (map_coordinates(scene, [y + a, x + b], order=3) for a, b in ((0, 0), (down, right)))
        moves, errors = _moves(
            np.asarray(one + 2 * rng.standard_normal(one.shape), np.float32),
            np.asarray(other, np.float32),
            [8, 8],
            [32, 32],
        )
        shift = np.array([[-down], [-right]])
        assert np.allclose(np.median(moves, axis=1), shift[:, 0], atol=0.02)
        wrong.append((moves - shift) / errors)
    assert 0.85 < np.std(wrong) < 1.15


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
