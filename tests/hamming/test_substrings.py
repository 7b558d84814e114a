"""The tables of substrings against the scan and a plain loop: the same answers, and used where they are expected to pay."""

from itertools import pairwise
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from numpy.typing import NDArray

from distillhash.errors import DataError, ParameterError
from distillhash.hamming import substrings, within
from distillhash.hamming.substrings import SubstringTables


def codes(shape: str, n: int, layout: tuple[Any, int], n_bits: int, seed: int) -> NDArray[Any]:
    """Planes of ``n`` codes of which only the first ``n_bits`` bits vary."""
    dtype, n_planes = layout
    rng = np.random.default_rng(seed)
    bits = rng.integers(0, 2, (n_planes * 8 * np.dtype(dtype).itemsize, n), np.uint8)
    if shape != "uniform":
        centres = np.random.default_rng(1).integers(0, 2, (len(bits), 5), np.uint8)
        share = 0.1 if shape == "clustered" else 0.005
        bits = centres[:, rng.integers(0, 5, n)] ^ (rng.random(bits.shape) < share)
    bits[n_bits:] = 0
    packed = np.packbits(bits, axis=0, bitorder="little")
    return np.ascontiguousarray(np.ascontiguousarray(packed.T).view(dtype).T)


def always(patch: pytest.MonkeyPatch, effort: float = 2.0, hits: int = 1 << 20) -> None:
    """Let every search use tables, and a query look at this share of the rows."""
    patch.setattr(substrings, "FEWEST_ROWS", 2)
    patch.setattr(substrings, "_EFFORT", effort)
    patch.setattr(substrings, "_HITS", hits)
    patch.setattr(substrings, "_MOST_KEYS", 3000)
    patch.setattr(substrings, "_SAMPLED_PAIRS", 500)
    patch.setattr(substrings, "_PLACE", 0.0)
    patch.setattr(substrings, "_SCAN", 1e9)


def same(found: tuple[NDArray[Any], ...], expected: tuple[NDArray[Any], ...]) -> bool:
    return all(np.array_equal(one, other) for one, other in zip(found, expected, strict=True))


def by_loop(query: NDArray[Any], database: NDArray[Any], radius: int, allowed: Any) -> list[list[tuple[int, int]]]:
    found = []
    for words in query.T.tolist():
        near = [
            (sum((a ^ b).bit_count() for a, b in zip(words, row, strict=True)), i)
            for i, row in enumerate(database.T.tolist())
        ]
        found.append(sorted(pair for pair in near if pair[0] <= radius and (allowed is None or allowed[pair[1]])))
    return found


@given(
    shape=st.sampled_from(["uniform", "clustered", "collapsed"]),
    layout=st.sampled_from([(np.uint32, 1), (np.uint32, 2), (np.uint64, 2), (np.uint64, 12)]),
    n=st.integers(2, 60) | st.sampled_from([127, 129]),
    q=st.integers(0, 4),
    seed=st.integers(0, 2**32 - 1),
    share=st.none() | st.sampled_from([0.0, 0.5]),
    effort=st.sampled_from([0.0, 0.2, 2.0]),
    hits=st.sampled_from([0, 1 << 10]),
    data=st.data(),
)
@settings(deadline=None, max_examples=40)
def test_answers_are_those_of_a_loop(
    shape: str, layout: Any, n: int, q: int, seed: int, share: float | None, effort: float, hits: int, data: Any
) -> None:
    most = 8 * np.dtype(layout[0]).itemsize * layout[1]
    n_bits, radius = (
        data.draw(st.integers(1, most), label="n_bits"),
        data.draw(st.integers(0, most // 2), label="radius"),
    )
    database, query = codes(shape, n, layout, n_bits, seed), codes(shape, q, layout, most, seed + 1)
    allowed = None if share is None else np.random.default_rng(seed).random(n) < share
    with pytest.MonkeyPatch.context() as patch:
        always(patch, effort, hits)
        tables = SubstringTables(database)
        limits, rows, distances = tables.within(query, radius, allowed=allowed)
        expected = by_loop(query, database, radius, allowed)
        assert [
            list(zip(distances[a:b].tolist(), rows[a:b].tolist(), strict=True)) for a, b in pairwise(limits.tolist())
        ] == expected
        assert [array.dtype.name for array in (limits, rows, distances)] == ["int64", "int64", "int32"]


@pytest.mark.parametrize("layout", [(np.uint32, 2), (np.uint64, 2)])
@pytest.mark.parametrize("radius", range(14))
def test_no_row_at_the_radius_is_missed(layout: Any, radius: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows at exactly the radius, by any choice of bits: what the argument of the groups is about."""
    always(monkeypatch)
    query = codes("uniform", 1, layout, 999, 0)
    rng = np.random.default_rng(radius)
    bits = 8 * query.itemsize
    database = np.repeat(query, 300, axis=1)
    for row in database.T:
        for place in rng.permutation(bits * len(query))[:radius].tolist():
            row[place // bits] ^= query.dtype.type(1) << query.dtype.type(place % bits)
    database = np.hstack([database, codes("uniform", 4000, layout, 999, 1)])
    tables = SubstringTables(database)
    found = tables.within(query, radius)
    assert tables._tables is not None and len(tables._tables.rows) > 1
    assert np.isin(np.arange(300), found[1]).all()
    assert same(found, within(query, database, radius))


def test_tables_are_made_when_they_pay_and_not_used_where_they_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    database, query = codes("uniform", 50_000, (np.uint64, 1), 64, 0), codes("uniform", 40, (np.uint64, 1), 64, 1)
    tables = SubstringTables(database)
    tables.within(query, 3)
    assert tables._owed == 0  # so few rows are scanned
    monkeypatch.setattr(substrings, "FEWEST_ROWS", 50_000)
    monkeypatch.setattr(substrings, "_SCAN", 1.0)
    saved = tables._saved(3)
    assert 0 < saved < 400_000
    monkeypatch.setattr(substrings, "_PLACE", 60 * saved / 50_000 / len(tables._groups.mask))
    tables.within(query, 3)
    assert tables.__dict__["_tables"] is None
    found = tables.within(query, 3)  # 80 look-ups
    assert tables._tables is not None
    assert same(found, within(query, database, 3))
    monkeypatch.setattr(tables, "_within", lambda *_: "tables")
    assert tables.within(query, 3) == "tables"  # type: ignore[comparison-overlap]
    assert same(tables.within(query, 40), within(query, database, 40))  # too many keys
    one_bit = SubstringTables(codes("uniform", 50_000, (np.uint64, 1), 1, 0))
    assert one_bit._saved(0) < saved / 2  # every key has half of the rows


def test_bad_arguments_are_refused_as_by_the_scan() -> None:
    tables = SubstringTables(codes("uniform", 600, (np.uint64, 1), 64, 0))
    with pytest.raises(ParameterError, match="radius must be at least 0"):
        tables.within(tables._planes, -1)
    with pytest.raises(DataError, match="both must be codes of one length"):
        tables.within(np.zeros((2, 1), np.uint64), 1)
    with pytest.raises(DataError, match="each of the 600 rows"):
        tables.within(tables._planes[:, :1], 1, allowed=np.ones(3, bool))
