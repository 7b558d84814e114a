"""Damaged files of every format, made by the thousand: an image or a bad item, within seconds, and without much memory."""

from __future__ import annotations

import multiprocessing
import struct
import time
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
import pytest
from PIL import Image, features

import image_factory as factory
from distillhash.sources import BadItemError, decode_image, decode_resized, decode_thumbnail
from distillhash.sources.decode import damage_of, image_size
from distillhash.sources.whole import whole_picture
from fuzzing import peak_mb

Mutation = Callable[[bytearray, np.random.Generator], bytes]
LONGEST, MOST_MEMORY = 5.0, 2**30  # processor seconds of one file, bytes of the process


def zoo() -> list[bytes]:
    """A small file of every format and kind of pixel, animations and documents included."""
    pixels, other = factory.make_pixels(), factory.make_pixels(seed=1)
    image, second = Image.fromarray(pixels), Image.fromarray(other)
    alpha = image.copy()
    alpha.putalpha(Image.fromarray(other[..., 0]))
    grey = Image.fromarray(pixels[..., 0])
    several: dict[str, Any] = {"save_all": True, "append_images": [second, image]}
    kinds: list[tuple[str, dict[str, Any]]] = [
        ("JPEG", {"quality": 90}),
        ("JPEG", {"progressive": True, "comment": b"hello" * 50}),
        ("PNG", {}),
        ("PNG", several),
        ("WEBP", {"lossless": True}),
        ("WEBP", several),
        ("GIF", several),
        ("BMP", {}),
        ("PPM", {}),
        ("TIFF", {}),
        ("TIFF", several),
        ("MPO", several),
        *(("TIFF", {"compression": name}) for name in ("tiff_lzw", "tiff_deflate", "packbits", "jpeg")),
        *([("AVIF", {}), ("AVIF", several)] if features.check("avif") else []),
    ]
    files = [factory.encode(image, suffix, **options) for suffix, options in kinds]
    files += [factory.encode(alpha, suffix) for suffix in ("PNG", "WEBP", "TIFF", "GIF")]
    files += [
        factory.encode(grey.convert(mode), suffix) for mode in ("L", "1") for suffix in ("PNG", "TIFF", "BMP", "PPM")
    ]
    files += [factory.encode(image.convert(mode), "TIFF") for mode in ("CMYK", "YCbCr", "LAB")]
    files += [factory.encode(image.quantize(16), suffix) for suffix in ("PNG", "GIF", "BMP", "TIFF")]
    files += [factory.make_rotated(6, suffix) for suffix in ("JPEG", "PNG", "TIFF", "WEBP")]
    files += [
        factory.make_png16(other[..., 0].astype(np.uint16) * 257),
        factory.make_cmyk(),
        factory.make_transparent_palette(),
    ]
    files += [factory.encode(other[..., 0].astype(np.float32), "TIFF"), factory.make_cut(), factory.make_gif()]
    files += [b"P3 3 2 255\n" + b"12 200 7 " * 6, b"P2 # x\n4 1 900\n1 2 3 900", b"P1 4 1 1 0 1 0", _run_length_bmp()]
    return files


def _run_length_bmp() -> bytes:
    body = b"\x05\x01\x00\x00" * 4 + b"\x00\x01"
    palette = bytes(range(16))
    header = struct.pack("<IiiHHIIiiII", 40, 5, 4, 1, 8, 1, len(body), 0, 0, 4, 4)
    return b"BM" + struct.pack("<IHHI", 54 + 16 + len(body), 0, 0, 54 + 16) + header + palette + body


def flip(data: bytearray, rng: np.random.Generator) -> bytes:
    """Other bytes at a few places, more often near the beginning."""
    for _ in range(rng.integers(1, 9)):
        place = int(len(data) * rng.random() ** rng.choice([1, 3]))
        data[place] = rng.choice(
            [0, 1, 127, 128, 255, int(rng.integers(256)), data[place] ^ (1 << int(rng.integers(8)))]
        )
    return bytes(data)


def cut(data: bytearray, rng: np.random.Generator) -> bytes:
    """The beginning, or without a part, or a part twice, or with rubbish behind."""
    low, high = sorted(int(place) for place in rng.integers(0, len(data) + 1, 2))
    return [
        bytes(data[:high]),
        bytes(data[:low] + data[high:]),
        bytes(data[:high] + data[low:]),
        bytes(data + data[low:high]),
    ][int(rng.integers(4))]


def number(data: bytearray, rng: np.random.Generator) -> bytes:
    """A length, a size or an offset that is wild: 2 or 4 bytes, in either order."""
    width, order = int(rng.choice([2, 4])), rng.choice(["big", "little"])
    place = int(rng.integers(0, max(1, min(len(data), 400) - width)))
    value = int(rng.choice([0, 1, 255, 256, 8000, 12000, 30000, 65535, 2**24, 2**31 - 1, 2**32 - 1])) % 256**width
    data[place : place + width] = value.to_bytes(width, order)
    return bytes(data)


def chunks(data: bytearray, rng: np.random.Generator) -> bytes:
    """PNG chunks with right checksums: contents flipped, order changed, some left out, doubled or made up. Other formats: flipped."""
    if not data.startswith(b"\x89PNG"):
        return number(bytearray(flip(data, rng)), rng)
    parts, place = [], 8
    while place + 12 <= len(data):
        length = struct.unpack_from(">I", data, place)[0]
        parts.append((bytes(data[place + 4 : place + 8]), bytearray(data[place + 8 : place + 8 + length])))
        place += 12 + length
    if not parts:
        return flip(data, rng)
    for _ in range(rng.integers(1, 4)):
        choice, one = int(rng.integers(5)), int(rng.integers(len(parts)))
        kind, body = parts[one]
        if choice == 0 and len(body):
            parts[one] = (kind, bytearray(flip(body, rng)))
        elif choice == 1:
            parts.insert(int(rng.integers(len(parts) + 1)), parts[one])
        elif choice == 2 and len(parts) > 1:
            del parts[one]
        elif choice == 3:
            made = rng.choice(
                [b"zTXt", b"iCCP", b"tRNS", b"eXIf", b"acTL", b"fcTL", b"fdAT", b"iTXt", b"IDAT", b"PLTE", b"IEND"]
            )
            parts.insert(one, (bytes(made), bytearray(rng.integers(0, 256, int(rng.integers(40)), np.uint8).tobytes())))
        elif kind == b"IHDR":
            struct.pack_into(">II", body, 0, *(int(side) for side in rng.choice([1, 37, 5000, 13000, 65535, 2**31], 2)))
    made_of = (
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in parts
    )
    return bytes(data[:8]) + b"".join(made_of)


MUTATIONS: list[Mutation] = [flip, cut, number, chunks]


def fuzz(seed: int, n: int) -> int:
    """Decode ``n`` damaged files; how many gave an image. An error tells which one took too long or too much, or raised."""
    warnings.simplefilter("ignore")
    rng, files = np.random.default_rng(seed), zoo()
    images = 0
    decoders: list[Callable[[bytes], object]] = [decode_image] * 3 + [
        lambda data: decode_resized(data, 24),
        lambda data: decode_thumbnail(data, 16),
        whole_picture,
    ]
    for place in range(n):
        data = files[int(rng.integers(len(files)))]
        for _ in range(rng.integers(1, 3)):
            data = MUTATIONS[int(rng.integers(len(MUTATIONS)))](bytearray(data or b"\0"), rng)
        decode, started = decoders[int(rng.integers(len(decoders)))], time.process_time()
        damage_of(data)
        try:
            decoded = decode(data)
            images += 1
            if decode is decode_image:
                assert isinstance(decoded, np.ndarray) and image_size(data) == decoded.shape[1::-1]
        except BadItemError:
            pass
        except BaseException as error:
            raise AssertionError(f"seed {seed}, file {place}: {type(error).__name__} {error}") from error
        seconds, memory = time.process_time() - started, _most_memory()
        if seconds > LONGEST or memory > MOST_MEMORY:
            raise AssertionError(f"seed {seed}, file {place}: {seconds:.1f} s, {memory:,} bytes")
    return images


def _most_memory() -> int:
    return round(peak_mb() * 2**20)


def test_damaged_files_are_images_or_bad_items() -> None:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        assert 200 < pool.submit(fuzz, 0, 2_000).result(timeout=120) < 1_800


@pytest.mark.long
def test_two_hundred_thousand_damaged_files() -> None:
    """In processes of their own, whose memory is measured; one that hangs ends the test."""
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        assert all(pool.map(fuzz, range(1, 41), [5_000] * 40, timeout=1_800))
