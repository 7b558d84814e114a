"""Groups against loops that compare everything."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from distillhash.codes import Codes, hamming_distances
from distillhash.dedup.buckets import MISSED, Buckets, plan
from distillhash.dedup.groups import Rules, match, near_rows, star_groups
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
    for rules, allowed in ((None, np.ones((n, n), bool)), (Rules(places, apart), linked)):
        found = star_groups(codes, radius, order=order, rules=rules)
        keeper, distance = stars_by_loop(codes, radius, order, allowed)
        assert found.keeper.tolist() == keeper and found.distance.tolist() == distance
        within = (hamming_distances(codes, codes) <= radius) & allowed & ~np.eye(n, dtype=bool)
        assert near_rows(codes, radius, rules=rules).tolist() == np.flatnonzero(within.any(axis=1)).tolist()


@settings(max_examples=40, deadline=None)
@given(n=st.integers(2, 60), seed=st.integers(0, 99), radius=st.integers(0, 20))
def test_tables_never_invent_and_keep_the_star_property(n: int, seed: int, radius: int) -> None:
    codes = clustered(n, 64, seed)
    found = star_groups(codes, radius, exhaustive=0)
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
    assert not Buckets.of(codes.words(), n_bits, radius).is_exhaustive
    found = star_groups(codes, radius)
    missed = np.mean(found.keeper[n:] != np.arange(n))
    assert missed < 2 * MISSED


def test_the_plan_meets_its_promise_by_the_formula() -> None:
    for n, n_bits, radius in ((10**5, 512, 64), (10**6, 256, 20), (2 * 10**6, 64, 3), (10**5, 64, 40)):
        k, n_tables = plan(n, n_bits, radius)
        shared = np.prod([(n_bits - radius - i) / (n_bits - i) for i in range(k)])
        assert (1 - shared) ** n_tables <= MISSED or (k, n_tables) == (0, 1)


def test_no_chains() -> None:
    bits = np.zeros((5, 64), np.uint8)
    for row in range(5):
        bits[row, : 4 * row] = 1  # each 4 bits from the next
    stars = star_groups(Codes.from_packed(np.packbits(bits, axis=1), 64), 4)
    assert [group.tolist() for group in stars.groups()] == [[0, 1], [2, 3]]


def test_a_crowd_of_equal_codes_is_one_group() -> None:
    codes = Codes.from_packed(np.zeros((30_000, 32), np.uint8), 256)
    stars = star_groups(codes, 20)
    assert [len(group) for group in stars.groups()] == [30_000]


@pytest.mark.parametrize("exhaustive", [0, 1000])
def test_match_is_the_nearest(exhaustive: int) -> None:
    query, database, radius = clustered(40, 128, 1), clustered(90, 128, 1), 30
    found = match(query, database, radius, exhaustive=exhaustive)
    distances = hamming_distances(query, database)
    for row in range(len(query)):
        inside = distances[row] <= radius
        assert found.count[row] == inside.sum() or not exhaustive
        if exhaustive or found.row[row] >= 0:
            assert found.row[row] == (np.argmin(distances[row]) if inside.any() else -1)
            assert found.distance[row] == (distances[row].min() if inside.any() else -1)


def test_match_skips_the_same_file() -> None:
    codes = clustered(10, 64, 3, flips=0)
    same = np.arange(10)
    found = match(codes, codes, 0, query_places=same, database_places=same)
    assert not np.any(found.row == same)


def test_refusals() -> None:
    codes = clustered(4, 8, 0)
    with pytest.raises(ParameterError, match="at least 0"):
        star_groups(codes, -1)
    with pytest.raises(DataError, match="each of the 4 rows"):
        star_groups(codes, 1, order=np.array([0, 1, 1, 2]))
