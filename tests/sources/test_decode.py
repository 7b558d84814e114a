from __future__ import annotations

import io
import struct
import sys
import time
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageFile, features

import image_factory as factory
from distillhash.errors import ParameterError
from distillhash.sources import (
    BadItemError,
    decode_image,
    decode_resized,
    decode_sizes,
    decode_thumbnail,
    encode_thumbnail,
    resize_image,
    resize_images,
)


@pytest.mark.parametrize("suffix", ["PNG", "BMP", "TIFF", "PPM", "WEBP"])
def test_lossless_formats_give_the_stored_pixels(suffix: str) -> None:
    options = {"lossless": True} if suffix == "WEBP" else {}
    decoded = decode_image(factory.encode(factory.make_pixels(), suffix, **options))
    assert decoded.dtype == np.uint8
    assert decoded.flags.writeable
    np.testing.assert_array_equal(decoded, factory.make_pixels())


@pytest.mark.parametrize("suffix", ["JPEG", "AVIF", "MPO"])
def test_lossy_formats_are_close(suffix: str) -> None:
    if suffix == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    decoded = decode_image(factory.encode(factory.make_pixels(), suffix, quality=95))
    assert decoded.shape == (23, 37, 3)
    assert np.abs(decoded.astype(int) - factory.make_pixels()).mean() < 6


def test_gif_gives_its_first_frame() -> None:
    np.testing.assert_array_equal(decode_image(factory.make_gif()), np.full((3, 5, 3), (255, 0, 0)))


# What a viewer must do to pixels stored with orientation 1..8 (EXIF 2.32, tag 274: where row 0 and column 0 of the data lie).
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("orientation", sorted(UPRIGHT))
@pytest.mark.parametrize("suffix", ["PNG", "TIFF", "WEBP"])
def test_orientation(orientation: int, suffix: str) -> None:
    data = factory.make_rotated(orientation, suffix)
    stored = np.array(Image.open(io.BytesIO(data)).convert("RGB")) if suffix == "WEBP" else factory.make_pixels(40, 24)
    np.testing.assert_array_equal(decode_image(data), UPRIGHT[orientation](stored))


@pytest.mark.parametrize("orientation", [1, 3, 6, 7])
def test_orientation_of_jpegs_in_both_paths(orientation: int) -> None:
    data = factory.make_rotated(orientation, "JPEG", 640, 400)
    stored = factory.make_pixels(640, 400)
    assert np.abs(decode_image(data).astype(int) - UPRIGHT[orientation](stored)).mean() < 4
    turned = np.ascontiguousarray(UPRIGHT[orientation](stored))
    assert np.abs(decode_resized(data, 20).astype(int) - resize_image(turned, 20)).mean() < 4


@pytest.mark.parametrize("orientation", [0, 9, 77])
def test_a_senseless_orientation_is_ignored(orientation: int) -> None:
    np.testing.assert_array_equal(decode_image(factory.make_rotated(orientation, "PNG")), factory.make_pixels(40, 24))


def test_a_damaged_exif_block_does_not_lose_the_picture() -> None:
    clean = factory.make_jpeg()
    broken = factory.encode(factory.make_pixels(), "JPEG", quality=95, exif=b"Exif\0\0MM\0*\xff\xff\xff\xff garbage")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        np.testing.assert_array_equal(decode_image(broken), decode_image(clean))


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    values = np.array([[0, 128, 129, 257, 300, 32768, 65407, 65535]], np.uint16)
    expected = [round(int(v) / 257) for v in values[0]]
    for data in (
        factory.make_png16(values),
        factory.encode(values, "TIFF"),
        factory.encode(values.astype(np.int32), "TIFF"),
    ):
        np.testing.assert_array_equal(decode_image(data), np.repeat(np.array([expected])[..., None], 3, axis=2))


def test_big_endian_sixteen_bits() -> None:
    data = b"P5 2 1 65535\n" + struct.pack(">HH", 65535, 257 * 7)
    np.testing.assert_array_equal(decode_image(data)[0, :, 0], [255, 7])


def test_floats_and_wide_integers_are_stretched() -> None:
    floats = np.array([[-1.0, 0.0, 3.0, np.nan, np.inf]], np.float32)
    np.testing.assert_array_equal(decode_image(factory.encode(floats, "TIFF"))[0, :, 1], [0, 64, 255, 0, 0])
    wide = np.array([[-100_000, 0, 100_000]], np.int32)
    np.testing.assert_array_equal(decode_image(factory.encode(wide, "TIFF"))[0, :, 2], [0, 128, 255])
    np.testing.assert_array_equal(
        decode_image(factory.encode(np.full((2, 3), 7.5, np.float32), "TIFF")), np.zeros((2, 3, 3))
    )


def test_grey_and_one_bit() -> None:
    grey = factory.make_pixels()[..., 0]
    np.testing.assert_array_equal(decode_image(factory.encode(grey, "PNG")), np.repeat(grey[..., None], 3, axis=2))
    bits = Image.fromarray((grey > 99).astype(np.uint8) * 255).convert("1", dither=Image.Dither.NONE)
    np.testing.assert_array_equal(decode_image(factory.encode(bits, "PNG"))[..., 0], np.where(grey > 99, 255, 0))


def test_transparency_is_over_white() -> None:
    np.testing.assert_array_equal(decode_image(factory.make_transparent_palette()), [[[255, 0, 0], [255, 255, 255]]])
    rgba = np.zeros((1, 256, 4), np.uint8)
    rgba[0, :, 3] = np.arange(256)  # black of rising alpha over white: 255 - alpha
    np.testing.assert_array_equal(decode_image(factory.encode(rgba, "PNG"))[0, :, 0], 255 - np.arange(256))
    grey_alpha = Image.merge("LA", (Image.new("L", (2, 2), 80), Image.new("L", (2, 2), 0)))
    np.testing.assert_array_equal(decode_image(factory.encode(grey_alpha, "PNG")), np.full((2, 2, 3), 255))
    keyed = factory.encode(Image.new("RGB", (2, 2), (9, 8, 7)), "PNG", transparency=(9, 8, 7))
    np.testing.assert_array_equal(decode_image(keyed), np.full((2, 2, 3), 255))


def test_cmyk_is_not_inverted() -> None:
    assert np.abs(decode_image(factory.make_cmyk()).astype(int) - factory.make_pixels()).mean() < 12


def test_lab_tiff() -> None:
    lab = ImageCms.profileToProfile(
        Image.fromarray(factory.make_pixels()),
        ImageCms.createProfile("sRGB"),
        ImageCms.createProfile("LAB"),
        outputMode="LAB",
    )
    assert lab is not None
    assert np.abs(decode_image(factory.encode(lab, "TIFF")).astype(int) - factory.make_pixels()).mean() < 12


def test_pixel_limit_comes_from_the_header() -> None:
    start = time.perf_counter()
    with pytest.raises(
        BadItemError, match=r"25000 x 20000 pixels, over the limit of 178956970 pixels; raise it with --max-pixels"
    ):
        decode_image(factory.make_bomb())
    assert time.perf_counter() - start < 0.5
    with pytest.raises(BadItemError, match="37 x 23 pixels, over the limit of 850"):
        decode_resized(factory.make_jpeg(), 8, 850)
    assert decode_resized(factory.make_jpeg(), 8, 851).shape == (8, 8, 3)
    with pytest.raises(BadItemError, match="over the limit of 10"):
        decode_image(factory.make_pixels(), max_pixels=10)


def test_pillows_own_limit_plays_no_part(monkeypatch: pytest.MonkeyPatch) -> None:
    before = (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # as if every image were far over it
        assert decode_image(factory.make_png()).shape == (23, 37, 3)
        monkeypatch.undo()
    assert before == (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)


@cache
def damaged() -> dict[str, bytes]:
    png, jpeg = factory.make_png(200, 150), factory.make_jpeg(200, 150)
    tiff = factory.encode(factory.make_pixels(), "TIFF", compression="tiff_lzw")
    return {
        "empty": b"",
        "text": b"hello, this is not an image",
        "jpeg, no pixels": factory.make_truncated(),
        "jpeg, magic only": b"\xff\xd8\xff",
        "jpeg, header only": jpeg[:40],
        "png in half": png[: len(png) // 2],
        "png, magic only": png[:8],
        "png, wrong checksum": png[:60] + bytes([png[60] ^ 255]) + png[61:],
        "gif, magic only": b"GIF89a",
        "gif cut": factory.make_gif()[:30],
        "bmp": b"BM" + b"\xff" * 60,
        "tiff": tiff[: len(tiff) // 2],
        "tiff, loop": b"II*\0\x08\0\0\0\x01\0\0\x01\x04\0\x01\0\0\0\xff\xff\xff\xff\x08\0\0\0",
        "webp": b"RIFF\x10\0\0\0WEBPVP8 " + b"\0" * 8,
        "ppm": b"P6 10 10 255\n123",
        "ppm, no size": b"P6 ",
        "avif": b"\0\0\0\x1cftypavif" + b"\0" * 40,
        "svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n",
        "heic": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
        "zero wide": _zero_wide(),
    }


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _zero_wide() -> bytes:
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", struct.pack(">IIBBBBB", 0, 5, 8, 2, 0, 0, 0)) + _chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", sorted(damaged()))
def test_damaged_files_only_raise_bad_item(kind: str) -> None:
    for decode in (decode_image, lambda data: decode_resized(data, 16)):
        with pytest.raises(BadItemError) as caught, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            decode(damaged()[kind])
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 300


def test_flipped_bytes_give_an_image_or_bad_item() -> None:
    rng = np.random.default_rng(0)
    kinds = [
        factory.make_jpeg(),
        factory.make_png(),
        factory.make_gif(),
        factory.encode(factory.make_pixels(), "TIFF"),
        factory.make_cmyk(),
    ]
    outcomes: set[tuple[int, ...] | None] = set()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for data in kinds:
            for _ in range(120):
                broken = bytearray(data)
                for place in rng.integers(0, len(data), 4):
                    broken[place] = rng.integers(0, 256)
                try:
                    outcomes.add(decode_resized(bytes(broken), 9, 1 << 20).shape)
                except BadItemError:
                    outcomes.add(None)
    assert outcomes == {(9, 9, 3), None}


def test_reasons_tell_what_to_do() -> None:
    with pytest.raises(BadItemError, match="convert them to JPEG"):
        decode_image(damaged()["heic"])
    with pytest.raises(BadItemError, match=r"not an image of a known format \(JPEG, PNG"):
        decode_image(damaged()["svg"])
    with pytest.raises(BadItemError, match="truncated"):
        decode_image(damaged()["jpeg, no pixels"])


@pytest.mark.parametrize("shape", [(5, 4), (5, 4, 4), (0, 4, 3), (2, 5, 4, 3)])
def test_pixels_of_another_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(BadItemError, match=r"\(h, w, 3\) uint8"):
        decode_image(np.zeros(shape, np.uint8))
    with pytest.raises(BadItemError, match="float64"):
        decode_image(np.zeros((4, 4, 3)))


def test_pixels_pass_through() -> None:
    pixels = factory.make_pixels()
    assert decode_image(pixels) is pixels
    np.testing.assert_array_equal(decode_resized(pixels, 16), resize_image(pixels, 16))


def test_resize_is_antialiased() -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255  # a filter that is not widened would alias into bright and dark columns
    np.testing.assert_allclose(resize_image(stripes, 8), 127.5, atol=6)
    assert resize_image(factory.make_pixels(), 1).shape == (1, 1, 3)
    with pytest.raises(ParameterError, match="at least 1 pixel, got 0"):
        resize_image(stripes, 0)
    with pytest.raises(ParameterError, match="at least 1 pixel, got 0"):
        decode_resized(factory.make_jpeg(), 0)


@pytest.mark.parametrize("torch_is_there", [True, False])
@pytest.mark.parametrize(("width", "height", "size"), [(32, 32, 128), (200, 150, 64), (5, 9, 9)])
def test_images_resized_together_are_those_resized_alone(
    width: int, height: int, size: int, torch_is_there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not torch_is_there:
        monkeypatch.setattr("distillhash.sources.decode.find_spec", lambda name: None)
    images = np.random.default_rng(0).integers(0, 256, (5, height, width, 3)).astype(np.uint8)
    expected = np.stack([resize_image(pixels, size) for pixels in images])
    np.testing.assert_array_equal(resize_images(images, size), expected)
    images.flags.writeable = False
    np.testing.assert_array_equal(resize_images(images, size), expected)


def test_small_images_that_would_be_enlarged_are_left_as_they_are_where_asked() -> None:
    for data in (factory.make_jpeg(60, 40), factory.make_pixels(60, 40)):
        pixels = decode_image(data)
        found = decode_sizes(data, {59, 60, 61}, enlarge=False)
        np.testing.assert_array_equal(found[59], resize_image(pixels, 59))
        np.testing.assert_array_equal(found[60], pixels)
        np.testing.assert_array_equal(found[61], pixels)
    large = factory.make_pixels(65, 40)
    np.testing.assert_array_equal(decode_sizes(large, {99}, enlarge=False)[99], resize_image(large, 99))


@pytest.mark.parametrize(("width", "height"), [(32, 32), (200, 150), (31, 77), (400, 300), (128, 128), (7, 2)])
@pytest.mark.parametrize("size", [1, 33, 128])
def test_resize_is_pillows_bicubic(width: int, height: int, size: int) -> None:
    pixels = factory.make_pixels(width, height)
    expected = np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC))
    difference = np.abs(resize_image(pixels, size).astype(int) - expected)
    assert difference.max() <= 5
    assert difference.mean() < 0.3


def test_numpy_resizes_as_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    sides = [
        (1, 1, 5),
        (7, 2, 33),
        (600, 31, 64),
        (300, 520, 64),
        (2, 1100, 3),
        (64, 64, 64),
        (64, 90, 64),
        (33, 64, 64),
    ]
    for height, width, size in sides:
        for values in (256, 2):  # greys, and black and white, where the cubic overshoots
            pixels = (rng.integers(0, values, (height, width, 3)) * (255 // (values - 1))).astype(np.uint8)
            expected = resize_image(pixels, size)
            with monkeypatch.context() as patch:
                patch.setitem(sys.modules, "torch", None)
                np.testing.assert_array_equal(resize_image(pixels, size), expected)


@pytest.mark.parametrize("width", [7, 31, 33, 127])
@pytest.mark.parametrize("height", [5, 64, 127])
def test_up_to_four_times_the_target_the_fast_path_is_exact(width: int, height: int) -> None:
    for data in (
        factory.make_jpeg(width, height),
        factory.make_png(width, height),
        factory.make_rotated(6, "JPEG", width, height),
    ):
        np.testing.assert_array_equal(decode_resized(data, 32), resize_image(decode_image(data), 32))


@pytest.mark.parametrize(("width", "height"), [(128, 128), (300, 140), (1000, 700), (90, 900), (1500, 130)])
def test_past_that_it_stays_close(width: int, height: int) -> None:
    for data in (factory.make_jpeg(width, height, quality=90), factory.make_png(width, height), factory.make_cmyk()):
        difference = decode_resized(data, 32).astype(int) - resize_image(decode_image(data), 32)
        assert np.abs(difference).mean() < 2
        assert np.abs(difference).max() < 12


def test_large_jpegs_are_decoded_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = []
    original = ImageFile.ImageFile.load

    def load(self: ImageFile.ImageFile) -> object:
        if self.tile:
            loaded.append(self.size)
        return original(self)

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    decode_resized(factory.make_jpeg(640, 512), 32)
    decode_resized(factory.make_jpeg(640, 127), 32)
    assert loaded == [(80, 64), (640, 127)]  # 512 / 8 is the least that leaves 2 x 32; a side under 4 x 32 forbids it


@pytest.mark.parametrize(("width", "height"), [(37, 23), (700, 600), (2000, 1000)])
def test_several_sizes_are_those_decoded_one_by_one(width: int, height: int) -> None:
    for data in (factory.make_jpeg(width, height), factory.make_rotated(6, "PNG", width, height)):
        together = decode_sizes(data, {16, 24, 64, 200})
        assert set(together) == {16, 24, 64, 200}
        for size, pixels in together.items():
            np.testing.assert_array_equal(pixels, decode_resized(data, size))


def test_sizes_of_one_scale_share_one_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    loads = []
    original = ImageFile.ImageFile.load

    def load(self: ImageFile.ImageFile) -> object:
        if self.tile:
            loads.append(self.size)
        return original(self)

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    decode_sizes(factory.make_jpeg(640, 512), {128, 130, 200})  # 512 pixels are drafted for 128 alone
    assert sorted(loads) == [(320, 256), (640, 512)]
    loads.clear()
    decode_sizes(factory.make_png(640, 512), {16, 128, 200})
    assert loads == [(640, 512)]


def test_without_sizes_the_header_is_checked() -> None:
    assert decode_sizes(factory.make_truncated(), ()) == {}
    with pytest.raises(BadItemError, match="over the limit of 850"):
        decode_sizes(factory.make_jpeg(), (), 850)
    with pytest.raises(BadItemError, match="not an image"):
        decode_sizes(b"text", ())


def test_threads_agree() -> None:
    data = [factory.make_jpeg(90 + i, 70, i) for i in range(12)]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(lambda item: decode_resized(item, 24), data * 3))
    for item, pixels in zip(data * 3, together, strict=True):
        np.testing.assert_array_equal(pixels, decode_resized(item, 24))


@pytest.mark.parametrize(("side", "kind", "media_type"), [(64, "PNG", "image/png"), (66, "JPEG", "image/jpeg")])
def test_thumbnails_as_files(side: int, kind: str, media_type: str) -> None:
    """Tiny ones are PNGs with exactly the decoded pixels, others JPEGs of the same shape."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 80, 3), np.uint8)
    content, found = encode_thumbnail(pixels, side)
    image = Image.open(io.BytesIO(content))
    assert (image.format, found, image.size) == (kind, media_type, (side, round(side / 2)))
    if kind == "PNG":
        np.testing.assert_array_equal(np.array(image), decode_thumbnail(pixels, side))
