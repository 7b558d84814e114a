"""Sound pictures in odd surroundings: read as browsers read them, and said to be damaged where they are."""

from __future__ import annotations

import struct
import time
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile, PngImagePlugin, features

import image_factory as factory
from distillhash.sources import BadItemError, decode_image, decode_resized
from distillhash.sources.decode import damage_of, image_size

PIXELS = factory.make_pixels(200, 150)
PNG, JPEG, GIF = factory.make_png(200, 150), factory.make_jpeg(200, 150), factory.make_gif()
SCAN = JPEG.index(b"\xff\xda")


def chunk(kind: bytes, data: bytes, *, right: bool = True) -> bytes:
    return (
        struct.pack(">I", len(data)) + kind + data + (struct.pack(">I", zlib.crc32(kind + data)) if right else bytes(4))
    )


def segment(marker: int, data: bytes) -> bytes:
    return bytes((0xFF, marker)) + struct.pack(">H", len(data) + 2) + data


def before_pixels(extra: bytes) -> bytes:
    return PNG[:33] + extra + PNG[33:]


SOUND_PNGS = (
    {
        "compressed text that unfolds to 256 MiB": before_pixels(
            chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(1 << 28), 9))
        ),
        "100 MB of text": before_pixels(chunk(b"tEXt", b"k\0" + b"a" * 1_000_000) * 100),
        "international text": before_pixels(chunk(b"iTXt", b"parameters\0\1\0\0\0" + zlib.compress(bytes(3_000_000)))),
        "text that is no text": before_pixels(chunk(b"iTXt", b"\xff" * 30) + chunk(b"zTXt", b"") + chunk(b"tEXt", b"")),
        "a profile of 32 MiB": before_pixels(chunk(b"iCCP", b"k\0\0" + zlib.compress(bytes(1 << 25)))),
        "a profile packed in an unknown way": before_pixels(chunk(b"iCCP", b"k\0\7xx")),
        "an orientation block of rubbish": before_pixels(chunk(b"eXIf", b"\xff" * 3_000_000)),
        "text behind the pixels": PNG[:-12] + chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(1 << 24))) + PNG[-12:],
        "a wrong checksum behind the pixels": PNG[:-12] + chunk(b"tEXt", b"k\0x", right=False) + PNG[-12:],
        "an animation of no frames": before_pixels(chunk(b"acTL", b"") + chunk(b"fcTL", bytes(3))),
        "rubbish at the end": PNG + bytes(99) + b"rubbish",
    }
    | {
        f"a wrong checksum in {kind.decode()}": before_pixels(chunk(kind, bytes(9), right=False))
        for kind in (b"tIME", b"gAMA", b"cHRM", b"pHYs", b"tEXt", b"zTXt", b"iCCP", b"eXIf", b"abCd")
    }
    | {
        f"a {kind.decode()} of two bytes": before_pixels(chunk(kind, bytes(2)))
        for kind in (b"tIME", b"gAMA", b"cHRM", b"pHYs", b"sRGB", b"sBIT", b"bKGD", b"tRNS")
    }
)


@pytest.mark.parametrize("kind", sorted(SOUND_PNGS))
def test_a_sound_png_is_read_whatever_its_metadata(kind: str) -> None:
    before = (PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY, ImageFile.LOAD_TRUNCATED_IMAGES)
    np.testing.assert_array_equal(decode_image(SOUND_PNGS[kind]), PIXELS)
    assert damage_of(SOUND_PNGS[kind]) is None
    assert before == (PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY, ImageFile.LOAD_TRUNCATED_IMAGES)


SHOWN_PNGS = {
    "no end": PNG[:-12],
    "no last checksum": PNG[:-16],
    "a wrong checksum of the pixels": PNG[:-16] + bytes(4) + PNG[-12:],
    "a wrong checksum in an animation": before_pixels(chunk(b"acTL", struct.pack(">II", 2, 0), right=False)),
    "a wrong checksum of the transparency": before_pixels(chunk(b"tRNS", bytes(6), right=False)),
}


@pytest.mark.parametrize("kind", sorted(SHOWN_PNGS))
def test_a_damaged_png_that_can_be_shown(kind: str) -> None:
    np.testing.assert_array_equal(decode_image(SHOWN_PNGS[kind]), PIXELS)
    assert damage_of(SHOWN_PNGS[kind]) is not None


SOUND_JPEGS = {
    "26 MB of comments": JPEG[:2] + segment(0xFE, b"x" * 65_000) * 400 + JPEG[2:],
    "a profile in 200 parts": JPEG[:2] + segment(0xE2, b"ICC_PROFILE\0\1\xc8" + bytes(65_000)) * 200 + JPEG[2:],
    "resources cut off": JPEG[:2] + segment(0xED, b"Photoshop 3.0\0" + b"8BIM\x04") + JPEG[2:],
    "an orientation block of rubbish": JPEG[:2] + segment(0xE1, b"Exif\0\0" + b"\xff" * 65_000) + JPEG[2:],
    "pictures that are not there": JPEG[:2] + segment(0xE2, b"MPF\0" + b"\xff" * 60) + JPEG[2:],
    "an end marker in a thumbnail": JPEG[:2] + segment(0xE1, b"Exif\0\0" + factory.make_jpeg(8, 8)) + JPEG[2:],
    "rubbish at the end": JPEG + b"rubbish" * 1000,
    "another picture at the end": JPEG + factory.make_jpeg(90, 70, 1),
    "a short mark of Adobe": JPEG[:2] + segment(0xEE, b"Adobe") + JPEG[2:],
    "a short mark of JFIF": JPEG[:2] + segment(0xE0, b"JFIF\0") + JPEG[2:],
    "a filled-up marker": JPEG[:SCAN] + b"\xff\xff\xff" + JPEG[SCAN:],
}  # fmt: skip


@pytest.mark.parametrize("kind", sorted(SOUND_JPEGS))
def test_a_sound_jpeg_is_read_whatever_its_metadata(kind: str) -> None:
    np.testing.assert_array_equal(decode_image(SOUND_JPEGS[kind]), decode_image(JPEG))
    np.testing.assert_array_equal(decode_resized(SOUND_JPEGS[kind], 16), decode_resized(JPEG, 16))
    assert damage_of(SOUND_JPEGS[kind]) is None


@pytest.mark.parametrize("cut", [1, 2])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 2}], ids=str)
def test_a_jpeg_without_its_end_has_all_its_pixels(options: dict[str, int], cut: int) -> None:
    whole = factory.encode(PIXELS, "JPEG", quality=90, **options)
    np.testing.assert_array_equal(decode_image(whole[:-cut]), decode_image(whole))
    assert damage_of(whole[:-cut]) == "the JPEG data end early" and damage_of(whole) is None
    np.testing.assert_array_equal(decode_resized(whole[:-cut], 8), decode_resized(whole, 8))


def test_a_cut_jpeg_is_grey_where_nothing_is_left() -> None:
    whole = factory.encode(PIXELS, "JPEG", quality=95, subsampling=0)
    start = whole.index(b"\xff\xda")
    data = whole[: start + (len(whole) - start) // 2]
    decoded, wanted = decode_image(data), decode_image(whole)
    same = (decoded == wanted).all(axis=(1, 2))
    assert damage_of(data) == "the JPEG data end early" and 40 < same.sum() < 110
    assert same[: same.sum() - 1].all()  # from the top, in rows of blocks
    assert np.ptp(decoded[-8:].reshape(-1, 3), axis=0).max() == 0
    progressive = factory.encode(PIXELS, "JPEG", quality=95, progressive=True)
    away = np.abs(decode_image(progressive[: len(progressive) // 2]).astype(int) - PIXELS)
    assert away.mean() < 4  # all of it, but blurred


@pytest.mark.parametrize("left", [0, 1, 20])
def test_of_too_little_nothing_is_made(left: int) -> None:
    with pytest.raises(BadItemError, match=r"the JPEG data cannot be decoded.*truncated"):
        decode_image(JPEG[: JPEG.index(b"\xff\xda") + 14 + left])


def test_pixels_that_cannot_be_there_take_no_memory() -> None:
    place = JPEG.index(b"\xff\xc0") + 5
    claims = JPEG[:place] + struct.pack(">HH", 13_000, 13_000) + JPEG[place + 4 :]
    for data in (claims, claims[:-2], factory.make_bomb(13_000, 13_000)):
        started = time.process_time()
        with pytest.raises(BadItemError, match=r"too little|hardly hold"):
            decode_image(data)
        assert time.process_time() - started < 0.3


def test_gif_comments_take_no_time() -> None:
    place = 13 + (3 << (GIF[10] & 7) + 1)
    data = GIF[:place] + b"\x21\xfe" + (b"\xff" + bytes(255)) * 80_000 + b"\0" + GIF[place:]
    started = time.process_time()
    np.testing.assert_array_equal(decode_image(data), np.full((3, 5, 3), (255, 0, 0)))
    assert time.process_time() - started < 2 and damage_of(data) is None


def test_gifs_at_their_end() -> None:
    for data, damaged in ((GIF[:-1], True), (GIF + b"rubbish", False), (GIF[:-1] + b"\0\0;", False)):
        np.testing.assert_array_equal(decode_image(data), np.full((3, 5, 3), (255, 0, 0)))
        assert (damage_of(data) is not None) == damaged


def test_other_formats_with_large_metadata_and_wrong_sizes() -> None:
    bmp, rubbish = factory.encode(PIXELS, "BMP"), bytes(3_000_000)
    webp = factory.encode(PIXELS, "WEBP", lossless=True, exif=b"Exif\0\0" + rubbish, icc_profile=rubbish, xmp=rubbish)
    still = factory.encode(PIXELS, "WEBP", lossless=True)
    for data in (
        webp,
        webp + b"rubbish",
        still[:4] + struct.pack("<I", len(still) + 1000) + still[8:],
        bmp[:2] + bytes(4) + bmp[6:],
        bmp[:2] + b"\xff" * 4 + bmp[6:],
        factory.encode(PIXELS, "TIFF", icc_profile=rubbish),
    ):
        np.testing.assert_array_equal(decode_image(data), PIXELS)
        assert damage_of(data) is None


def test_an_orientation_behind_the_pixels_counts() -> None:
    text = chunk(b"iTXt", b'XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation="6"/>')
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    for extra in (text, chunk(b"eXIf", exif.tobytes()[6:])):
        data = PNG[:-12] + extra + PNG[-12:]
        np.testing.assert_array_equal(decode_image(data), np.rot90(PIXELS, -1))
        assert image_size(data) == (150, 200)


SUFFIXES = ["JPEG", "PNG", "TIFF", "WEBP", "MPO", *(["AVIF"] if features.check("avif") else [])]


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(SUFFIXES), st.integers(0, 9), st.integers(1, 60), st.integers(1, 60))
def test_the_size_is_that_of_the_decoded_picture(suffix: str, orientation: int, width: int, height: int) -> None:
    data = factory.make_rotated(orientation, suffix, width, height)
    decoded: NDArray[np.uint8] = decode_image(data)
    assert image_size(data) == decoded.shape[1::-1] == ((height, width) if 5 <= orientation <= 8 else (width, height))
