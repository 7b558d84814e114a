"""What makes two files the same picture: everything that they show. The truth is in how they were made."""

from __future__ import annotations

import io
import struct
import time
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageDraw, TiffImagePlugin, features

import image_factory as factory
from distillhash.sources import decode_image, digest
from distillhash.sources.whole import alike_rows, whole_picture

PIXELS = factory.make_pixels()
FIRST, SECOND, THIRD = (Image.fromarray(factory.make_pixels(seed=seed)) for seed in range(3))


def made(suffix: str, *frames: Image.Image, **options: Any) -> bytes:
    first, *others = (frame.copy() for frame in frames)  # Pillow leaves the settings of one format in them
    return factory.encode(first, suffix, save_all=True, append_images=others, **options)


def png(width: int, height: int, depth: int, colour: int, rows: list[bytes]) -> bytes:
    """A PNG written by hand, without filters."""
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows))),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )


def png16(values: NDArray[np.uint16]) -> bytes:
    """16 bits a sample, of ``(h, w, 3)`` or ``(h, w, 4)``."""
    height, width, bands = values.shape
    return png(width, height, 16, {2: 4, 3: 2, 4: 6}[bands], [row.astype(">u2").tobytes() for row in values])


def same(a: bytes, b: bytes) -> bool:
    return whole_picture(a).digest == whole_picture(b).digest


def alike(a: bytes, b: bytes) -> bool:
    rows = [np.frombuffer(looks, np.uint8).astype(np.int16) for looks in (a, b)]
    return bool(alike_rows(rows[0][None], rows[1], mean=8, most=48))


OPAQUE = FIRST.copy()
OPAQUE.putalpha(255)
HALF = FIRST.copy()
HALF.putalpha(128)
QUARTER = FIRST.copy()
QUARTER.putalpha(64)


@pytest.mark.parametrize("suffix", ["PNG", "BMP", "TIFF", "PPM"])
def test_the_same_pixels_in_any_file(suffix: str) -> None:
    data = factory.encode(PIXELS, suffix)
    assert whole_picture(data).digest == digest(PIXELS) and whole_picture(data).n_frames == 1
    assert same(data, factory.encode(OPAQUE, "PNG")) and same(data, factory.encode(FIRST, "WEBP", lossless=True))
    np.testing.assert_array_equal(whole_picture(data).pixels, decode_image(data))


ANIMATED: dict[str, dict[str, Any]] = {
    "GIF": {}, "WEBP": {"lossless": True}, "PNG": {}, "TIFF": {}, "MPO": {"quality": 95},
    **({"AVIF": {}} if features.check("avif") else {}),
}  # fmt: skip


@pytest.mark.parametrize("suffix", sorted(ANIMATED))
def test_frames_and_pages_count(suffix: str) -> None:
    options = ANIMATED[suffix]
    one, other, longer = (
        made(suffix, *frames, **options) for frames in ((FIRST, SECOND), (FIRST, THIRD), (FIRST, SECOND, THIRD))
    )
    still = factory.encode(FIRST, "JPEG" if suffix == "MPO" else suffix, **options)
    np.testing.assert_allclose(decode_image(one), decode_image(other), atol=12 if suffix == "AVIF" else 0)
    assert not any(same(one, data) for data in (other, longer, still)) and same(one, bytes(one))
    assert [whole_picture(data).n_frames for data in (one, other, longer, still)] == [2, 2, 3, 1]
    looks = [whole_picture(data).looks for data in (one, other, longer)]
    assert alike(looks[0], looks[0]) and not alike(looks[0], looks[1]) and len(looks[0]) != len(looks[2])


def test_one_animation_in_two_formats() -> None:
    assert same(made("PNG", FIRST, SECOND, duration=100), made("WEBP", FIRST, SECOND, lossless=True, duration=70))
    gif = whole_picture(made("GIF", FIRST, SECOND))
    exact = whole_picture(made("PNG", FIRST, SECOND))
    assert gif.digest != exact.digest and alike(gif.looks, exact.looks)


@pytest.mark.parametrize("suffix", ["PNG", "WEBP", "TIFF"])
def test_transparency_counts(suffix: str) -> None:
    options = {"lossless": True} if suffix == "WEBP" else {}
    files = [factory.encode(image, suffix, **options) for image in (FIRST, HALF, QUARTER)]
    flattened = factory.encode(decode_image(files[1]), suffix, **options)
    assert len({whole_picture(data).digest for data in (*files, flattened)}) == 4
    assert same(files[1], factory.encode(HALF, "PNG"))


def test_the_colour_of_what_is_not_seen_does_not_count() -> None:
    one, other = (np.full((4, 4, 4), (9, 9, 9, 255), np.uint8) for _ in range(2))
    one[0, 0], other[0, 0] = (255, 0, 0, 0), (0, 255, 0, 0)
    assert same(factory.encode(one, "PNG"), factory.encode(other, "PNG"))
    hidden = [np.dstack([factory.make_pixels(seed=seed), np.zeros((23, 37), np.uint8)]) for seed in range(2)]
    assert not same(*(factory.encode(pixels, "PNG") for pixels in hidden))  # all of it, shown as opaque


def deeper(change: int) -> list[tuple[str, bytes]]:
    """Pictures whose lowest bits differ with ``change`` and whose 8-bit versions do not."""
    grey = np.full((3, 4), 257 * 100, np.uint16)
    grey[1, 1] += change
    colour = np.repeat(grey[..., None], 3, axis=2)
    alpha = np.dstack([colour, np.full_like(grey, 65535)])
    spread = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)
    spread[1, 1] += change * 1e-6
    ppm = b"P6 4 3 65535\n" + colour.astype(">u2").tobytes()
    return [
        ("grey PNG", factory.make_png16(grey)),
        ("grey TIFF", factory.encode(grey, "TIFF")),
        ("colour PNG", png16(colour)),
        ("colour and alpha PNG", png16(alpha)),
        ("grey and alpha PNG", png16(alpha[..., 2:])),
        ("float TIFF", factory.encode(spread, "TIFF")),
        ("colour PPM", ppm),
        ("grey PGM", b"P5 4 3 65535\n" + grey.astype(">u2").tobytes()),
    ]


@pytest.mark.parametrize(
    ("one", "other"), list(zip(deeper(0), deeper(1), strict=True)), ids=[name for name, _ in deeper(0)]
)
def test_depth_counts(one: tuple[str, bytes], other: tuple[str, bytes]) -> None:
    np.testing.assert_array_equal(decode_image(one[1]), decode_image(other[1]))
    assert not same(one[1], other[1]) and same(one[1], bytes(one[1]))


def test_sixteen_bits_of_grey_in_two_formats() -> None:
    values = np.arange(12, dtype=np.uint16).reshape(3, 4) * 5000
    assert same(factory.make_png16(values), factory.encode(values, "TIFF"))
    assert not same(factory.make_png16(values), factory.encode(decode_image(factory.make_png16(values)), "PNG"))


def test_channels_and_layers_that_are_not_decoded_count() -> None:
    cmyk = [FIRST.convert("CMYK"), FIRST.convert("CMYK")]
    cmyk[1].putpixel((0, 0), (0, 0, 0, 255))
    cmyk[0].putpixel((0, 0), (255, 255, 255, 255))  # both black
    files = [factory.encode(image, "TIFF") for image in cmyk]
    np.testing.assert_array_equal(decode_image(files[0])[0, 0], decode_image(files[1])[0, 0])
    assert not same(*files)
    layered = []
    for content in (b"8BPS one", b"8BPS two"):
        tags = TiffImagePlugin.ImageFileDirectory_v2()
        tags[37724] = content
        tags.tagtype[37724] = 7
        layered.append(factory.encode(FIRST, "TIFF", tiffinfo=tags))
    assert not same(*layered) and not same(layered[0], factory.encode(FIRST, "TIFF"))


def test_an_animation_without_end_is_bounded() -> None:
    frames = [Image.new("P", (1, 1), number % 2) for number in range(3)]
    data = made("GIF", *frames, duration=10)
    place = data.rindex(b"\x21\xf9")
    long = data[:place] + data[place:-1] * 20_000 + b";"
    started = time.process_time()
    assert whole_picture(long).n_frames == 0 and time.process_time() - started < 5
    assert not same(long, data[:place] + data[place:-1] * 20_001 + b";")
    assert whole_picture(data[:place] + data[place:-1] * 300 + b";").n_frames == 300 + data.count(b"\x21\xf9") - 1


def test_a_damaged_second_frame_leaves_the_first() -> None:
    tiff = made("TIFF", FIRST, SECOND)
    whole = whole_picture(tiff[: len(tiff) - 900])
    np.testing.assert_array_equal(whole.pixels, PIXELS)
    assert not same(tiff, tiff[: len(tiff) - 900])
    broken = made("PNG", FIRST, SECOND).replace(b"fdAT", b"fdAX")
    np.testing.assert_array_equal(whole_picture(broken).pixels, PIXELS)


Colour = tuple[int, int, int]
COLOURS = st.one_of(
    st.sampled_from([(255, 255, 255), (0, 0, 0), (128, 128, 128), (255, 0, 255), (250, 251, 252), (4, 3, 2)]),
    st.tuples(*[st.integers(0, 255)] * 3),
)


def drawing(shapes: list[tuple[int, int]], colours: list[Colour], alpha: int = 255) -> bytes:
    image = Image.new("RGBA", (64, 64), (*colours[0], 0))
    draw = ImageDraw.Draw(image)
    for (x, y), number in zip(shapes, range(len(shapes)), strict=True):
        draw.rectangle((8 * x, 8 * y, 8 * x + 15, 8 * y + 15), fill=(*colours[number % len(colours)], alpha))
    return factory.encode(image, "PNG")


@settings(max_examples=40, deadline=None)
@given(
    st.lists(COLOURS, min_size=1, max_size=3),
    st.integers(100, 255),
    st.integers(0, 6),
    st.integers(0, 6),
    st.integers(0, 6),
)
def test_no_drawing_vanishes(colours: list[Colour], alpha: int, x: int, y: int, other: int) -> None:
    """Whatever its colours are, the place of every part of a drawing on transparent ground can be told from the ground."""
    decoded = decode_image(drawing([(x, y), ((x + 3) % 7, other), (other, (y + 3) % 7)], colours, alpha)).astype(int)
    with Image.open(io.BytesIO(drawing([(x, y), ((x + 3) % 7, other), (other, (y + 3) % 7)], colours, alpha))) as image:
        visible = np.asarray(image)[..., 3] > 0
    ground = decoded[~visible]
    assert (ground == ground[0]).all()
    assert (np.abs(decoded[visible] - ground[0]).max(axis=1) >= 20).mean() > 0.98


@pytest.mark.parametrize(
    "colours",
    [[(255, 255, 255)], [(0, 0, 0)], [(128, 128, 128)], [(255, 0, 255)], [(0, 0, 0), (255, 255, 255)],
     [(0, 0, 0), (255, 255, 255), (128, 128, 128)]],
    ids=str,
)  # fmt: skip
def test_two_drawings_of_one_colour_differ(colours: list[Colour]) -> None:
    one, other = (
        decode_image(drawing(shapes, colours)) for shapes in ([(0, 0), (4, 4), (2, 5)], [(5, 0), (0, 4), (3, 3)])
    )
    assert np.abs(one.astype(int) - other).mean() > 10


MODES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "palette": lambda image: image.quantize(8),
    "grey and alpha": lambda image: image.convert("LA"),
    "as it is": lambda image: image,
}


@pytest.mark.parametrize("mode", sorted(MODES))
@pytest.mark.parametrize("suffix", ["PNG", "GIF", "WEBP", "TIFF"])
def test_white_on_transparent_in_every_form(mode: str, suffix: str) -> None:
    if (suffix, mode) in {("TIFF", "palette"), ("GIF", "grey and alpha")}:
        pytest.skip("Pillow writes no alpha there")
    image = Image.new("RGBA", (40, 40), (255, 255, 255, 0))
    ImageDraw.Draw(image).rectangle((5, 5, 20, 20), fill=(255, 255, 255, 255))
    options = {"lossless": True} if suffix == "WEBP" else {}
    decoded = decode_image(factory.encode(MODES[mode](image), suffix, **options)).astype(int)
    assert np.abs(decoded[10, 10] - decoded[35, 35]).max() > 100


def test_dark_drawings_and_photographs_stay_on_white() -> None:
    dark = np.zeros((20, 20, 4), np.uint8)
    dark[5:9, 5:9, 3] = 255
    decoded = decode_image(factory.encode(dark, "PNG"))
    np.testing.assert_array_equal(decoded[0, 0], (255, 255, 255))
    np.testing.assert_array_equal(decode_image(factory.encode(OPAQUE, "PNG")), PIXELS)
