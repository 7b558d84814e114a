"""Kernels against plain loops and FAISS, and the numpy fallback against the compiled code."""

import numpy as np
import pytest

from distillhash.codes import Codes, hamming_distances
from distillhash.hamming import nearest, nearest_numpy, within, within_numpy

N_BITS = [1, 12, 33, 64, 127, 128, 256, 512]


def random_codes(n: int, n_bits: int, seed: int) -> Codes:
    return Codes.from_signs(np.random.default_rng(seed).choice([-1, 1], size=(n, n_bits)))


def plain_loop(query: Codes, database: Codes) -> list[list[tuple[int, int]]]:
    """(distance, row) pairs of every query, sorted."""
    return [sorted((int(d), row) for row, d in enumerate(line)) for line in hamming_distances(query, database)]


@pytest.mark.parametrize("n_bits", N_BITS)
@pytest.mark.parametrize("n", [0, 1, 7, 33, 1000])
def test_nearest_and_within_equal_a_loop(n: int, n_bits: int) -> None:
    query, database = random_codes(3, n_bits, 1), random_codes(n, n_bits, 2)
    expected = plain_loop(query, database)
    for k in (1, 7, 40):
        for rows, distances in (
            nearest(query.words(), database.words(), k),
            nearest_numpy(query.words(), database.words(), min(k, n)),
        ):
            for i in range(3):
                found = list(zip(distances[i].tolist(), rows[i].tolist(), strict=True))
                assert found[: min(k, n)] == expected[i][:k]
                assert set(found[min(k, n) :]) <= {(-1, -1)}
    for radius in (0, n_bits // 2, n_bits):
        for limits, rows, distances in (
            within(query.words(), database.words(), radius),
            within_numpy(query.words(), database.words(), radius),
        ):
            assert len(limits) == 4 and limits[-1] == len(rows) == len(distances)
            for i in range(3):
                part = slice(limits[i], limits[i + 1])
                found = list(zip(distances[part].tolist(), rows[part].tolist(), strict=True))
                assert found == [pair for pair in expected[i] if pair[0] <= radius]


def test_no_queries() -> None:
    nothing, database = random_codes(0, 64, 0), random_codes(5, 64, 1)
    rows, distances = nearest(nothing.words(), database.words(), 3)
    assert rows.shape == distances.shape == (0, 3)
    limits, rows, _ = within(nothing.words(), database.words(), 3)
    assert limits.tolist() == [0] and len(rows) == 0


def test_ties_go_to_the_lower_row() -> None:
    same = Codes.from_signs(np.ones((50, 16)))
    rows, distances = nearest(same[:1].words(), same.words(), 10)
    assert rows[0].tolist() == list(range(10)) and not distances.any()


@pytest.mark.parametrize("n_bits", [64, 128, 256])
def test_distances_are_those_of_faiss(n_bits: int) -> None:
    faiss = pytest.importorskip("faiss")
    query, database = random_codes(20, n_bits, 1), random_codes(2000, n_bits, 2)
    index = faiss.IndexBinaryFlat(n_bits)
    index.add(np.array(database.packed))
    expected, _ = index.search(np.array(query.packed), 50)
    _, distances = nearest(query.words(), database.words(), 50)
    np.testing.assert_array_equal(distances, expected)
