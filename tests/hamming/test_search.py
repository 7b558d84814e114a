"""The searches against loops over bits, at every width."""

import multiprocessing
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args
from unittest.mock import patch

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from numpy.typing import NDArray

from distillhash import Codes
from distillhash.errors import DataError, ParameterError
from distillhash.hamming import nearest, plane_dtype, planes_of, search, warm_up, within
from distillhash.hamming.kernel import BLOCK, HALF_ROWS
from distillhash.hamming.ranking import HEAD, HEAD_WEIGHTS, TAIL_WEIGHTS, By, order

WIDTHS = (1, 12, 16, 17, 32, 33, 64, 127, 128, 192, 256, 300, 512)
Pairs = list[tuple[int, int]]


def random_codes(n: int, n_bits: int, seed: int = 0) -> Codes:
    """Few distinct centres and few flips, so that ties and exact repeats are common."""
    rng = np.random.default_rng(seed)
    bits = np.random.default_rng(1).integers(0, 2, (4, n_bits))[rng.integers(0, 4, n)]
    return Codes.from_signs(1 - 2 * (bits ^ (rng.random(bits.shape) < 0.05)))


def brute_force(query: Codes, database: Codes, allowed: NDArray[Any] | None = None) -> list[Pairs]:
    """All (distance, row) of every query, sorted; distances counted sign by sign."""
    signs = database.signs()
    rows = [row for row in range(len(signs)) if allowed is None or allowed[row]]
    return [sorted((int(np.count_nonzero(one != signs[row])), row) for row in rows) for one in query.signs()]


def as_lists(limits: NDArray[Any], rows: NDArray[Any], distances: NDArray[Any]) -> list[Pairs]:
    pairs = list(zip(distances.tolist(), rows.tolist(), strict=True))
    return [pairs[start:stop] for start, stop in pairwise(limits.tolist())]


def same(found: tuple[NDArray[Any], ...], expected: tuple[NDArray[Any], ...]) -> bool:
    return all(np.array_equal(one, other) for one, other in zip(found, expected, strict=True))


def by_numpy(
    query: NDArray[Any], database: NDArray[Any], k: int, allowed: NDArray[Any] | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """The k nearest by a full sort of every query's distances."""
    far = np.array([np.bitwise_count(one[:, None] ^ database).sum(axis=0, dtype=np.int64) for one in query.T])
    kept = np.arange(far.shape[1]) if allowed is None else np.flatnonzero(allowed)
    rows = kept[np.argsort(far[:, kept], axis=1, kind="stable")[:, :k]]
    found = np.take_along_axis(far, rows, axis=1).astype(np.int32)
    missing = ((0, 0), (0, k - rows.shape[1]))
    return np.pad(rows, missing, constant_values=-1), np.pad(found, missing, constant_values=-1)


def within_by_numpy(
    query: NDArray[Any], database: NDArray[Any], radius: int, allowed: NDArray[Any] | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int32]]:
    rows, far = by_numpy(query, database, database.shape[1], allowed)
    inside = (far <= radius) & (rows >= 0)
    return np.cumsum([0, *inside.sum(axis=1)]), rows[inside], far[inside]


@given(
    n_bits=st.integers(1, 512) | st.sampled_from(WIDTHS),
    n=st.integers(0, 70) | st.sampled_from([255, 256, 257, 600]),
    q=st.integers(0, 9),
    seed=st.integers(0, 2**32 - 1),
    share=st.none() | st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    threads=st.sampled_from([1, 2, 3]),
    data=st.data(),
)
@settings(deadline=None, max_examples=40)
def test_any_search_is_a_cut_of_the_full_sort(
    n_bits: int, n: int, q: int, seed: int, share: float | None, threads: int, data: st.DataObject
) -> None:
    k = data.draw(st.integers(0, n + 3), label="k")
    radius = data.draw(st.integers(0, n_bits + 3), label="radius")
    compiles = data.draw(st.booleans(), label="compiles")
    query, database = random_codes(q, n_bits, seed), random_codes(n, n_bits, seed + 1)
    allowed = None if share is None else np.random.default_rng(seed).random(n) < share
    expected = brute_force(query, database, allowed)
    planes = planes_of(query), planes_of(database)
    with patch.object(search, "compiles", lambda: compiles):
        rows, distances = nearest(*planes, k, allowed=allowed, threads=threads)
        found = within(*planes, radius, allowed=allowed, threads=threads)
    assert rows.shape == distances.shape == (q, k)
    assert rows.dtype == np.int64
    assert distances.dtype == np.int32
    for i, pairs in enumerate(expected):
        padded = [*pairs[:k], *[(-1, -1)] * (k - len(pairs))]
        assert list(zip(distances[i].tolist(), rows[i].tolist(), strict=True)) == padded
    assert [array.dtype for array in found] == [np.int64, np.int64, np.int32]
    assert as_lists(*found) == [[pair for pair in pairs if pair[0] <= radius] for pairs in expected]


def ranked_by_loop(query: Codes, database: Codes, by: str, allowed: NDArray[Any] | None) -> Pairs:
    """All (distance, row) of one query in the order of a ranking of codes of two parts, pair by pair."""
    found = []
    for row, signs in enumerate(database.signs()):
        differing = (signs != query.signs()[0]).tolist()
        if allowed is None or allowed[row]:
            found.append((sum(differing), sum(differing[: query.class_bits]), row))

    def key(weights: tuple[int, int]) -> Callable[[tuple[int, int, int]], tuple[int, int, int]]:
        return lambda item: (weights[0] * (item[0] - item[1]) + weights[1] * item[1], item[1], item[2])

    if by != "both":
        return [(d, row) for d, _, row in sorted(found, key=key(HEAD_WEIGHTS if by == "nearest" else TAIL_WEIGHTS))]
    head = sorted(found, key=key(HEAD_WEIGHTS))
    n_head = min(HEAD, len(head))
    while n_head < len(head) and head[n_head][:2] == head[n_head - 1][:2]:
        n_head += 1
    tail = sorted(head[n_head:], key=key(TAIL_WEIGHTS))
    return [(d, row) for d, _, row in head[:n_head] + tail]


TWO_PARTS = {
    "n": st.sampled_from([0, 1, HEAD - 1, HEAD, HEAD + 1, 90, 255, 300, 600]),
    "q": st.sampled_from([0, 1, 5]),
    "seed": st.integers(0, 2**32 - 1),
    "share": st.sampled_from([None, 0.0, 0.1, 0.7]),
    "by": st.sampled_from(["both", "nearest", "kind"]),
    "threads": st.sampled_from([1, 2]),
}


@given(n_bits=st.integers(66, 128), data=st.data(), **TWO_PARTS)
@settings(deadline=None, max_examples=40)
def test_any_search_of_two_parts_is_a_cut_of_the_ranking(n_bits: int, data: st.DataObject, **options: Any) -> None:
    check_two_parts(n_bits, data.draw(st.integers(1, 63), label="class_bits"), data, **options)


@pytest.mark.long  # each width is compiled
@given(n_bits=st.sampled_from([8, 16, 24, 40, 64, 96, 128, 256, 1024]), data=st.data(), **TWO_PARTS)
@settings(deadline=None, max_examples=300)
def test_any_search_of_two_parts_at_many_widths(n_bits: int, data: st.DataObject, **options: Any) -> None:
    aligned = [bits for bits in (8, 16, 32, 48, 64, 128) if bits < n_bits] or [1]
    class_bits = st.sampled_from(aligned) | st.integers(1, n_bits - 1)
    check_two_parts(n_bits, data.draw(class_bits, label="class_bits"), data, **options)


def check_two_parts(
    n_bits: int, class_bits: int, data: st.DataObject, n: int, q: int, seed: int, share: float | None, by: Any, threads: int
) -> None:  # fmt: skip
    compiles = data.draw(st.booleans(), label="compiles")
    k = data.draw(st.sampled_from([0, 1, HEAD - 1, HEAD, HEAD + 1, 60, 100, n, n + 3]), label="k")
    query, database = random_codes(q, n_bits, seed), random_codes(n, n_bits, seed + 1)
    allowed = None if share is None else np.random.default_rng(seed).random(n) < share
    planes = planes_of(query), planes_of(database)
    with patch.object(search, "compiles", lambda: compiles):
        rows, distances = nearest(*planes, k, class_bits=class_bits, by=by, allowed=allowed, threads=threads)
    assert rows.shape == distances.shape == (q, k)
    assert rows.dtype == np.int64
    assert distances.dtype == np.int32
    for i in range(q):
        pairs = ranked_by_loop(Codes(query.packed[i : i + 1], n_bits, class_bits), database, by, allowed)
        padded = [*pairs[:k], *[(-1, -1)] * (k - len(pairs))]
        assert list(zip(distances[i].tolist(), rows[i].tolist(), strict=True)) == padded


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("order_of_rows", ["random", "sorted", "equal"])
def test_two_parts_over_many_rows_in_any_order(
    order_of_rows: str, masked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parts for each thread, a sample for the first bounds, and rows in an order that the sample does not foresee."""
    monkeypatch.setattr(search, "_BYTES_PER_THREAD", 4096)
    monkeypatch.setattr("distillhash.hamming.kernel._SAMPLED_FROM", 1 << 14)
    n, class_bits = 100_003, 40
    query, codes = random_codes(5, 128, 1), random_codes(n, 128)
    if order_of_rows == "sorted":
        codes = codes[np.argsort(np.bitwise_count(codes.packed ^ query.packed[0]).sum(axis=1))]
    elif order_of_rows == "equal":
        codes = codes[np.zeros(n, int)]
    allowed = np.random.default_rng(0).random(n) < 0.01 if masked else None
    kept = np.arange(n) if allowed is None else np.flatnonzero(allowed)
    for q, threads in ((1, 1), (1, 2), (5, 1)):
        for by in get_args(By):
            options: Any = {"class_bits": class_bits, "by": by, "allowed": allowed, "threads": threads}
            found = nearest(planes_of(query[:q]), planes_of(codes), 100, **options)
            for i in range(q):
                differing = np.unpackbits(codes.packed[kept] ^ query.packed[i], axis=1)
                far, of_class = differing.sum(axis=1, dtype=np.int64), differing[:, :class_bits].sum(axis=1, dtype=int)
                expected = order(far, of_class, by)[:100]
                assert same((found[0][i], found[1][i]), (kept[expected], far[expected].astype(np.int32)))


def test_what_does_not_fit_two_parts_is_refused() -> None:
    words = np.zeros((1, 5), np.uint64)
    with pytest.raises(ParameterError, match=r"class_bits must be in 0..63 for 64 bits, got 64"):
        nearest(words, words, 1, class_bits=64)
    with pytest.raises(ParameterError, match="one ranking, got by='kind'"):
        nearest(words, words, 1, by="kind")
    long = np.zeros((128, 5), np.uint64)
    with pytest.raises(ParameterError, match="at most 8191 bits, got 8192"):
        nearest(long, long, 1, class_bits=16)


@pytest.mark.parametrize("n_bits", [1000, pytest.param(4096, marks=pytest.mark.long)])
def test_very_long_codes(n_bits: int) -> None:
    query, database = random_codes(2, n_bits, 1), random_codes(300, n_bits)
    rows, distances = nearest(planes_of(query), planes_of(database), 20)
    for i, pairs in enumerate(brute_force(query, database)):
        assert list(zip(distances[i].tolist(), rows[i].tolist(), strict=True)) == pairs[:20]


@pytest.mark.parametrize("n_bits", [16, 32, 64, 192, 255, 256, 512])
def test_opposite_codes_are_all_bits_apart(n_bits: int) -> None:
    """A byte would wrap at 256."""
    ones = planes_of(Codes.from_signs(np.ones((1, n_bits), int)))
    database = planes_of(Codes.from_signs(-np.ones((700, n_bits), int)))
    rows, distances = nearest(ones, database, 2)
    assert (rows.tolist(), distances.tolist()) == ([[0, 1]], [[n_bits, n_bits]])
    assert within(ones, database, n_bits - 1)[0].tolist() == [0, 0]
    assert within(ones, database, n_bits)[0].tolist() == [0, 700]


@pytest.mark.parametrize("q", [1, 5])
@pytest.mark.parametrize("k", [1, 7, 600, 5000])
@pytest.mark.parametrize("order", ["approaching", "leaving", "constant", "random"])
def test_any_order_of_distances_over_several_tiles(order: str, k: int, q: int) -> None:
    """Distances that fall row by row make every row a candidate, so the candidates are compacted again and again."""
    n = 50_077
    distances = {
        "approaching": np.linspace(64, 0, n).round().astype(int),
        "leaving": np.linspace(0, 64, n).round().astype(int),
        "constant": np.full(n, 5),
        "random": np.random.default_rng(0).binomial(64, 0.5, n),
    }[order]
    words = (np.uint64(1) << np.minimum(distances, 63).astype(np.uint64)) - np.uint64(1)
    words[distances == 64] = np.uint64(2**64 - 1)
    rows, found = nearest(np.zeros((1, q), np.uint64), words[None], k)
    expected = np.lexsort((np.arange(n), distances))[:k]
    for i in range(q):
        assert np.array_equal(rows[i], expected)
        assert np.array_equal(found[i], distances[expected])


@pytest.mark.parametrize("n_bits", [64, 65, 128, 256, 320])
@pytest.mark.parametrize("n_centres", [1, 40, 4000])
@pytest.mark.parametrize("masked", [False, True])
def test_half_of_the_planes_is_enough_only_where_it_is(n_bits: int, n_centres: int, masked: bool) -> None:
    """A lone query over several planes looks at half of them first, and gives that up where too many rows pass."""
    rng = np.random.default_rng(n_centres)
    n = 6 * HALF_ROWS + 77
    centres = rng.integers(0, 2, (n_centres, n_bits))
    bits = centres[rng.integers(0, n_centres, n + 8)] ^ (rng.random((n + 8, n_bits)) < 0.08)
    bits[:, : n_bits // 2] &= rng.integers(0, 2, n + 8)[:, None]  # many rows are near by the first half
    codes = Codes.from_signs(1 - 2 * bits)
    query, database = planes_of(codes[:8]), planes_of(codes[8:])
    allowed = (rng.random(n) < 0.7).astype(np.uint8) if masked else None
    for k in (1, 100, 3 * BLOCK, n):
        wanted = by_numpy(query, database, k, allowed)
        for i in range(query.shape[1]):
            found = nearest(query[:, i : i + 1], database, k, allowed=allowed, threads=1)
            assert same(found, tuple(part[i : i + 1] for part in wanted)), (k, i)


@pytest.mark.long
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="compiles for a processor of this family")
def test_a_processor_that_counts_byte_by_byte_finds_the_same() -> None:
    """Code for processors without an instruction that counts the bits of words; others would run what they have instead."""
    script = """
import numpy as np
from distillhash.hamming import kernel
from test_search import by_numpy, nearest, same, within, within_by_numpy
assert not kernel.COUNTS_WORDS
rng = np.random.default_rng(0)
database = rng.integers(0, 2**32, (9, 9001), np.uint32)
database[:, ::3] = database[:, 5:6]
query = np.concatenate([database[:, :6], ~database[:, 5:6]], axis=1)
mask = rng.random(9001) < 0.6
for n_planes, q, allowed in ((2, 1, None), (2, 1, mask), (2, 7, None), (2, 7, mask), (1, 7, None), (9, 7, None)):
    arrays = query[:n_planes, :q], database[:n_planes]
    assert same(nearest(*arrays, 40, allowed=allowed, threads=1), by_numpy(*arrays, 40, allowed)), (n_planes, q)
found = within(query[:2], database[:2], 32, threads=1)
assert same(found, within_by_numpy(query[:2], database[:2], 32)) and len(found[1]) > 9000
"""
    environment = os.environ | {"NUMBA_CPU_NAME": "x86-64-v2", "NUMBA_CPU_FEATURES": ""}
    command = [sys.executable, "-c", script]
    done = subprocess.run(
        command, env=environment, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("n_bits", [12, 30, 127])
@pytest.mark.parametrize("masked", [False, True])
def test_threads_change_nothing(n_bits: int, masked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over groups of queries, and over parts of the database when there are few."""
    monkeypatch.setattr(search, "_BYTES_PER_THREAD", 4096)
    monkeypatch.setattr(search, "_group_size", lambda n: 7)
    query, database = planes_of(random_codes(101, n_bits, 1)), planes_of(random_codes(50_003, n_bits))
    allowed = np.random.default_rng(0).random(50_003) < 0.3 if masked else None
    for q in (1, 2, 101):
        for k in (1, 20, 30_000 if q == 1 else 40):
            plain = by_numpy(query[:, :q], database, k, allowed)
            for threads in (1, 2, 3):
                found = nearest(query[:, :q], database, k, allowed=allowed, threads=threads)
                assert same(found, plain)
        ranges = within_by_numpy(query[:, :q], database, 4, allowed)
        for threads in (1, 3):
            limited = within(query[:, :q], database, 4, allowed=allowed, threads=threads)
            assert same(limited, ranges)


def test_a_read_only_memory_map_is_searched_in_place(tmp_path: Path) -> None:
    planes = planes_of(random_codes(1000, 128))
    planes.tofile(tmp_path / "planes")
    mapped = np.memmap(tmp_path / "planes", np.uint64, "r", shape=planes.shape)
    query = planes_of(random_codes(3, 128, 1))
    assert np.array_equal(nearest(query, mapped, 9)[0], nearest(query, planes, 9)[0])


def test_progress_counts_the_queries_of_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "_group_size", lambda n: 4)
    query, database = planes_of(random_codes(19, 33, 1)), planes_of(random_codes(50, 33))
    for threads in (1, 2):
        done: list[int] = []
        nearest(query, database, 3, threads=threads, progress=done.append)
        assert done == sorted(done)
        assert len(done) >= 5
        assert done[-1] == 19
        done.clear()
        within(query, database, 3, threads=threads, progress=done.append)
        assert done[-1] == 19


def test_an_error_in_progress_ends_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "_group_size", lambda n: 1)
    query, database = planes_of(random_codes(50, 33, 1)), planes_of(random_codes(50, 33))
    calls: list[int] = []

    def stop(done: int) -> None:
        calls.append(done)
        raise KeyboardInterrupt

    for threads in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            nearest(query, database, 3, threads=threads, progress=stop)
    assert len(calls) == 2
    assert nearest(query, database, 3, threads=2)[0].shape == (50, 3)  # and the pool serves on


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_child_searches_in_threads_of_its_own() -> None:
    query, database = planes_of(random_codes(50, 33, 1)), planes_of(random_codes(500, 33))
    expected = nearest(query, database, 3, threads=2)[0]
    with multiprocessing.get_context("fork").Pool(1) as child:
        found = child.apply_async(_search, (query, database)).get(timeout=30)
    assert np.array_equal(found, expected)


def _search(query: NDArray[Any], database: NDArray[Any]) -> NDArray[Any]:
    return nearest(query, database, 3, threads=2)[0]


@pytest.mark.parametrize("n_bits", WIDTHS)
def test_planes_hold_the_bits_in_the_narrowest_words(n_bits: int) -> None:
    codes = random_codes(5, n_bits)
    planes = planes_of(codes)
    assert planes.flags.c_contiguous
    word_bits = 16 if n_bits <= 16 else 32 if n_bits <= 64 else 64
    assert planes.dtype == plane_dtype(n_bits) == np.dtype(f"u{word_bits // 8}")
    assert planes.shape == (-(-n_bits // word_bits), 5)
    assert np.array_equal(np.bitwise_count(planes).sum(axis=0), (codes.signs() == 1).sum(axis=1))


@pytest.mark.parametrize("n_bits", [64, 128, 256, 512])
def test_distances_agree_with_faiss(n_bits: int) -> None:
    faiss = pytest.importorskip("faiss")
    query, database = random_codes(20, n_bits, 1), random_codes(3000, n_bits)
    index = faiss.IndexBinaryFlat(n_bits)
    index.add(np.array(database.packed))
    theirs, _ = index.search(np.array(query.packed), 100)
    assert np.array_equal(nearest(planes_of(query), planes_of(database), 100)[1], theirs)


def test_what_does_not_fit_is_refused() -> None:
    words = np.zeros((1, 5), np.uint64)
    with pytest.raises(DataError, match="2-d int64"):
        nearest(words.astype(np.int64), words, 1)
    with pytest.raises(DataError, match=r"query has 1 planes of uint16, the database 1 of uint64"):
        nearest(words.astype(np.uint16), words, 1)
    with pytest.raises(DataError, match="both must be codes of one length"):
        within(np.zeros((2, 1), np.uint64), words, 1)
    with pytest.raises(DataError, match="each of the 5 rows"):
        nearest(words, words, 1, allowed=np.ones(4, bool))
    with pytest.raises(DataError, match="each of the 5 rows"):
        within(words, words, 1, allowed=np.ones(5, np.int64))
    with pytest.raises(ParameterError, match="at least 0, got -1"):
        nearest(words, words, -1)
    with pytest.raises(ParameterError, match="at least 0, got -1"):
        within(words, words, -1)
    with pytest.raises(ParameterError, match="threads must be at least 1, got 0"):
        nearest(words, words, 1, threads=0)
    with pytest.raises(ParameterError, match="at least 1, got 0"):
        warm_up(0)


def test_after_warm_up_nothing_is_compiled() -> None:
    program = (
        "import numpy as np\n"
        "from numba.core import event\n"
        "from distillhash.hamming import nearest, warm_up, within\n"
        "warm_up(128, 48)\n"
        "planes = np.random.default_rng(0).integers(0, 2**64, (2, 5000), np.uint64)\n"
        "with event.install_recorder('numba:compile') as recorder:\n"
        "    for q in (1, 9):\n"
        "        for allowed in (None, np.ones(5000, bool)):\n"
        "            nearest(planes[:, :q], planes, 5, allowed=allowed)\n"
        "            nearest(planes[:, :q], planes, 50, class_bits=48, allowed=allowed)\n"
        "            within(planes[:, :q], planes, 5, allowed=allowed)\n"
        "print(len(recorder.buffer))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "0"
