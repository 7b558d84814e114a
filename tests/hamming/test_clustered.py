"""The clustered structure against the plain searches: same answers, whatever the codes, and a plan that follows the measurements."""

import subprocess
import sys
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from numpy.typing import NDArray

from distillhash.errors import DataError, ParameterError
from distillhash.hamming import ClusteredCodes, clustered, nearest, within
from distillhash.hamming.clustered import Plan

ALWAYS, NEVER = Plan(1.0, 1.0, (0.0,) * 3), Plan(0.0, 0.0, (1.0,) * 3)


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
    threads=st.sampled_from([1, 2]),
    effort=st.sampled_from([0.0, 0.05, 2.0]),
    data=st.data(),
)
@settings(deadline=None, max_examples=60)
def test_answers_are_those_of_the_scan(
    shape: str, layout: Any, n: int, q: int, seed: int, share: float | None, threads: int, effort: float, data: Any
) -> None:
    dtype, n_planes = layout
    k = data.draw(st.integers(0, n + 2), label="k")
    radius = data.draw(st.integers(0, 8 * np.dtype(dtype).itemsize * n_planes + 2), label="radius")
    database, query = codes(shape, n, n_planes, dtype, seed), codes(shape, q, n_planes, dtype, seed + 1)
    allowed = None if share is None else np.random.default_rng(seed).random(n) < share
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clustered, "_ROWS_PER_CENTRE", 16)
        patch.setattr(clustered, "EFFORT", effort)
        patch.setattr(clustered, "_QUERIES_AT_ONCE", 2)
        patch.setattr(clustered, "_TRIALS", 2)
        structure = ClusteredCodes(database, threads=threads)
        again = ClusteredCodes.from_arrays(database, structure.arrays())
        assert again.plan == structure.plan
        for searched, plan in ((structure, ALWAYS), (again, ALWAYS), (structure, NEVER)):
            searched.plan = plan
            found = searched.nearest(query, k, allowed=allowed, threads=threads)
            assert same(found, nearest(query, database, k, allowed=allowed, engine="numpy"))
            ranges = searched.within(query, radius, allowed=allowed, threads=threads)
            assert same(ranges, within(query, database, radius, allowed=allowed, engine="numpy"))


@given(
    shape=st.sampled_from(["uniform", "clustered", "collapsed"]),
    n=st.integers(1, 80) | st.sampled_from([513, 3000]),
    seed=st.integers(0, 2**32 - 1),
    share=st.none() | st.sampled_from([0.0, 0.1]),
    data=st.data(),
)
@settings(deadline=None, max_examples=30)
def test_an_approximate_answer_is_as_long_and_no_nearer(
    shape: str, n: int, seed: int, share: float | None, data: Any
) -> None:
    k = data.draw(st.integers(0, n + 2), label="k")
    database, query = codes(shape, n, 1, np.uint64, seed), codes(shape, 3, 1, np.uint64, seed + 1)
    allowed = None if share is None else np.random.default_rng(seed).random(n) < share
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clustered, "_ROWS_PER_CENTRE", 16)
        patch.setattr(clustered, "_TRIALS", 2)
        structure = ClusteredCodes(database)
    rows, far = structure.nearest(query, k, recall=0.01, allowed=allowed)
    _, expected = nearest(query, database, k, allowed=allowed, engine="numpy")
    np.testing.assert_array_equal(rows < 0, expected < 0)
    assert (far >= expected).all()
    for i, row in np.argwhere(rows >= 0):
        assert far[i, row] == np.bitwise_count(query[0, i] ^ database[0, rows[i, row]])
        assert allowed is None or allowed[rows[i, row]]
    assert all(len(set(row[row >= 0])) == (row >= 0).sum() for row in rows)


def test_recall_is_as_measured_on_queries_that_were_not_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    everything = codes("clustered", 42_000, 1, np.uint64, 0)
    database, query = np.ascontiguousarray(everything[:, :40_000]), np.ascontiguousarray(everything[:, 40_000:])
    monkeypatch.setattr(clustered, "_ROWS_PER_CENTRE", 64)
    structure = ClusteredCodes(database)
    assert (np.diff(structure.recalls, axis=0) >= 0).all()
    last = nearest(query, database, 10)[1][:, -1:]
    for wanted in (0.5, 0.9):
        measured = structure.recalls[structure.recalls[:, 1] >= wanted][0, 1]
        _, far = structure.nearest(query, 10, recall=wanted)
        assert float((far <= last).mean()) == pytest.approx(measured, abs=0.05)
    monkeypatch.setattr(structure, "recalls", np.array([[0.01, 0.8]]))
    assert same(structure.nearest(query, 10, recall=0.81), nearest(query, database, 10))
    assert not same(structure.nearest(query, 10, recall=0.8), nearest(query, database, 10))
    monkeypatch.setattr(structure, "recalls", np.array([[0.01, 1.0]]))
    assert same(structure.nearest(query, 10, recall=1.0), nearest(query, database, 10))
    for wrong in (0.0, 1.5):
        with pytest.raises(ParameterError, match="recall must be above 0 and at most 1"):
            structure.nearest(query, 10, recall=wrong)


@pytest.mark.parametrize(("shape", "scanned"), [("clustered", 0), ("collapsed", 0), ("uniform", 20)])
def test_a_query_is_given_to_the_scan_only_if_it_looks_at_too_much(
    shape: str, scanned: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    database, query = codes(shape, 60_000, 1, np.uint64, 0), codes(shape, 20_000, 1, np.uint64, 1)[:, :20]
    monkeypatch.setattr(clustered, "_ROWS_PER_CENTRE", 64)
    structure = ClusteredCodes(database, threads=1)
    expected = nearest(query, database, 10)
    given: list[int] = []

    def spy(query: NDArray[Any], *arguments: Any, **options: Any) -> Any:
        given.append(query.shape[1])
        return nearest(query, *arguments, **options)

    monkeypatch.setattr(clustered, "nearest", spy)
    structure.plan = ALWAYS
    assert same(structure.nearest(query, 10), expected)
    assert sum(given) == scanned


def test_the_plan_weighs_one_query_batches_and_k() -> None:
    plan = Plan(scan_one=1.0, scan_batch=0.1, clustered=(0.04, 0.2, 2.0))
    assert plan.pays(1, 10)
    assert plan.pays(1, 100)
    assert not plan.pays(1, 101)
    assert plan.pays(1000, 10)
    assert plan.pays(2, 100)
    assert not plan.pays(3, 100)  # not by enough


def test_the_plan_is_measured() -> None:
    structure = ClusteredCodes(codes("uniform", 60_000, 1, np.uint64, 0), threads=1)
    assert min(structure.plan.scan_one, structure.plan.scan_batch, *structure.plan.clustered) > 0
    assert structure.plan.scan_batch < structure.plan.scan_one
    assert structure.nbytes < 15 * 60_000


def test_bad_arguments_are_refused_as_by_the_scan() -> None:
    structure = ClusteredCodes(codes("clustered", 600, 1, np.uint64, 0), threads=1)
    for structure.plan in (ALWAYS, NEVER):
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
    arrays = ClusteredCodes(database, threads=1).arrays()
    with pytest.raises(DataError, match="of 600 codes of 1 planes, the planes have 599 of 1"):
        ClusteredCodes.from_arrays(database[:, 1:], arrays)


def test_after_warm_up_nothing_is_compiled() -> None:
    program = (
        "import numpy as np\n"
        "from numba.core import event\n"
        "from distillhash import Codes\n"
        "from distillhash.hamming import ClusteredCodes, planes_of\n"
        "from distillhash.hamming.clustered import Plan\n"
        "planes = planes_of(Codes.from_packed(np.random.default_rng(0).integers(0, 256, (5000, 8), np.uint8), 64))\n"
        "structure = ClusteredCodes.from_arrays(planes, ClusteredCodes(planes).arrays())\n"
        "structure.warm_up()\n"
        "with event.install_recorder('numba:compile') as recorder:\n"
        "    for structure.plan in (Plan(1, 1, (0, 0, 0)), Plan(0, 0, (1, 1, 1))):\n"
        "        for allowed in (None, np.ones(5000, bool)):\n"
        "            structure.nearest(planes[:, :9], 5, allowed=allowed)\n"
        "            structure.within(planes[:, :9], 5, allowed=allowed)\n"
        "print(len(recorder.buffer))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "0"
