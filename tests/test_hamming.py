"""The kernels against loops over bits, numpy, and FAISS."""

import subprocess
import sys
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from distillhash import Codes, hamming

WIDTHS = (1, 12, 33, 64, 127, 128, 256, 512)
SIZES = (0, 1, 7, 33, 1000)


def random_codes(n: int, n_bits: int, seed: int = 0) -> Codes:
    """Few distinct centres and few flips, so that ties and exact repeats are common."""
    rng = np.random.default_rng(seed)
    bits = rng.integers(0, 2, (4, n_bits))[rng.integers(0, 4, n)]
    return Codes.from_signs(1 - 2 * (bits ^ (rng.random(bits.shape) < 0.05)))


def brute_force(query: Codes, database: Codes) -> list[list[tuple[int, int]]]:
    """All (distance, row) of every query, sorted; distances counted sign by sign."""
    return [
        sorted((int(np.count_nonzero(one != other)), row) for row, other in enumerate(database.signs()))
        for one in query.signs()
    ]


def as_lists(limits: NDArray[Any], rows: NDArray[Any], distances: NDArray[Any]) -> list[list[tuple[int, int]]]:
    pairs = list(zip(distances.tolist(), rows.tolist(), strict=True))
    return [pairs[start:stop] for start, stop in pairwise(limits.tolist())]


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("n_bits", WIDTHS)
def test_nearest_is_the_head_of_the_full_sort(n_bits: int, compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hamming, "HAVE_NUMBA", compiled)
    for n in SIZES:
        query, database = random_codes(3, n_bits, 1), random_codes(n, n_bits)
        expected = brute_force(query, database)
        for k in (1, 10, 50, n + 3):
            rows, distances = hamming.nearest(query.words(), database.words(), k)
            assert rows.shape == distances.shape == (3, k)
            assert rows.dtype == np.int64
            assert distances.dtype == np.int32
            for i, pairs in enumerate(expected):
                padded = [*pairs[:k], *[(-1, -1)] * (k - n)]
                assert list(zip(distances[i].tolist(), rows[i].tolist(), strict=True)) == padded


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("n_bits", WIDTHS)
def test_within_is_the_full_sort_cut_at_the_radius(
    n_bits: int, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hamming, "HAVE_NUMBA", compiled)
    for n in SIZES:
        query, database = random_codes(3, n_bits, 1), random_codes(n, n_bits)
        expected = brute_force(query, database)
        for radius in (0, 1, n_bits // 8, n_bits // 2, n_bits, 10 * n_bits + 600):
            found = as_lists(*hamming.within(query.words(), database.words(), radius))
            assert found == [[pair for pair in pairs if pair[0] <= radius] for pairs in expected]


@pytest.mark.parametrize("n_bits", [64, 192, 255, 256, 512])
def test_opposite_codes_are_all_bits_apart(n_bits: int) -> None:
    """A byte would wrap at 256."""
    ones = Codes.from_signs(np.ones((1, n_bits), int))
    database = Codes.from_signs(-np.ones((700, n_bits), int))
    rows, distances = hamming.nearest(ones.words(), database.words(), 2)
    assert (rows.tolist(), distances.tolist()) == ([[0, 1]], [[n_bits, n_bits]])
    assert hamming.within(ones.words(), database.words(), n_bits - 1)[0].tolist() == [0, 0]
    assert hamming.within(ones.words(), database.words(), n_bits)[0].tolist() == [0, 700]


@pytest.mark.parametrize("k", [1, 7, 600, 5000])
@pytest.mark.parametrize("order", ["approaching", "leaving", "constant", "random"])
def test_any_order_of_distances_over_several_tiles(order: str, k: int) -> None:
    """Distances that fall row by row make every row a candidate, so the candidates are compacted again and again."""
    n = 3 * hamming._TILE + 77
    distances = {
        "approaching": np.linspace(64, 0, n).round().astype(int),
        "leaving": np.linspace(0, 64, n).round().astype(int),
        "constant": np.full(n, 5),
        "random": np.random.default_rng(0).binomial(64, 0.5, n),
    }[order]
    words = (np.uint64(1) << np.minimum(distances, 63).astype(np.uint64)) - np.uint64(1)
    words[distances == 64] = np.uint64(2**64 - 1)
    rows, found = hamming.nearest(np.zeros((1, 1), np.uint64), words[:, None], k)
    expected = np.lexsort((np.arange(n), distances))[:k]
    assert np.array_equal(rows[0], expected)
    assert np.array_equal(found[0], distances[expected])


def test_many_queries_in_threads_equal_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hamming, "available_cores", lambda: 3)
    query, database = random_codes(101, 127, 1), random_codes(5003, 127)
    words = np.asfortranarray(database.words())
    compiled: list[NDArray[Any]] = [
        *hamming.nearest(query.words(), words, 20),
        *hamming.within(query.words(), words, 6),
    ]
    plain: list[NDArray[Any]] = [
        *hamming.nearest_numpy(query.words(), words, 20),
        *hamming.within_numpy(query.words(), words, 6),
    ]
    for one, other in zip(compiled, plain, strict=True):
        assert one.dtype == other.dtype
        assert np.array_equal(one, other)


def test_no_queries() -> None:
    database = random_codes(5, 12).words()
    none = np.zeros((0, 1), np.uint64)
    assert [part.shape for part in hamming.nearest(none, database, 3)] == [(0, 3), (0, 3)]
    assert [part.tolist() for part in hamming.within(none, database, 3)] == [[0], [], []]


@pytest.mark.parametrize("n_bits", [64, 128, 256, 512])
def test_distances_agree_with_faiss(n_bits: int) -> None:
    faiss = pytest.importorskip("faiss")
    query, database = random_codes(20, n_bits, 1), random_codes(3000, n_bits)
    index = faiss.IndexBinaryFlat(n_bits)
    index.add(np.array(database.packed))
    theirs, _ = index.search(np.array(query.packed), 100)
    assert np.array_equal(hamming.nearest(query.words(), database.words(), 100)[1], theirs)


def test_without_numba_the_module_still_imports() -> None:
    program = (
        "import sys; sys.modules['numba'] = None\n"
        "import numpy as np\n"
        "from distillhash import hamming\n"
        "words = np.arange(8, dtype=np.uint64)[:, None]\n"
        "print(hamming.HAVE_NUMBA, hamming.nearest(words[7:], words, 4)[0].tolist())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False [[7, 3, 5, 6]]"
