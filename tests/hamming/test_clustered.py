"""The clustered structure against the plain searches: the same answers for any codes, and used where it was measured to pay."""

from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from numpy.typing import NDArray

from distillhash.errors import DataError, ParameterError
from distillhash.hamming import clustered, nearest, within
from distillhash.hamming.clustered import ClusteredCodes

ALWAYS, NEVER = 1000, 0  # values of largest_k


def codes(shape: str, n: int, n_planes: int, dtype: Any, seed: int) -> NDArray[Any]:
    rng = np.random.default_rng(seed)
    bits = 8 * np.dtype(dtype).itemsize
    words = rng.integers(0, 2**bits, (n_planes, n), dtype)
    if shape == "uniform":
        return words
    n_centres = 7 if n < 10_000 else 300
    centres = np.random.default_rng(1).integers(0, 2**bits, (n_planes, n_centres), dtype)
    few = words & rng.integers(0, 2**bits, (n_planes, n), dtype) & rng.integers(0, 2**bits, (n_planes, n), dtype)
    return centres[:, rng.integers(0, n_centres, n)] ^ (few if shape == "clustered" else few & few[:, ::-1] & dtype(3))


def same(found: tuple[NDArray[Any], ...], expected: tuple[NDArray[Any], ...]) -> bool:
    return all(
        one.dtype == other.dtype and np.array_equal(one, other) for one, other in zip(found, expected, strict=True)
    )


@given(
    shape=st.sampled_from(["uniform", "clustered", "collapsed"]),
    layout=st.sampled_from([(np.uint16, 1), (np.uint32, 1), (np.uint64, 1), (np.uint64, 2), (np.uint64, 8)]),
    n=st.integers(1, 80) | st.sampled_from([511, 513, 3000]),
    q=st.integers(0, 5),
    seed=st.integers(0, 2**32 - 1),
    share=st.none() | st.sampled_from([0.0, 0.02, 0.5, 1.0]),
    effort=st.sampled_from([0.0, 0.05, 2.0]),
    data=st.data(),
)
@settings(deadline=None, max_examples=30)
def test_answers_are_those_of_the_scan(
    shape: str, layout: Any, n: int, q: int, seed: int, share: float | None, effort: float, data: Any
) -> None:
    dtype, n_planes = layout
    k = data.draw(st.integers(0, n + 2), label="k")
    radius = data.draw(st.integers(0, 8 * np.dtype(dtype).itemsize * n_planes + 2), label="radius")
    database, query = codes(shape, n, n_planes, dtype, seed), codes(shape, q, n_planes, dtype, seed + 1)
    allowed = None if share is None else np.random.default_rng(seed).random(n) < share
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clustered, "_ROWS_PER_CENTRE", 16)
        patch.setattr(clustered, "_EFFORT", effort)
        patch.setattr(clustered, "_TRIALS", 2)
        structure = ClusteredCodes(database)
        again = ClusteredCodes.from_arrays(database, structure.arrays())
        assert again.largest_k == structure.largest_k
        for searched, largest_k in ((structure, ALWAYS), (again, ALWAYS), (structure, NEVER)):
            searched.largest_k = largest_k
            for queries in (query, *(query[:, i : i + 1] for i in range(q))):
                found = searched.nearest(queries, k, allowed=allowed)
                assert same(found, nearest(queries, database, k, allowed=allowed))
                ranges = searched.within(queries, radius, allowed=allowed)
                assert same(ranges, within(queries, database, radius, allowed=allowed))


@pytest.mark.parametrize(("shape", "scanned"), [("clustered", 0), ("collapsed", 0), ("uniform", 20)])
def test_a_query_is_given_to_the_scan_only_if_it_looks_at_too_much(
    shape: str, scanned: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    database, query = codes(shape, 60_000, 1, np.uint64, 0), codes(shape, 20_000, 1, np.uint64, 1)[:, :20]
    monkeypatch.setattr(clustered, "_ROWS_PER_CENTRE", 64)
    structure = ClusteredCodes(database)
    expected = nearest(query, database, 10)
    given: list[int] = []

    def spy(query: NDArray[Any], *arguments: Any, **options: Any) -> Any:
        given.append(query.shape[1])
        return nearest(query, *arguments, **options)

    monkeypatch.setattr(clustered, "nearest", spy)
    structure.largest_k = ALWAYS
    for i in range(20):
        one = structure.nearest(query[:, i : i + 1], 10)
        assert same(one, tuple(part[i : i + 1] for part in expected))
    assert sum(given) == scanned


@pytest.mark.parametrize("plan", [[1.0, 0.04, 0.2, 2.0], [1.0, 0.1, 0.04, 0.2, 2.0]])  # the second by earlier versions
def test_it_is_used_for_one_query_where_it_was_measured_to_pay(
    plan: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    database = codes("clustered", 600, 1, np.uint64, 0)
    arrays = ClusteredCodes(database).arrays()
    assert (arrays["plan"] > 0).all() and len(arrays["plan"]) == 4
    structure = ClusteredCodes.from_arrays(database, arrays | {"plan": np.array(plan)})
    assert structure.largest_k == 100  # 2.0 is more than half of 1.0
    monkeypatch.setattr(structure, "_nearest", lambda *_: "structure")
    assert structure.nearest(database[:, :1], 100) == "structure"  # type: ignore[comparison-overlap]
    for query, k in ((database[:, :1], 101), (database[:, :2], 100)):
        assert same(structure.nearest(query, k), nearest(query, database, k))


def test_bad_arguments_are_refused_as_by_the_scan() -> None:
    structure = ClusteredCodes(codes("clustered", 600, 1, np.uint64, 0))
    for structure.largest_k in (ALWAYS, NEVER):
        with pytest.raises(ParameterError, match="k must be at least 0"):
            structure.nearest(structure.planes, -1)
        with pytest.raises(ParameterError, match="radius must be at least 0"):
            structure.within(structure.planes, -1)
        with pytest.raises(DataError, match="both must be codes of one length"):
            structure.nearest(np.zeros((2, 1), np.uint64), 1)
        with pytest.raises(DataError, match="each of the 600 rows"):
            structure.within(structure.planes[:, :1], 1, allowed=np.ones(3, bool))
    with pytest.raises(DataError, match="no codes"):
        ClusteredCodes(np.zeros((1, 0), np.uint64))


def test_arrays_of_other_codes_are_refused() -> None:
    database = codes("clustered", 600, 1, np.uint64, 0)
    arrays = ClusteredCodes(database).arrays()
    with pytest.raises(DataError, match="not of 599 codes in 1 planes"):
        ClusteredCodes.from_arrays(database[:, 1:], arrays)
