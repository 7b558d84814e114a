"""Groups against loops that compare everything."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components
from scipy.stats import hypergeom

from distillhash.codes import Codes, hamming_distances
from distillhash.dedup import groups
from distillhash.dedup.groups import MISSED, connected_parts, linked_rows, match, star_groups
from distillhash.errors import DataError, ParameterError


def clustered(n: int, n_bits: int, seed: int, flips: float = 0.1) -> Codes:
    """Codes around a few centres, so that there is something within any radius."""
    rng = np.random.default_rng(seed)
    bits = rng.integers(0, 2, (max(1, n // 4), n_bits), np.uint8)[rng.integers(0, max(1, n // 4), n)]
    return Codes.from_packed(np.packbits(bits ^ (rng.random((n, n_bits)) < flips), axis=1), n_bits)


def stars_by_loop(
    codes: Codes, radius: int, order: NDArray[np.int64], linked: NDArray[np.bool_]
) -> tuple[list[int], list[int]]:
    distances = hamming_distances(codes, codes)
    keeper, distance = [-1] * len(codes), [0] * len(codes)
    for item in order.tolist():
        if keeper[item] >= 0:
            continue
        keeper[item] = item
        for other in range(len(codes)):
            if keeper[other] < 0 and distances[item, other] <= radius and linked[item, other]:
                keeper[other], distance[other] = item, int(distances[item, other])
    return keeper, distance


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 50),
    n_bits=st.sampled_from([1, 7, 33, 64, 130, 256]),
    share=st.floats(0, 0.4),
    seed=st.integers(0, 99),
)
def test_stars_are_those_of_the_loop(n: int, n_bits: int, share: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    codes, radius, order = clustered(n, n_bits, seed), int(share * n_bits), rng.permutation(n)
    places = rng.integers(-1, 3, n)
    apart = rng.integers(0, n, (n // 2, 2))
    linked = ~((places[:, None] == places) & (places[:, None] >= 0))
    linked[apart[:, 0], apart[:, 1]] = linked[apart[:, 1], apart[:, 0]] = False
    parts, distances = connected_parts(codes, radius), hamming_distances(codes, codes)
    for own, pairs, allowed in ((None, None, np.ones((n, n), bool)), (places, apart, linked)):
        found = star_groups(codes, radius, order=order, places=own, apart=pairs)
        keeper, distance = stars_by_loop(codes, radius, order, allowed)
        assert found.keeper.tolist() == keeper and found.distance.tolist() == distance
        near = linked_rows(parts, own)
        within = (distances <= radius) & allowed & ~np.eye(n, dtype=bool)
        assert set(np.flatnonzero(within.any(axis=1))) <= set(near.tolist())
        assert set(near.tolist()) <= set(linked_rows(parts).tolist())


@settings(max_examples=40, deadline=None)
@given(n=st.integers(2, 60), seed=st.integers(0, 99), radius=st.integers(0, 20))
def test_tables_never_invent_and_keep_the_star_property(n: int, seed: int, radius: int) -> None:
    codes = clustered(n, 64, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(groups, "EXHAUSTIVE", 0)
        found = star_groups(codes, radius)
    distances = hamming_distances(codes, codes)
    rows = np.arange(n)
    assert np.array_equal(found.distance, distances[rows, found.keeper])
    assert found.distance.max() <= radius
    assert np.array_equal(found.keeper[found.keeper], found.keeper)
    for group in found.groups():
        assert len(group) > 1 and np.all(found.keeper[group] == group[0])
        assert np.all(np.diff(found.distance[group]) >= 0)


def test_pairs_at_the_radius_are_missed_as_rarely_as_stated() -> None:
    rng = np.random.default_rng(0)
    n, n_bits, radius = 20_000, 256, 30
    bits = rng.integers(0, 2, (n, n_bits), np.uint8)
    copies = bits.copy()
    for row in copies:
        row[rng.permutation(n_bits)[:radius]] ^= 1
    codes = Codes.from_packed(np.packbits(np.concatenate([bits, copies]), axis=1), n_bits)
    assert groups._make_plan(codes, radius).k > 0
    found = star_groups(codes, radius)
    missed = np.mean(found.keeper[n:] != np.arange(n))
    assert missed < 2 * MISSED


@pytest.mark.parametrize(
    ("n_bits", "radius", "k"), [(512, 64, 20), (512, 92, 14), (64, 3, 12), (64, 40, 2), (100, 0, 32)]
)
def test_a_pair_at_the_radius_passes_a_table_as_often_as_stated(n_bits: int, radius: int, k: int) -> None:
    share, tolerance = groups._passing_share(n_bits, radius, k)
    sampled = min(64, n_bits)
    agree = hypergeom(n_bits, radius, k).pmf(0)
    few = hypergeom(n_bits - k, radius, sampled - k)
    assert share == pytest.approx(agree * few.cdf(tolerance))
    assert few.cdf(tolerance) >= 0.98 and (tolerance == 0 or few.cdf(tolerance - 1) < 0.98)


@pytest.mark.parametrize(
    ("n", "n_bits", "radius"), [(30_000, 512, 64), (30_000, 512, 92), (30_000, 104, 6), (30_000, 64, 28)]
)
def test_the_plan_meets_its_promise_by_the_formula(n: int, n_bits: int, radius: int) -> None:
    rng = np.random.default_rng(0)
    plan = groups._make_plan(Codes.from_packed(rng.integers(0, 256, (n, -(-n_bits // 8)), np.uint8), n_bits), radius)
    share = hypergeom(n_bits, radius, plan.k).pmf(0)
    share *= hypergeom(n_bits - plan.k, radius, plan.bits.shape[1] - plan.k).cdf(plan.tolerance)
    assert plan.k == 0 or (1 - share) ** len(plan.bits) <= MISSED
    assert (plan.k == 0) == (radius == 28)
    assert all(len(set(bits)) == min(64, n_bits) for bits in plan.bits.tolist())


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 200), n_bits=st.sampled_from([7, 33, 64, 130]), k=st.integers(0, 25), seed=st.integers(0, 99))
def test_a_table_holds_the_sampled_bits_sorted_by_key(n: int, n_bits: int, k: int, seed: int) -> None:
    codes, rng = clustered(n, n_bits, seed), np.random.default_rng(seed)
    words = codes.words()
    bits = rng.permutation(64 * words.shape[1])[:64]
    values, rows = np.empty((2, n), np.uint64), np.empty((2, n), np.int32)
    half = groups._make_table(groups._bit_planes(words), bits, k, values, rows)
    values, rows = values[half], rows[half]
    expected = [
        sum((int(words[row, b // 64]) >> (int(b) % 64) & 1) << i for i, b in enumerate(bits)) for row in range(n)
    ]
    order = sorted(range(n), key=lambda row: expected[row] % 2**k)
    assert rows.tolist() == order and values.tolist() == [expected[row] for row in order]


def parts_by_library(codes: Codes, radius: int) -> list[int]:
    near = hamming_distances(codes, codes) <= radius
    _, number = connected_components(near, directed=False)
    return [int(np.argmax(number == own)) for own in number]


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 120), n_bits=st.sampled_from([7, 64, 130]), share=st.floats(0, 0.4), seed=st.integers(0, 99))
def test_parts_are_the_connected_components(n: int, n_bits: int, share: float, seed: int) -> None:
    codes, radius = clustered(n, n_bits, seed), int(share * n_bits)
    assert connected_parts(codes, radius).tolist() == parts_by_library(codes, radius)


def test_tables_find_the_same_parts_with_any_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    codes, radius = clustered(3000, 256, 5, flips=0.04), 30
    monkeypatch.setattr(groups, "EXHAUSTIVE", 0)
    assert groups._make_plan(codes, radius).k > 0
    found = []
    for threads in (1, 3):
        monkeypatch.setattr(groups, "cores", lambda threads=threads: threads)
        found.append(connected_parts(codes, radius).tolist())
    assert found[0] == found[1] == parts_by_library(codes, radius)


def test_no_chains() -> None:
    bits = np.zeros((5, 64), np.uint8)
    for row in range(5):
        bits[row, : 4 * row] = 1  # each 4 bits from the next
    stars = star_groups(Codes.from_packed(np.packbits(bits, axis=1), 64), 4)
    assert [group.tolist() for group in stars.groups()] == [[0, 1], [2, 3]]


@pytest.mark.parametrize("flips", [0, 0.02])
def test_a_crowd_is_one_group_and_walked_through_once(flips: float) -> None:
    rng = np.random.default_rng(0)
    bits = (rng.random((60_000, 256)) < flips).astype(np.uint8)
    codes = Codes.from_packed(np.packbits(bits, axis=1), 256)
    rows = np.zeros(60_000, np.int64)
    started = time.perf_counter()
    stars = star_groups(codes, 30)
    assert [len(group) for group in stars.groups()] == [60_000]
    assert len(linked_rows(connected_parts(codes, 30), rows)) == 0
    assert time.perf_counter() - started < 20  # all pairs would be 1.8e9 a table


def test_a_crowd_among_others_does_not_bring_everything_together() -> None:
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2, (60_000, 256), np.uint8)
    bits[:30_000] = rng.random((30_000, 256)) < 0.02
    codes = Codes.from_packed(np.packbits(bits, axis=1), 256)
    assert groups._make_plan(codes, 30).k > 0
    assert [len(group) for group in star_groups(codes, 30).groups()] == [30_000]


@pytest.mark.parametrize("exhaustive", [0, 1000])
def test_match_is_the_nearest(exhaustive: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groups, "EXHAUSTIVE", exhaustive)
    query, database, radius = clustered(40, 128, 1), clustered(90, 128, 1), 30
    found = match(query, database, radius)
    distances = hamming_distances(query, database)
    for row in range(len(query)):
        inside = distances[row] <= radius
        assert found.count[row] == inside.sum()
        assert found.row[row, 0] == (np.argmin(distances[row]) if inside.any() else -1)
        assert found.distance[row, 0] == (distances[row].min() if inside.any() else -1)


def test_match_by_tables_counts_every_pair_once(monkeypatch: pytest.MonkeyPatch) -> None:
    both, radius = clustered(5000, 256, 2, flips=0.04), 30
    query, database = both[:1500], both[1500:]
    exact = match(query, database, radius)
    monkeypatch.setattr(groups, "EXHAUSTIVE", 0)
    assert groups._make_plan(both, radius).k > 0
    found = match(query, database, radius)
    assert exact.count.sum() > 1000
    assert np.array_equal(found.row, exact.row) and np.array_equal(found.count, exact.count)
    assert np.array_equal(found.distance, exact.distance)


def test_refusals() -> None:
    codes = clustered(4, 8, 0)
    with pytest.raises(ParameterError, match="at least 0"):
        star_groups(codes, -1)
    with pytest.raises(ParameterError, match="at least 0"):
        match(codes, codes, -1)
    with pytest.raises(DataError, match="each of the 4 rows"):
        star_groups(codes, 1, order=np.array([0, 1, 1, 2]))
