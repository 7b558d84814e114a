from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from distillhash.codes import Codes, bytes_per_code, hamming_distances
from distillhash.errors import DataError, FormatError, ParameterError

N_BITS = [1, 7, 8, 12, 16, 33, 64, 65, 127, 128, 256, 512]
N_ROWS = [0, 1, 7, 33]


def random_signs(n: int, n_bits: int, seed: int = 0) -> NDArray[Any]:
    return np.random.default_rng(seed).choice(np.array([-1, 1], np.int8), size=(n, n_bits))


@pytest.mark.parametrize("n_bits", N_BITS)
@pytest.mark.parametrize("n", N_ROWS)
def test_round_trip_and_layout(n: int, n_bits: int) -> None:
    signs = random_signs(n, n_bits)
    codes = Codes.from_signs(signs)
    assert len(codes) == n
    assert codes.packed.shape == (n, bytes_per_code(n_bits))
    assert codes.signs().dtype == np.int8
    np.testing.assert_array_equal(codes.signs(), signs)
    for row in range(n):  # big-endian in each byte, pad bits zero: the text of the bits read as one number
        text = "".join("1" if sign > 0 else "0" for sign in signs[row]).ljust(8 * bytes_per_code(n_bits), "0")
        assert codes.packed[row].tobytes() == int(text, 2).to_bytes(bytes_per_code(n_bits), "big")
    assert Codes.from_packed(codes.packed, n_bits) == codes


@pytest.mark.parametrize("n_bits", N_BITS)
def test_hamming_distance_is_the_number_of_differing_signs(n_bits: int) -> None:
    a, b = random_signs(7, n_bits, 1), random_signs(33, n_bits, 2)
    expected = [[sum(x != y for x, y in zip(row, other, strict=True)) for other in b] for row in a]
    np.testing.assert_array_equal(hamming_distances(Codes.from_signs(a), Codes.from_signs(b)), expected)


def test_farthest_codes_of_512_bits_do_not_overflow() -> None:
    ones, minus = Codes.from_signs(np.ones((1, 512))), Codes.from_signs(-np.ones((1, 512)))
    assert hamming_distances(ones, minus).item() == 512


@given(st.lists(st.floats(allow_nan=False, width=32), min_size=1, max_size=40))
def test_sign_rule_sends_zero_to_plus_one(values: list[float]) -> None:
    codes = Codes.from_projection(np.array([values], np.float32))
    assert codes.signs()[0].tolist() == [1 if value >= 0 else -1 for value in values]


def test_negative_zero_is_plus_one() -> None:
    assert Codes.from_projection(np.array([[-0.0]])).signs().item() == 1


def test_indexing_keeps_codes() -> None:
    signs = random_signs(9, 33)
    codes = Codes.from_signs(signs)
    np.testing.assert_array_equal(codes[2:5].signs(), signs[2:5])
    np.testing.assert_array_equal(codes[[8, 0, 0]].signs(), signs[[8, 0, 0]])
    np.testing.assert_array_equal(codes[signs[:, 0] > 0].signs(), signs[signs[:, 0] > 0])
    np.testing.assert_array_equal(codes[-1].signs(), signs[-1:])
    with pytest.raises(IndexError, match="row 9 is out of range"):
        codes[9]
    with pytest.raises(ValueError, match="read-only"):
        codes.packed[0, 0] = 1


@pytest.mark.parametrize(
    ("packed", "n_bits", "error", "message"),
    [
        (np.zeros((2, 1), np.uint8), 9, DataError, "9-bit codes take 2 bytes each, got 1"),
        (np.full((1, 1), 1, np.uint8), 7, DataError, "last 1 pad bits"),
        (np.zeros((2, 1), np.int16), 8, DataError, "uint8"),
        (np.zeros(2, np.uint8), 8, DataError, "2-d"),
        (np.zeros((2, 1), np.uint8), 0, ParameterError, "positive integer, got 0"),
    ],
)
def test_from_packed_refuses(packed: NDArray[Any], n_bits: int, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Codes.from_packed(packed, n_bits)


def test_concatenate() -> None:
    codes = Codes.from_signs(random_signs(9, 13))
    assert Codes.concatenate([codes[:4], codes[4:4], codes[4:]], 13) == codes
    assert len(Codes.concatenate([], 13)) == 0 and Codes.concatenate([], 13).n_bits == 13
    with pytest.raises(DataError, match="codes of 12 bits cannot be joined"):
        Codes.concatenate([codes], 12)


def test_refusals() -> None:
    with pytest.raises(DataError, match="must be -1 or \\+1"):
        Codes.from_signs(np.zeros((1, 4)))
    with pytest.raises(DataError, match="NaN"):
        Codes.from_projection(np.array([[np.nan]]))
    with pytest.raises(DataError, match="8 and 16 bits"):
        hamming_distances(Codes.from_signs(np.ones((1, 8))), Codes.from_signs(np.ones((1, 16))))


@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
@pytest.mark.parametrize("n", N_ROWS)
def test_files_round_trip(tmp_path: Path, suffix: str, n: int) -> None:
    codes = Codes.from_signs(random_signs(n, 33))
    keys = [f"a/{i}.jpg" for i in range(n)]
    codes.save(tmp_path / f"codes{suffix}", keys=keys)
    assert Codes.load(tmp_path / f"codes{suffix}") == (codes, keys)


def test_files_refuse(tmp_path: Path) -> None:
    codes = Codes.from_signs(random_signs(3, 8))
    with pytest.raises(ParameterError, match=r"not '\.txt'"):
        codes.save(tmp_path / "codes.txt")
    with pytest.raises(ParameterError, match="2 keys for 3 codes"):
        codes.save(tmp_path / "codes.npz", keys=["a", "b"])
    (tmp_path / "bad.npz").write_bytes(b"PK nonsense")
    with pytest.raises(FormatError, match="not a readable codes file"):
        Codes.load(tmp_path / "bad.npz")
