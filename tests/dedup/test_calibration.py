"""Edits of an image, decoded again; stated false pairs against formulas and against codes whose duplicates are known."""

from io import BytesIO

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy.stats import binom

from distillhash.codes import Codes, hamming_distances
from distillhash.dedup import edits
from distillhash.dedup.calibration import Calibration, Copies, calibrate
from distillhash.errors import ParameterError
from distillhash.sources import decode_image, open_source
from image_factory import make_pixels

PIXELS = make_pixels(80, 60, seed=3)
IMAGE = Image.fromarray(PIXELS)


def packed(bits: NDArray[np.uint8]) -> Codes:
    return Codes.from_packed(np.packbits(bits, axis=1), bits.shape[1])


def flipped(bits: NDArray[np.uint8], share: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.uint8]:
    return bits ^ (rng.random(bits.shape) < share[:, None]).astype(np.uint8)


def known_copies(rng: np.random.Generator, n_bits: int, share: float) -> Copies:
    """Six copies of 100 codes, each bit flipped with probability up to ``share``."""
    original = rng.integers(0, 2, (100, n_bits), np.uint8)
    made = np.stack([flipped(original, rng.uniform(0, share, 100), rng) for _ in range(6)], axis=1)
    first, second = np.triu_indices(6, 1)
    away = (made != original[:, None]).sum(axis=2).astype(np.int64)
    return Copies(list("abcdef"), away, (made[:, first] != made[:, second]).sum(axis=2).astype(np.int64))


def expected(found: Calibration) -> float:
    assert found.expected_false_pairs is not None
    return found.expected_false_pairs


def interval(found: Calibration) -> tuple[float, float]:
    assert found.false_pairs_interval is not None
    return found.false_pairs_interval


@pytest.mark.parametrize("duplicates", [0, 400])
def test_independent_bits_follow_the_binomial_law(duplicates: int) -> None:
    rng = np.random.default_rng(1)
    n, n_bits = 3000, 64
    bits = rng.integers(0, 2, (n, n_bits), np.uint8)
    bits = np.concatenate([bits, flipped(bits[:duplicates], rng.uniform(0, 0.06, duplicates), rng)])
    copies = known_copies(rng, n_bits, 0.06)
    pairs = len(bits) * (len(bits) - 1) / 2
    for radius in (12, 14, 16):
        found = calibrate(packed(bits), copies=copies, radius=radius)
        wanted = pairs * binom.cdf(radius, n_bits, 0.5)
        assert wanted / 2 < expected(found) < 2 * wanted
        low, high = interval(found)
        assert low <= expected(found) <= high


def test_correlated_codes_with_duplicates_among_them() -> None:
    """Pictures in loose clusters, which is what makes tails heavy; truth is counted over pairs known to be different."""
    rng = np.random.default_rng(2)
    n, n_bits = 3000, 256
    directions = rng.standard_normal((24, n_bits))
    bits = ((rng.standard_normal((n, 24)) @ directions + 2.5 * rng.standard_normal((n, n_bits))) > 0).astype(np.uint8)
    bits = np.concatenate([bits, flipped(bits[:500], rng.uniform(0, 0.08, 500), rng)])
    picture = np.concatenate([np.arange(n), np.arange(500)])
    codes, copies = packed(bits), known_copies(rng, n_bits, 0.08)
    different = np.triu(picture[:, None] != picture, 1)
    distances = hamming_distances(codes, codes)[different]
    compared = 0
    for radius in range(30, 80, 6):
        truth = int(np.count_nonzero(distances <= radius))
        if truth >= 20:
            found = calibrate(codes, copies=copies, radius=radius)
            assert truth / 1.25 < expected(found) < 1.25 * truth, radius
            low, high = interval(found)
            assert low <= truth <= high, radius
            compared += 1
    assert compared >= 3


@pytest.mark.parametrize("times", [2, 3])
def test_every_image_several_times(times: int) -> None:
    """Then every pair of different pictures is there ``times ** 2`` times, and the copies are no false pairs."""
    rng = np.random.default_rng(8)
    bits = rng.integers(0, 2, (2000, 64), np.uint8)
    copies = known_copies(rng, 64, 0.06)
    once = hamming_distances(packed(bits), packed(bits))[np.triu_indices(2000, 1)]
    for radius in (14, 16, 18):
        found = calibrate(packed(np.tile(bits, (times, 1))), copies=copies, radius=radius)
        truth = times**2 * int(np.count_nonzero(once <= radius))
        low, high = interval(found)
        assert truth / 1.3 < expected(found) < 1.3 * truth and low <= truth <= high, radius


def test_the_radius_finds_copies_and_stops_there() -> None:
    rng = np.random.default_rng(3)
    bits = rng.integers(0, 2, (2000, 256), np.uint8)
    copies = known_copies(rng, 256, 0.1)
    found = calibrate(packed(bits), copies=copies)
    assert found.radius == np.sort(copies.to_original.ravel())[int(np.ceil(0.99 * 600)) - 1]
    assert found.recall == np.mean(copies.to_original <= found.radius) and expected(found) < 0.5
    assert found.recall_by_edit.keys() == set("abcdef")
    text = found.sentence()
    assert text.startswith(f"radius {found.radius} of 256 bits: about 0 false pairs") and "among 2,000 images" in text


def test_the_radius_grows_where_nearly_all_it_adds_are_copies() -> None:
    """Copies as far again as the known ones, in a collection that has nothing else at such distances."""
    rng = np.random.default_rng(9)
    bits = rng.integers(0, 2, (2000, 256), np.uint8)
    copies = known_copies(rng, 256, 0.06)
    needed = int(np.sort(copies.to_original.ravel())[int(np.ceil(0.99 * 600)) - 1])
    with_copies = np.concatenate([bits, flipped(bits, rng.uniform(0, 0.11, 2000), rng)])
    distances = (with_copies[:2000] != with_copies[2000:]).sum(axis=1)
    found = calibrate(packed(with_copies), copies=copies)
    assert found.radius > needed and expected(found) < 1
    assert np.mean(distances <= found.radius) > np.mean(distances <= needed) + 0.1
    assert calibrate(packed(bits), copies=copies).radius == needed  # nothing there to grow for


def test_false_pairs_bound_the_radius() -> None:
    rng = np.random.default_rng(4)
    bits = rng.integers(0, 2, (2000, 64), np.uint8)
    copies = known_copies(rng, 64, 0.45)  # copies as far as strangers
    few = calibrate(packed(bits), copies=copies, most_false_pairs=5)
    more = calibrate(packed(bits), copies=copies, most_false_pairs=5000)
    assert expected(few) <= 5 < expected(more) <= 5000 and few.radius < more.radius
    assert few.recall is not None and few.recall < 0.9


def test_pairs_across_two_collections() -> None:
    rng = np.random.default_rng(5)
    one, other = (packed(rng.integers(0, 2, (n, 64), np.uint8)) for n in (1500, 2500))
    found = calibrate(one, other, copies=known_copies(rng, 64, 0.05), radius=15)
    wanted = 1500 * 2500 * binom.cdf(15, 64, 0.5)
    assert found.n_items == 4000 and wanted / 2 < expected(found) < 2 * wanted


def test_a_part_of_a_large_collection_tells_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(6)
    codes = packed(rng.integers(0, 2, (6000, 64), np.uint8))
    copies = known_copies(rng, 64, 0.05)
    monkeypatch.setattr("distillhash.dedup.calibration.MOST_COMPARED", 6000 * 640)
    wanted = 6000 * 5999 / 2 * binom.cdf(14, 64, 0.5)
    assert wanted / 2 < expected(calibrate(codes, copies=copies, radius=14)) < 2 * wanted


@pytest.mark.parametrize("n", [1, 2, 3, 7, 33])
def test_small_collections_find_their_copies(n: int) -> None:
    rng = np.random.default_rng(n)
    bits = rng.integers(0, 2, (n, 1024), np.uint8)
    both = packed(np.concatenate([bits, flipped(bits, np.full(n, 0.05), rng)]))
    found = calibrate(both, copies=known_copies(rng, 1024, 0.15))
    assert found.radius > 80
    for one in (found, calibrate(packed(bits), copies=known_copies(rng, 1024, 0.15))):
        told = one.unknown is None
        assert told == (one.expected_false_pairs is not None) == (one.false_pairs_interval is not None)
        assert not told or expected(one) < 1
        assert told or "cannot be told" in one.sentence()
    assert (found.unknown is None) == (2 * n >= 8)  # 28 pairs


def test_same_codes_same_answer() -> None:
    rng = np.random.default_rng(7)
    codes, copies = packed(rng.integers(0, 2, (500, 64), np.uint8)), known_copies(rng, 64, 0.1)
    assert calibrate(codes, copies=copies) == calibrate(codes, copies=copies)


def test_refusals() -> None:
    codes = packed(np.zeros((3, 16), np.uint8))
    for radius in (-1, 16):
        with pytest.raises(ParameterError, match=r"0\.\.15"):
            calibrate(codes, radius=radius)
    with pytest.raises(ParameterError, match="at least 0, got -1"):
        calibrate(codes, most_false_pairs=-1)


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
