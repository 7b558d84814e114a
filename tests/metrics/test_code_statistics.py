"""Bit statistics against plain formulas and NumPy's own correlation."""

from collections import Counter

import numpy as np
import pytest

from distillhash.codes import Codes
from distillhash.errors import DataError
from distillhash.metrics import bit_statistics, code_statistics


def random_codes(rng: np.random.Generator, n: int, n_bits: int) -> Codes:
    return Codes.from_signs(rng.choice([-1, 1], size=(n, n_bits)))


@pytest.mark.parametrize("n", [1, 7, 33, 300])
@pytest.mark.parametrize("n_bits", [1, 12, 33, 127])
def test_bit_statistics_equal_plain_formulas(n: int, n_bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code_statistics, "_SIGN_BLOCK", 100)  # more than one block
    codes = random_codes(np.random.default_rng(n + n_bits), n, n_bits)
    signs = codes.signs().astype(float)
    report = bit_statistics(codes)
    assert (report["n"], report["n_bits"]) == (n, n_bits)
    np.testing.assert_allclose(report["balance"], [sum(column) / n for column in signs.T], atol=1e-12)

    deviation = signs.std(axis=0)
    expected = np.zeros((n_bits, n_bits))
    for i in range(n_bits):
        for j in range(n_bits):
            if deviation[i] and deviation[j]:
                covariance = np.mean((signs[:, i] - signs[:, i].mean()) * (signs[:, j] - signs[:, j].mean()))
                expected[i, j] = covariance / (deviation[i] * deviation[j])
    np.testing.assert_allclose(report["correlation"], expected, atol=1e-12)

    others = [abs(expected[i, j]) for i in range(n_bits) for j in range(n_bits) if i != j]
    assert report["mean_abs_correlation"] == pytest.approx(np.mean(others) if others else 0.0, abs=1e-12)
    assert report["mean_abs_balance"] == pytest.approx(np.mean(np.abs(signs.mean(axis=0))))
    assert report["constant_bits"] == np.sum(deviation == 0)
    eigenvalues = np.linalg.eigvalsh(expected)
    ratio = eigenvalues.sum() ** 2 / np.square(eigenvalues).sum() if eigenvalues.any() else 0.0
    assert report["effective_bits"] == pytest.approx(ratio)
    buckets = Counter(row.tobytes() for row in codes.packed)
    assert report["unique_fraction"] == len(buckets) / n
    assert report["largest_bucket_fraction"] == max(buckets.values()) / n


def test_bit_statistics_agree_with_numpy_corrcoef() -> None:
    codes = random_codes(np.random.default_rng(0), 500, 16)
    np.testing.assert_allclose(bit_statistics(codes)["correlation"], np.corrcoef(codes.signs().T), atol=1e-12)


def test_copied_bits_count_once_and_constant_bits_not_at_all() -> None:
    bit = np.array([1, -1, 1, 1, -1, 1, 1])
    report = bit_statistics(Codes.from_signs(np.stack([bit, -bit, bit, np.ones(7)], axis=1)))
    assert report["effective_bits"] == 1.0
    assert report["constant_bits"] == 1
    assert report["correlation"][0] == [1.0, -1.0, 1.0, 0.0]
    assert report["correlation"][3] == [0.0, 0.0, 0.0, 0.0]
    assert bit_statistics(Codes.from_signs(np.ones((5, 12))))["effective_bits"] == 0.0


def test_no_codes_is_an_error() -> None:
    with pytest.raises(DataError, match="at least one code"):
        bit_statistics(random_codes(np.random.default_rng(0), 0, 12))
