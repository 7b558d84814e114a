"""The embedded index: answers against loops, and what add, remove, get and known promise."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distillhash import Codes
from distillhash.errors import DataError, ParameterError
from distillhash.hamming import search, substrings
from distillhash.index import Index, embedded, open_index


def random_codes(n: int, n_bits: int, seed: int = 0) -> Codes:
    return Codes.from_projection(np.random.default_rng(seed).standard_normal((n, n_bits)))


def brute_force(query: Codes, stored: dict[int, Codes]) -> list[tuple[int, int]]:
    """(id, distance) of everything, by (distance, id)."""
    pairs = [(identifier, int(np.sum(query.signs() != code.signs()))) for identifier, code in stored.items()]
    return sorted(pairs, key=lambda pair: pair[::-1])


@pytest.fixture
def index(tmp_path: Path) -> Index:
    return open_index(tmp_path / "index", n_bits=12, create=True)


@pytest.mark.parametrize("n_bits", [1, 12, 33, 64, 127, 128, 256, 512])
def test_search_and_range_search_against_a_loop(tmp_path: Path, n_bits: int) -> None:
    query = random_codes(2, n_bits, 1)
    for n in (0, 1, 7, 33, 300):
        codes = random_codes(n, n_bits)
        ids = np.random.default_rng(2).permutation(3 * n)[:n]  # in no order: ties must still come by ascending id
        with open_index(tmp_path / str(n), n_bits=n_bits, create=True) as index:
            assert index.add(codes, ids=ids).tolist() == ids.tolist()
            nearest, within = index.search(query, k=20), index.range_search(query, radius=n_bits // 2)
        assert nearest.ids.shape == nearest.distances.shape == (2, 20)
        assert nearest.ids.dtype == within.ids.dtype == np.int64
        assert nearest.distances.dtype == within.distances.dtype == np.int32
        stored = {int(identifier): codes[row] for row, identifier in enumerate(ids)}
        for i in range(2):
            expected = brute_force(query[i], stored)
            assert nearest[i] == expected[:20]
            assert (nearest.ids[i, n:] == -1).all()
            assert (nearest.distances[i, n:] == -1).all()
            assert within[i] == [pair for pair in expected if pair[1] <= n_bits // 2]


@pytest.mark.parametrize("compiles", [True, False])
def test_range_searches_by_tables(tmp_path: Path, compiles: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Items that were replaced, removed and added since, conditions, and codes of two parts, where every search uses tables."""
    for name, value in (("FEWEST_ROWS", 2), ("_PLACE", 0.0), ("_SCAN", 1e9), ("_EFFORT", 2.0)):
        monkeypatch.setattr(substrings, name, value)
    for module in (embedded, search):
        monkeypatch.setattr(module, "compiles", lambda: compiles)
    codes, query = random_codes(300, 64), random_codes(5, 64, 1)
    with open_index(tmp_path / "i", n_bits=64, create=True) as index:
        index.add(codes[:200], metadata=[{"even": row % 2 == 0} for row in range(200)])
        stored = {row: codes[row] for row in range(200)}
        index.range_search(query, radius=20)
        index.add(codes[200:250], ids=range(100, 150), upsert=True)
        index.remove(range(10))
        index.add(codes[250:])
        stored |= {row - 100: codes[row] for row in range(200, 250)} | {row - 50: codes[row] for row in range(250, 300)}
        stored = {row: code for row, code in stored.items() if row >= 10}
        found = index.range_search(query, radius=26)
        parts = index.range_search(Codes(query.packed, 64, class_bits=16), radius=26)
        even = index.range_search(query, radius=26, where="metadata->>'even'")
        held = index._snapshot.fresh.__dict__.get("_tables")  # type: ignore[attr-defined]
        assert (held is not None and held._tables is not None) == compiles
    for i in range(5):
        expected = [pair for pair in brute_force(query[i], stored) if pair[1] <= 26]
        assert found[i] == expected and sorted(parts[i]) == sorted(expected)
        assert even[i] == [(row, far) for row, far in expected if row < 200 and not 100 <= row < 150 and row % 2 == 0]


def test_results_take_negative_queries_and_refuse_others(index: Index) -> None:
    index.add(random_codes(5, 12))
    query = random_codes(3, 12, 1)
    for result in (index.search(query, k=2), index.range_search(query, radius=6)):
        assert result[-1] == result[2]
        assert list(result) == [result[0], result[1], result[2]]
        with pytest.raises(IndexError):
            result[3]


def test_ids_up_to_the_largest(index: Index) -> None:
    largest = 2**63 - 1
    index.add(random_codes(1, 12), ids=np.array([largest], np.uint64))
    assert index.search(random_codes(1, 12), k=1)[0] == [(largest, 0)]
    with pytest.raises(DataError, match="no id is left"):
        index.add(random_codes(1, 12))


def test_more_keys_and_ids_than_a_statement_takes(index: Index) -> None:
    keys = [f"k{i}" for i in range(2503)]
    ids = index.add(random_codes(2503, 12), keys=keys)
    assert index.known(keys) == {key: (identifier, None) for identifier, key in enumerate(keys)}
    assert [item.key for item in index.get(ids.tolist())] == keys
    assert index.remove(ids[1:]) == 2502
    assert len(index) == 1


def test_upsert_keeps_the_id_of_a_key_and_replaces_the_rest(index: Index) -> None:
    index.add(random_codes(2, 12), keys=["a", "b"], metadata=[{"n": 1}, {"n": 2}])
    new = random_codes(3, 12, 5)
    index.search(new, k=1)  # so that the change has to reach codes already in memory
    assert index.add(new, keys=["c", "b", "d"], upsert=True).tolist() == [2, 1, 3]
    assert len(index) == 4
    assert index.get([1])[0].metadata is None
    assert index.search(new[1], k=4)[0] == brute_force(
        new[1], {0: random_codes(2, 12)[0], 1: new[1], 2: new[0], 3: new[2]}
    )
    assert index.add(new[0], ids=[0], upsert=True).tolist() == [0]
    assert index.get([0])[0].key is None


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"ids": [1]}, "1 ids for 2 codes"),
        ({"ids": [4, 4]}, "4 comes twice"),
        ({"ids": [4, -1]}, "got -1"),
        ({"ids": [0.5, 1.5]}, "integers"),
        ({"ids": [[1], [2]]}, "flat"),
        ({"ids": [2**63, 1]}, str(2**63)),
        ({"ids": [7, 8]}, "the id 7 is in the index already"),
        ({"keys": ["x", "x"]}, "'x' comes twice"),
        ({"keys": ["x", "seven"]}, "'seven' is in the index already"),
        ({"keys": ["x", 3]}, "text, got 3"),
        ({"keys": ["x", "seven"], "ids": [1, 2], "upsert": True}, "belongs to id 7"),
        ({"metadata": [{}, {"x": float("nan")}]}, "entry 1 is not JSON"),
        ({"metadata": [{}, {"x": object()}]}, "entry 1 is not JSON"),
        ({"metadata": [[], {}]}, "dictionaries"),
        ({"digests": ["x", b"y"]}, "bytes, got 'x'"),
    ],
)
def test_add_refuses_and_stores_nothing(index: Index, arguments: dict[str, Any], sentence: str) -> None:
    index.add(random_codes(1, 12), ids=[7], keys=["seven"])
    with pytest.raises(DataError, match=sentence):
        index.add(random_codes(2, 12), **arguments)
    assert len(index) == 1
    assert index.add(random_codes(1, 12)).tolist() == [8]


def test_other_refusals(index: Index) -> None:
    codes = random_codes(1, 12)
    for k in (0, -1, 2.0, True, None):
        with pytest.raises(ParameterError, match="k must be a positive integer"):
            index.search(codes, k=k)  # type: ignore[arg-type]  # wrong on purpose
    for radius in (-1, 0.5, True):
        with pytest.raises(ParameterError, match="radius must be an integer"):
            index.range_search(codes, radius=radius)  # type: ignore[arg-type]  # wrong on purpose
    longer = random_codes(1, 13)
    for call in (index.add, index.search, index.range_search):
        with pytest.raises(DataError, match="12 bits, got 13"):
            call(longer)
    for absent in (3, -1, 2**63, 1.5):
        with pytest.raises(DataError, match=f"no item with id {absent}"):
            index.get([absent])  # type: ignore[list-item]  # one is wrong on purpose
