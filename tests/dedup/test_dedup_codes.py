"""The codes of a collection, and the perceptual hashes behind them: those of the library, from the cache or not."""

from pathlib import Path

import imagehash
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from distillhash.backbones import Backbone, FeatureCache, iter_features, make_backbone
from distillhash.backbones.base import Pixels
from distillhash.dedup import codes
from distillhash.dedup.codes import (
    FEWEST_TO_LEARN,
    RANDOM_BITS,
    HashedImages,
    Settings,
    encode_collection,
)
from distillhash.dedup.groups import HASH_BITS
from distillhash.errors import DataError, ParameterError
from distillhash.methods import make_hasher
from distillhash.sources import BadItemError, EmbeddingSource, ImageSource, decode, decode_resized, open_source
from distillhash.sources.decode import resize_image
from image_factory import make_jpeg, make_pixels, make_png


@pytest.fixture
def source(tmp_path: Path) -> ImageSource:
    for seed in range(7):
        (tmp_path / f"{seed}.png").write_bytes(make_png(80, 60, seed))
    (tmp_path / "large.jpg").write_bytes(make_jpeg(900, 700))
    (tmp_path / "x.jpg").write_bytes(b"\xff\xd8 no image")
    opened = open_source(tmp_path)
    assert isinstance(opened, ImageSource)
    return opened


def look(images: HashedImages, cache: FeatureCache | None = None) -> HashedImages:
    """The same, after features of all items were extracted."""
    list(iter_features(images, Brightness(), cache=cache))
    return images


def test_they_are_the_librarys(source: ImageSource) -> None:
    images = look(HashedImages(source, cache=None))
    for row in range(8):
        data = images.read(row)
        assert data == source.read(row) and images.path(row) == source.path(row)
        wanted = imagehash.phash(Image.fromarray(resize_image(decode_resized(data, 224), 64)), hash_size=16).hash
        np.testing.assert_array_equal(np.unpackbits(images.hashes[row]).astype(bool), wanted.ravel())
    assert not images.hashes[8].any()
    again = HashedImages(source, cache=None)
    chosen = look(again.select(np.array([3, 1])))
    assert chosen.read(1) == source.read(1) and chosen.path(1) == source.path(1) and chosen.keys[1] == source.keys[1]
    np.testing.assert_array_equal(again.hashes[:4], [np.zeros(32), images.hashes[1], np.zeros(32), images.hashes[3]])


@pytest.mark.parametrize("pattern", [None, 0xFF, 0x7F])  # the last two are no numbers where bits are taken for floats
def test_the_cache_keeps_every_bit(
    source: ImageSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: int | None
) -> None:
    if pattern is not None:
        monkeypatch.setattr(
            codes, "perceptual_bits", lambda pixels: np.full((len(pixels), HASH_BITS // 8), pattern, np.uint8)
        )
    cache = FeatureCache(tmp_path / "cache")
    plain = look(HashedImages(source, cache=None))
    features_first = look(HashedImages(source, cache=None), cache)
    first = look(HashedImages(source, cache=cache), cache)  # the features are there, and the hashes are not
    first.close()
    monkeypatch.setattr(codes, "perceptual_bits", lambda _: pytest.fail("it is in the cache"))
    again = look(HashedImages(source, cache=cache), cache)
    again.close()
    for images in (features_first, first, again):
        np.testing.assert_array_equal(images.hashes, plain.hashes)
        np.testing.assert_array_equal(images.flat, plain.flat)


def test_an_image_is_decoded_once(source: ImageSource, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for a JPEG file that features and hash take at two scales."""
    decode_at = decode.Encoded.pixels
    sizes: list[int | None] = []

    def counted(encoded: decode.Encoded, draft_size: int | None = None) -> NDArray[np.uint8]:
        sizes.append(draft_size)
        return decode_at(encoded, draft_size)

    monkeypatch.setattr(decode.Encoded, "pixels", counted)
    look(HashedImages(source, cache=None).select(np.arange(7)))
    assert len(sizes) == 7


def test_codes_go_on_with_them(source: ImageSource) -> None:
    made, coded = encode_collection(source, Settings())
    assert made.n_bits == coded.codes.n_bits == RANDOM_BITS + 2 * HASH_BITS and "perceptual hash" in made.description
    assert coded.rows.tolist() == list(range(8)) and [item.key for item in coded.skipped] == ["x.jpg"]
    features, once, twice = np.split(coded.codes.packed, [RANDOM_BITS // 8, (RANDOM_BITS + HASH_BITS) // 8], axis=1)
    images = look(HashedImages(source, cache=None))
    np.testing.assert_array_equal(once, images.hashes[:8])
    np.testing.assert_array_equal(twice, once)
    np.testing.assert_array_equal(features, made.model.encode(source.select(np.arange(8))).packed)
    np.testing.assert_array_equal(made.encode(source).codes.packed, coded.codes.packed)


def test_the_pixel_limit_holds(source: ImageSource) -> None:
    _, coded = encode_collection(source, Settings(max_pixels=80 * 60))
    assert [item.key for item in coded.skipped] == ["large.jpg", "x.jpg"]


def test_itq_codes_where_they_can_be_fitted() -> None:
    rng = np.random.default_rng(0)
    wide = rng.standard_normal((FEWEST_TO_LEARN, 520)).astype(np.float32)
    encoder, coded = encode_collection(open_source(wide), Settings())
    np.testing.assert_array_equal(coded.codes.packed, encoder.model.hasher.encode(wide).packed)
    assert encoder.model.hasher.method == "itq" and "fitted on 1,000 of the items" in encoder.description
    for fewer in (wide[:-1], wide[:, :500]):
        encoder, _ = encode_collection(open_source(fewer), Settings())
        assert encoder.model.hasher.method == "lsh" and encoder.model.n_bits == RANDOM_BITS


class Counted(ImageSource):
    """Pictures of 16 x 12 pixels, every hundredth of them unreadable; counts reads."""

    def __init__(self, n: int) -> None:
        self.name, self.labels, self.label_names = "counted", None, None
        self.keys, self.reads = [f"{row}" for row in range(n)], np.zeros(n, int)

    def select(self, rows: NDArray[np.intp]) -> "Counted":
        """Of the same pictures."""
        part = Counted(0)
        part.__dict__ |= {"keys": [self.keys[row] for row in rows], "reads": self.reads}
        return part

    def read(self, row: int) -> NDArray[np.uint8]:
        """Pixels."""
        number = int(self.keys[row])
        self.reads[number] += 1
        if number % 100 == 99:
            raise BadItemError("torn")
        pixels: NDArray[np.uint8] = make_pixels(16, 12, number)
        return pixels


@pytest.mark.parametrize(("least", "most"), [(50, 150), (50, 1000), (199, 200)])
def test_every_image_is_read_once(monkeypatch: pytest.MonkeyPatch, least: int, most: int) -> None:
    """Also where ITQ is fitted on a part of them, or could not be fitted because too few can be read."""
    monkeypatch.setattr(codes, "FEWEST_TO_LEARN", least)
    monkeypatch.setattr(codes, "LEARN_FROM", most)
    monkeypatch.setattr(codes, "LEARNED_BITS", 32)
    monkeypatch.setattr(codes, "IMAGE_SIZE", 32)
    monkeypatch.setattr(codes, "RANDOM_BITS", 512)
    source = Counted(200)
    encoder, coded = encode_collection(source, Settings())
    assert (source.reads == 1).all()
    assert coded.rows.tolist() == [row for row in range(200) if row % 100 != 99]
    assert [item.key for item in coded.skipped] == ["99", "199"]
    assert encoder.model.hasher.method == ("lsh" if least == 199 else "itq")
    np.testing.assert_array_equal(encoder.encode(Counted(200)).codes.packed, coded.codes.packed)


class Brightness(Backbone):
    """Means of the channels of 4 x 4 squares."""

    def __init__(self) -> None:
        super().__init__("brightness", 48, 16)

    def embed(self, pixels: Pixels) -> NDArray[np.float32]:
        """Of centred pixels."""
        squares = pixels.reshape(len(pixels), 4, 4, 4, 4, 3).mean(axis=(2, 4), dtype=np.float64)
        return np.asarray(squares.reshape(len(pixels), 48) - 128, np.float32)


def test_another_backbone(source: ImageSource) -> None:
    encoder, coded = encode_collection(source, Settings(backbone=Brightness()))
    assert encoder.description.startswith("1024 random hyperplanes over brightness at 16 pixels")
    resized = np.stack([decode_resized(source.read(row), 16) for row in coded.rows.tolist()])
    planes = make_hasher("lsh", 1024, centre=False).fit(np.eye(2, 48))
    np.testing.assert_array_equal(coded.codes.packed[:, :128], planes.encode(Brightness().embed(resized)).packed)
    with pytest.raises(ParameterError, match="backbone brightness is not needed, for the model x has its own"):
        encode_collection(source, Settings(model="x", backbone=Brightness()))
    vectors = EmbeddingSource("v", np.eye(3, 4))
    with pytest.raises(ParameterError, match="backbone brightness is not needed, for v holds vectors"):
        encode_collection(vectors, Settings(backbone=Brightness()))
    with pytest.raises(DataError, match="takes embeddings"):
        encode_collection(source, Settings(backbone=make_backbone("embeddings")))
