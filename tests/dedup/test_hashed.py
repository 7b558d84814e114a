"""Perceptual hashes behind the codes: those of the library, from the cache or not, and nothing lost on the way."""

from pathlib import Path

import imagehash
import numpy as np
import pytest
from PIL import Image

from distillhash.backbones import FeatureCache
from distillhash.dedup import hashed
from distillhash.dedup.encoder import RANDOM_BITS, make_encoder
from distillhash.dedup.hashed import HASH_BITS, HashedImages
from distillhash.sources import BadItemError, ImageSource, decode_resized, open_source
from image_factory import make_jpeg, make_png


@pytest.fixture
def source(tmp_path: Path) -> ImageSource:
    for seed in range(7):
        (tmp_path / f"{seed}.png").write_bytes(make_png(80, 60, seed))
    (tmp_path / "large.jpg").write_bytes(make_jpeg(900, 700))
    (tmp_path / "x.jpg").write_bytes(b"\xff\xd8 no image")
    opened = open_source(tmp_path)
    assert isinstance(opened, ImageSource)
    return opened


def test_they_are_the_librarys(source: ImageSource) -> None:
    images = HashedImages(source, cache=None)
    for row in range(8):
        data = images.read(row)
        assert data == source.read(row) and images.path(row) == source.path(row)
        wanted = imagehash.phash(Image.fromarray(decode_resized(data, 64)), hash_size=16).hash
        np.testing.assert_array_equal(np.unpackbits(images.hashes[row]).astype(bool), wanted.ravel())
    with pytest.raises(BadItemError):
        images.read(8)
    assert not images.hashes[8].any()
    chosen = images.select(np.array([3, 1]))
    chosen.read(1)
    np.testing.assert_array_equal(chosen.hashes[1], images.hashes[1])


@pytest.mark.parametrize("pattern", [None, 0xFF, 0x7F])  # the last two are no numbers where bits are taken for floats
def test_the_cache_keeps_every_bit(
    source: ImageSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: int | None
) -> None:
    if pattern is not None:
        monkeypatch.setattr(hashed, "perceptual_bits", lambda _: np.full(HASH_BITS // 8, pattern, np.uint8))
    plain = HashedImages(source, cache=None)
    first = HashedImages(source, cache=FeatureCache(tmp_path / "cache"))
    for row in range(8):
        plain.read(row), first.read(row)
    first.close()
    np.testing.assert_array_equal(first.hashes, plain.hashes)
    monkeypatch.setattr(hashed, "perceptual_bits", lambda _: pytest.fail("it is in the cache"))
    again = HashedImages(source, cache=FeatureCache(tmp_path / "cache"))
    for row in range(8):
        again.read(row)
    again.close()
    np.testing.assert_array_equal(again.hashes, plain.hashes)


def test_codes_go_on_with_them(source: ImageSource) -> None:
    made = make_encoder(source)
    coded = made.encode(source)
    assert made.n_bits == coded.codes.n_bits == RANDOM_BITS + 2 * HASH_BITS and "perceptual hash" in made.description
    assert coded.rows.tolist() == list(range(8)) and [item.key for item in coded.skipped] == ["x.jpg"]
    features, once, twice = np.split(coded.codes.packed, [RANDOM_BITS // 8, (RANDOM_BITS + HASH_BITS) // 8], axis=1)
    images = HashedImages(source, cache=None)
    for row in range(8):
        images.read(row)
    np.testing.assert_array_equal(once, images.hashes[:8])
    np.testing.assert_array_equal(twice, once)
    mirrored = make_encoder(source, mirror=True)  # a mirror image's hash has nothing in common with its picture's
    assert mirrored.n_bits == RANDOM_BITS and "perceptual" not in mirrored.description
    np.testing.assert_array_equal(mirrored.encode(source).codes.packed, features)


def test_the_pixel_limit_holds(source: ImageSource) -> None:
    coded = make_encoder(source).encode(source, max_pixels=80 * 60)
    assert [item.key for item in coded.skipped] == ["large.jpg", "x.jpg"]
