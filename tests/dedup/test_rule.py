"""Codes in two parts, against loops: what is certain, what is looked at, and mirror images."""

import imagehash
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from distillhash.codes import Codes
from distillhash.dedup.codes import HASH_PIXELS
from distillhash.dedup.groups import (
    HASH_BITS,
    MOST_OPEN,
    Rule,
    central_rows,
    match,
    open_pairs,
    rule_parts,
    star_groups,
)
from image_factory import make_pixels

FEATURES = 128
RULE = Rule(40, hashes=1, n_features=FEATURES, hash_radius=12, open_radius=60, open_features=20, open_hash=24)


def two_parts(n: int, seed: int) -> tuple[Codes, NDArray[np.uint8]]:
    """Clusters whose features, hash, or mirrored hash are near, in all mixtures."""
    rng = np.random.default_rng(seed)
    bits = rng.integers(0, 2, (n // 6, FEATURES + HASH_BITS), np.uint8)[rng.integers(0, n // 6, n)]
    share = rng.choice([0.0, 0.02, 0.08, 0.3], (n, 2))
    flips = np.concatenate([np.repeat(share[:, :1], FEATURES, 1), np.repeat(share[:, 1:], HASH_BITS, 1)], axis=1)
    bits ^= (rng.random(bits.shape) < flips).astype(np.uint8)
    turned = rng.random(n) < 0.3
    bits[turned, FEATURES + 1 :: 2] ^= 1
    return Codes.from_packed(np.packbits(bits, axis=1), bits.shape[1]), bits


def said(a: NDArray[np.uint8], b: NDArray[np.uint8], rule: Rule) -> tuple[int, int]:
    """The rule, typed again."""
    features, straight = int((a[:FEATURES] != b[:FEATURES]).sum()), int((a[FEATURES:] != b[FEATURES:]).sum())
    odd = a[FEATURES:].reshape(16, 16).copy()
    odd[:, 1::2] ^= 1
    turned = int((odd.ravel() != b[FEATURES:]).sum())
    away = min(straight, turned) if features <= rule.open_features or turned <= rule.hash_radius else straight
    if away <= rule.hash_radius or features + away <= rule.radius:
        return 2, features + away
    is_open = features <= rule.open_features or features + away <= rule.open_radius or away <= rule.open_hash
    return int(is_open), features + away


def test_the_rule_is_as_typed_again() -> None:
    codes, bits = two_parts(300, 0)
    a, b = np.random.default_rng(1).integers(0, 300, (2, 3000))
    expected = [said(bits[i], bits[j], RULE) for i, j in zip(a, b, strict=True)]
    verdicts, distances = RULE.judge(codes[a], codes[b])
    assert list(zip(verdicts.tolist(), distances.tolist(), strict=True)) == expected
    assert set(verdicts.tolist()) == {0, 1, 2}


def test_parts_hold_all_that_the_rule_takes_by_hash_or_code() -> None:
    codes, bits = two_parts(240, 2)
    parts = rule_parts(codes, RULE)
    for i in range(240):
        for j in range(i):
            features = int((bits[i, :FEATURES] != bits[j, :FEATURES]).sum())
            straight = int((bits[i, FEATURES:] != bits[j, FEATURES:]).sum())
            if features <= RULE.open_features or straight <= RULE.open_hash or features + straight <= RULE.open_radius:
                assert parts[i] == parts[j]


def test_what_is_looked_at_is_open_and_joined_by_no_chain() -> None:
    codes, bits = two_parts(240, 3)
    parts = rule_parts(codes, RULE)
    pairs, chain = open_pairs(codes, RULE, parts)
    assert len(pairs)
    for i, j in pairs.tolist():
        assert said(bits[i], bits[j], RULE)[0] == 1 and chain[i] != chain[j] and i < j
    for i in range(240):
        for j in range(i):
            if parts[i] == parts[j] and said(bits[i], bits[j], RULE)[0] == 2:
                assert chain[i] == chain[j]
    assert np.bincount(pairs.ravel()).max() <= 2 * MOST_OPEN + 240 // 6


def test_stars_take_what_was_found_to_be_one_picture() -> None:
    bits = np.zeros((3, FEATURES + HASH_BITS), np.uint8)
    bits[1, 90:128] = bits[1, 200:260] = bits[2, 100:160] = 1
    codes = Codes.from_packed(np.packbits(bits, axis=1), bits.shape[1])
    assert star_groups(codes, RULE).keeper.tolist() == [0, 1, 2]
    parts = np.zeros(3, np.int32)
    found = star_groups(codes, RULE, parts=parts, linked=np.array([[2, 0]]))
    assert found.keeper.tolist() == [0, 1, 0] and found.distance.tolist() == [0, 0, 60]
    assert star_groups(codes, RULE, parts=parts, linked=np.array([[0, 2]]), apart=np.array([[2, 0]])).groups() == []


def test_matches_come_certain_first() -> None:
    codes, bits = two_parts(200, 4)
    found = match(codes[:60], codes[60:], RULE, most=3)
    for query in range(60):
        judged = [(said(bits[query], bits[60 + row], RULE), row) for row in range(140)]
        ranked = sorted((-verdict, distance, row) for (verdict, distance), row in judged if verdict)
        expected = [(row, distance, verdict == -2) for verdict, distance, row in ranked[:3]]
        kept = found.row[query] >= 0
        columns = (found.row[query, kept], found.distance[query, kept], found.certain[query, kept])
        same_part = [one for one in expected if one[2]]
        assert list(zip(*(column.tolist() for column in columns), strict=True))[: len(same_part)] == same_part
        assert found.count[query] == sum(verdict == 2 for (verdict, _), _ in judged)


def test_the_hash_of_a_mirror_image_is_known() -> None:
    """The library's hash of mirrored pixels, and the same by exchanging every other bit, differ in a few bits near the median."""
    for seed in range(5):
        pixels = Image.fromarray(make_pixels(HASH_PIXELS, HASH_PIXELS, seed))
        straight, mirrored = (
            imagehash.phash(image, hash_size=16).hash.astype(np.uint8)
            for image in (pixels, pixels.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
        )
        bits = np.zeros((2, FEATURES + HASH_BITS), np.uint8)
        bits[:, FEATURES:] = straight.ravel(), mirrored.ravel()
        codes = Codes.from_packed(np.packbits(bits, axis=1), bits.shape[1])
        _, distance = RULE.judge(codes[:1], codes[1:])
        straight[:, 1::2] ^= 1
        assert distance[0] == min((straight != mirrored).sum(), (bits[0] != bits[1]).sum()) <= 24


def test_central_is_what_most_of_its_part_are_near_to() -> None:
    rng = np.random.default_rng(5)
    bits = np.repeat(rng.integers(0, 2, (1, FEATURES + HASH_BITS), np.uint8), 8, axis=0)
    bits[7, 5:40] ^= 1
    bits[6, 90:100] ^= 1  # near to all but the last
    codes = Codes.from_packed(np.packbits(bits, axis=1), bits.shape[1])
    central = central_rows(codes, RULE.certain(), np.zeros(8, np.int32))
    near = [sum(said(bits[i], bits[j], RULE.certain())[0] == 2 for j in range(8) if j != i) for i in range(8)]
    assert central.tolist() == [count >= 0.9 * max(near) for count in near]


@pytest.mark.parametrize("n", [0, 1])
def test_next_to_nothing(n: int) -> None:
    codes, _ = two_parts(12, 6)
    codes = codes[:n]
    pairs, chain = open_pairs(codes, RULE, rule_parts(codes, RULE))
    assert len(pairs) == 0 and chain.tolist() == list(range(n)) and star_groups(codes, RULE).groups() == []
