"""What every engine must do, in one suite over all of them: against plain loops, on real servers."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distillhash import Codes
from distillhash.errors import DataError, DistillHashError, FormatError, ParameterError
from distillhash.hamming.ranking import order
from distillhash.index import Index, open_index
from distillhash.index.sync import Added, Batch, Rows, Update

WIDTHS = (1, 8, 12, 33, 64, 127, 128, 256)
NUMBERS = itertools.count()
RUN = secrets.token_hex(3)  # a server may outlive the tests


@dataclass
class Engine:
    """An engine and a place for one new index in it."""

    place: str | Path
    where: str  # the engine's words for "the year is 2021 or later"
    keeps: bool = True  # whether an index outlives its process
    largest_id: int = 2**63 - 1
    opened: list[Index] = field(default_factory=list)

    def open(self, n_bits: int | None = None, create: bool = False, **options: Any) -> Any:
        self.opened.append(open_index(self.place, n_bits, create, **options))
        return self.opened[-1]


def on_embedded(request: pytest.FixtureRequest, name: str) -> Engine:
    return Engine(request.getfixturevalue("tmp_path") / name, where="metadata->>'year' >= 2021")


def in_memory(request: pytest.FixtureRequest, name: str) -> Engine:
    return Engine("memory://", keeps=False, where="metadata->>'year' >= 2021")


def on_postgres(request: pytest.FixtureRequest, name: str) -> Engine:
    uri = f"{request.getfixturevalue('postgres')}&table={name}"
    return Engine(uri, where="(metadata->>'year')::int >= 2021")


def on_milvus(request: pytest.FixtureRequest, name: str) -> Engine:
    return milvus_engine(request.getfixturevalue("milvus").uri(name))


def on_standalone_milvus(request: pytest.FixtureRequest, name: str) -> Engine:
    return milvus_engine(request.getfixturevalue("standalone").uri(name))


def on_milvus_of_small_answers(request: pytest.FixtureRequest, name: str) -> Engine:
    """A server that gives at most 8 items a time: every cut tie and every range is put together from parts."""
    return milvus_engine(request.getfixturevalue("milvus").uri(name, "largest=8"))


def milvus_engine(place: str) -> Engine:
    return Engine(place, where='metadata["year"] >= 2021', largest_id=2**63 - 2)


ENGINES: dict[str, Callable[[pytest.FixtureRequest, str], Engine]] = {
    "embedded": on_embedded,
    "memory": in_memory,
    "postgres": on_postgres,
    "milvus": on_milvus,
}
STANDALONE = pytest.param("standalone milvus", marks=pytest.mark.long)
OTHERS = {"milvus of small answers": on_milvus_of_small_answers, "standalone milvus": on_standalone_milvus}


@pytest.fixture(params=[*ENGINES, STANDALONE])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    yield from opened_engine(request, (ENGINES | OTHERS)[request.param])


@pytest.fixture(params=[*ENGINES, "milvus of small answers", STANDALONE])
def searcher(request: pytest.FixtureRequest) -> Iterator[Engine]:
    yield from opened_engine(request, (ENGINES | OTHERS)[request.param])


def opened_engine(
    request: pytest.FixtureRequest, make: Callable[[pytest.FixtureRequest, str], Engine]
) -> Iterator[Engine]:
    engine = make(request, f"index_{RUN}_{next(NUMBERS)}")
    yield engine
    for index in engine.opened:
        index.close()


@pytest.fixture
def keeper(engine: Engine) -> Engine:
    if not engine.keeps:
        pytest.skip("the in-memory engine keeps nothing")
    return engine


def to_codes(values: list[int], n_bits: int) -> Codes:
    """Codes whose bits are those of an integer, lowest first."""
    bits = [[value >> bit & 1 for bit in range(n_bits)] for value in values]
    return Codes.from_signs(2 * np.array(bits, np.int8).reshape(len(values), n_bits) - 1)


def ranked(stored: dict[int, int], query: int) -> list[tuple[int, int]]:
    """All (id, distance) by (distance, id), by a loop over integers."""
    pairs = [(bin(query ^ value).count("1"), identifier) for identifier, value in stored.items()]
    return [(identifier, distance) for distance, identifier in sorted(pairs)]


@pytest.mark.parametrize("n_bits", WIDTHS)
def test_answers_equal_a_loop(searcher: Engine, n_bits: int) -> None:
    rng = np.random.default_rng(n_bits)
    pool = [int.from_bytes(rng.bytes(32)) % 2**n_bits for _ in range(7)]
    pool += [value ^ 1 << int(rng.integers(n_bits)) for value in pool]  # many at one distance
    values = [pool[i] for i in rng.integers(len(pool), size=50)]
    ids = rng.permutation(200)[:50].tolist()
    stored = dict(zip(ids, values, strict=True))
    index = searcher.open(n_bits, create=True)
    index.add(to_codes(values[:30], n_bits), ids=ids[:30])
    index.add(to_codes(values[30:], n_bits), ids=ids[30:])
    assert len(index) == 50
    queries = [*pool[:2], values[3] ^ 2**n_bits - 1, 0]  # the third is n_bits away from one of them
    expected = [ranked(stored, query) for query in queries]
    assert expected[2][-1][1] == n_bits
    codes = to_codes(queries, n_bits)
    for k in (1, 5, 8) if "largest" in str(searcher.place) else (1, 5, 8, 50, 70):
        found = index.search(codes, k)
        assert found.ids.shape == found.distances.shape == (4, k)
        assert found.ids.dtype == np.int64 and found.distances.dtype == np.int32
        assert list(found) == [rows[:k] for rows in expected]
        assert (found.ids[:, 50:] == -1).all() and (found.distances[:, 50:] == -1).all()
    for radius in (0, n_bits // 3, n_bits, n_bits + 5):
        near = index.range_search(codes, radius)
        assert list(near) == [[row for row in rows if row[1] <= radius] for rows in expected]
        assert near.limits[0] == 0 and near.limits[-1] == len(near.ids) == len(near.distances)


def two_part_order(stored: dict[int, int], query: int, class_bits: int, by: Any) -> list[tuple[int, int]]:
    """All (id, distance) in the order of the ranking, from integers whose lowest bits are the class part."""
    ids = sorted(stored)
    far = [bin(query ^ stored[identifier]).count("1") for identifier in ids]
    of_class = [bin((query ^ stored[identifier]) & 2**class_bits - 1).count("1") for identifier in ids]
    return [(ids[place], far[place]) for place in order(np.array(far), np.array(of_class), by)]


def test_codes_of_two_parts_are_ranked_by_both(engine: Engine) -> None:
    """The index was filled with codes of one part, and with others; all of it is among the candidates of every engine."""
    rng = np.random.default_rng(0)
    pool = [int.from_bytes(rng.bytes(8)) for _ in range(6)]
    values = [pool[i] ^ int.from_bytes(rng.bytes(8)) & int.from_bytes(rng.bytes(8)) for i in rng.integers(6, size=150)]
    ids = rng.permutation(1000)[:150].tolist()
    index = engine.open(64, create=True)
    index.add(to_codes(values[:100], 64), ids=ids[:100], metadata=[{"year": 2020 + i % 2} for i in range(100)])
    queries = Codes(to_codes([*pool[:2], values[3]], 64).packed, 64, 16)
    assert len(index.search(queries, 1)) == 3  # an engine may keep what it read
    index.add(Codes(to_codes(values[100:], 64).packed, 64, 16), ids=ids[100:], metadata=[{"year": 2021}] * 50)
    stored = dict(zip(ids, values, strict=True))
    later = {identifier: stored[identifier] for i, identifier in enumerate(ids) if i >= 100 or i % 2}
    wanted = [*pool[:2], values[3]]
    for by in ("both", "nearest", "kind"):
        expected = [two_part_order(stored, query, 16, by) for query in wanted]
        for k in (1, 40, 60, 200):
            found = index.search(queries, k, by=by)
            assert found.ids.shape == (3, k)
            assert list(found) == [pairs[:k] for pairs in expected]
        found = index.search(queries, 60, where=engine.where, by=by)
        assert list(found) == [two_part_order(later, query, 16, by)[:60] for query in wanted]
        for query, near in zip(wanted, index.range_search(queries, 24, by=by), strict=True):
            inside = {identifier: value for identifier, value in stored.items() if bin(query ^ value).count("1") <= 24}
            assert near == two_part_order(inside, query, 16, by)
    with pytest.raises(ParameterError, match="one ranking, got by='kind'"):
        index.search(to_codes(pool, 64), 3, by="kind")
    with pytest.raises(ParameterError, match="by must be one of both, nearest, kind"):
        index.range_search(queries, 3, by="near")


def test_ties_at_the_cut_go_by_ascending_id(searcher: Engine) -> None:
    index = searcher.open(16, create=True)
    ids = [40, 5, searcher.largest_id, 33, 12, 7, 2**40, 19, 21, 100, 3, 64, 65, 66, 67, 68, 69, 70, 71, 72]
    index.add(to_codes([3] * 19 + [0], 16), ids=ids)
    expected = [(72, 0), *((identifier, 2) for identifier in sorted(ids[:-1]))]
    assert index.search(to_codes([0], 16), 4)[0] == expected[:4]
    assert index.search(to_codes([0], 16), 1)[0] == expected[:1]
    assert index.range_search(to_codes([0], 16), 2)[0] == expected


def test_all_ids_ascending(searcher: Engine) -> None:
    index = searcher.open(8, create=True)
    assert index.ids().tolist() == [] and index.ids().dtype == np.int64
    stored = {searcher.largest_id, 0, *range(3, 60, 2), 2**40}
    index.add(to_codes([1] * len(stored), 8), ids=[5 * 10**9, *sorted(stored)[1:]])
    assert index.ids().tolist() == sorted({5 * 10**9} | stored - {0})
    index.remove([5 * 10**9, 3, searcher.largest_id])
    index.add(to_codes([1, 2], 8), ids=[0, 2**50])
    index.add(to_codes([7], 8), ids=[7], upsert=True)
    assert index.ids().tolist() == sorted(stored - {3, searcher.largest_id} | {2**50})


def test_empty_things(engine: Engine) -> None:
    index = engine.open(12, create=True)
    query = to_codes([1, 2], 12)
    assert list(index.search(query, 3)) == [[], []] and index.search(query, 3).ids.shape == (2, 3)
    assert list(index.range_search(query, 12)) == [[], []]
    nothing = to_codes([], 12)
    assert index.add(nothing).tolist() == []
    assert index.search(nothing, 3).ids.shape == (0, 3) and len(index.range_search(nothing, 3)) == 0
    assert (
        index.get([]) == []
        and index.ids().tolist() == []
        and index.known([]) == {}
        and index.present([]) == set()
        and index.remove([]) == 0
    )
    assert len(index) == 0


def test_items_come_back_as_they_were_stored(engine: Engine) -> None:
    index = engine.open(12, create=True)
    keys = [
        "cat.jpg",
        "",
        "c:\\users\\u0041.png",
        "caf\udce9.jpg",
        "a\nb\tc\0d",
        "'\"%s{}\\",
        "ö" * 2000,
        "\U0001f408",
        "\\u12",
    ]
    digests = [b"", *(bytes([number]) * 16 for number in range(1, len(keys)))]
    entries: list[dict[str, Any] | None] = [
        None, {}, {"a": [1, 2.5, None, True, {"b": "\udce9\0"}]}, {"\\u0041": "'"}, {"n": -(2**63)}, {"x": 2**63 - 1}, {"t": "ö"},
        {"": ""}, {"z": 1e300},
    ]  # fmt: skip
    values = list(range(len(keys)))
    ids = index.add(to_codes(values, 12), metadata=entries, keys=keys, digests=digests).tolist()
    plain = index.add(to_codes([77], 12)).tolist()
    items = index.get([*reversed(ids), *plain, *plain])
    for item, place in zip(items, reversed(range(len(keys))), strict=False):
        assert (item.id, item.key, item.digest, item.metadata) == (
            ids[place],
            keys[place],
            digests[place],
            entries[place],
        )
        assert item.code == to_codes([values[place]], 12)
    assert items[-1] == items[-2]
    assert (items[-1].id, items[-1].key, items[-1].digest, items[-1].metadata) == (plain[0], None, None, None)
    known = index.known([*keys, "dog.jpg", "\\u0000"])
    assert known == {key: (ids[place], digests[place]) for place, key in enumerate(keys)}
    assert index.present([ids[0], 999, *plain]) == {ids[0], *plain}
    for unknown in (999, -1, 2**70):
        with pytest.raises(DataError, match=f"no item with id {unknown}"):
            index.get([ids[0], unknown])


def test_upsert_replaces_whole_items_and_keeps_ids(engine: Engine) -> None:
    index = engine.open(8, create=True)
    first = index.add(
        to_codes([1, 2, 3], 8), keys=["a", "b", "c"], metadata=[{"v": 1}] * 3, digests=[b"x"] * 3
    ).tolist()
    assert first == [0, 1, 2]
    before = index.get(first)
    for options in ({"keys": ["new", "b"]}, {"ids": [7, 1]}, {"ids": [7, 8], "keys": ["new", "b"]}):
        with pytest.raises(DataError, match="pass upsert=True"):
            index.add(to_codes([9, 9], 8), **options)
    with pytest.raises(DataError, match="the key 'b' belongs to id 1, not 7"):
        index.add(to_codes([9], 8), ids=[7], keys=["b"], upsert=True)
    assert index.get(first) == before and len(index) == 3
    assert index.add(to_codes([20, 30], 8), keys=["b", "d"], upsert=True).tolist() == [1, 3]
    assert index.add(to_codes([40], 8), ids=[2], upsert=True).tolist() == [2]
    items = index.get([1, 2, 3])
    assert [item.code for item in items] == [to_codes([20], 8), to_codes([40], 8), to_codes([30], 8)]
    assert [(item.key, item.digest, item.metadata) for item in items] == [
        ("b", None, None),
        (None,) * 3,
        ("d", None, None),
    ]
    assert set(index.known(["a", "b", "c", "d"])) == {"a", "b", "d"}
    assert index.search(to_codes([20], 8), 2)[0] == ranked({0: 1, 1: 20, 2: 40, 3: 30}, 20)[:2]
    assert len(index) == 4


def test_removed_items_are_gone_and_their_ids_stay_unused(engine: Engine) -> None:
    index = engine.open(8, create=True)
    index.add(to_codes(list(range(10)), 8), keys=[f"k{number}" for number in range(10)])
    for ids, keys, sentence in [
        ([1, 50], [], "id 50"), ([1], ["gone"], "key 'gone'"), ([2, 2], [], "2 comes twice"),
    ]:  # fmt: skip
        with pytest.raises(DataError, match=sentence):
            index.remove(ids, keys=keys)
    assert len(index) == 10
    assert index.remove([8, 9, 3], keys=["k3", "k5"]) == 4
    left = {identifier: identifier for identifier in (0, 1, 2, 4, 6, 7)}
    assert len(index) == 6 and index.present(range(10)) == left.keys()
    assert index.search(to_codes([9], 8), 10)[0] == ranked(left, 9)
    assert index.known(["k8", "k7"]).keys() == {"k7"}
    assert index.add(to_codes([200], 8)).tolist() == [10]
    assert index.add(to_codes([201], 8), ids=[40]).tolist() == [40]
    assert index.remove([40]) == 1
    assert index.add(to_codes([202], 8), keys=["k9"]).tolist() == [41]


def test_what_is_refused_changes_nothing(engine: Engine) -> None:
    index = engine.open(8, create=True)
    index.add(to_codes([1], 8))
    two = to_codes([5, 6], 8)
    calls: list[tuple[Callable[[], Any], type[DistillHashError], str]] = [
        (lambda: index.add(to_codes([1], 9)), DataError, "holds codes of 8 bits, got 9"),
        (lambda: index.add(two, ids=[1]), DataError, "1 ids for 2 codes"),
        (lambda: index.add(two, ids=[3, 3]), DataError, "3 comes twice"),
        (lambda: index.add(two, ids=[3, -1]), DataError, "got -1"),
        (lambda: index.add(two, keys=["a", "a"]), DataError, "'a' comes twice"),
        (lambda: index.add(two, metadata=[{}, {"x": float("nan")}]), DataError, "entry 1 is not JSON"),
        (
            lambda: index.add(two, ids=[5, engine.largest_id]) is None or index.add(two),
            DataError,
            "no id is left|below it",
        ),
        (lambda: index.search(to_codes([1], 9)), DataError, "got 9"),
        (lambda: index.search(two, 0), ParameterError, "positive integer, got 0"),
        (lambda: index.range_search(to_codes([1], 9)), DataError, "got 9"),
        (lambda: index.range_search(two, -1), ParameterError, "at least 0 bits, got -1"),
    ]
    for call, error, sentence in calls:
        with pytest.raises(error, match=sentence):
            call()
    assert index.present([0, 1, 3, 5]) == {0, 5} and len(index) == 3


def test_filter(searcher: Engine) -> None:
    index = searcher.open(12, create=True)
    rng = np.random.default_rng(0)
    values = rng.integers(16, size=60).tolist()
    years = (2015 + rng.integers(10, size=60)).tolist()
    index.add(to_codes(values, 12), metadata=[{"year": year, "note": "100%"} for year in years])
    stored = {identifier: value for identifier, value in enumerate(values) if years[identifier] >= 2021}
    for query in (0, 9):
        codes = to_codes([query], 12)
        assert index.search(codes, 6, where=searcher.where)[0] == ranked(stored, query)[:6]
        expected = [row for row in ranked(stored, query) if row[1] <= 2]
        assert index.range_search(codes, 2, where=searcher.where)[0] == expected
        assert index.search(codes, 6, where="id < 0")[0] == []
    for wrong in ("no_such_field = = 1", "id >"):
        with pytest.raises(ParameterError, match="where="):
            index.search(to_codes([0], 12), 3, where=wrong)
    assert len(index.search(to_codes([0], 12), 3)[0]) == 3  # and it still answers


def test_reopened_index_is_the_same(keeper: Engine) -> None:
    with pytest.raises(DataError, match="no index"):
        keeper.open(33)
    for n_bits in (None, 0, 4097):
        with pytest.raises(ParameterError, match=r"code length|n_bits must be"):
            keeper.open(n_bits, create=True)
    stored = dict(enumerate([5, 2**32 + 1, 77, 78, 5]))
    with closing(keeper.open(33, create=True, model_fingerprint="abc")) as index:
        index.add(to_codes(list(stored.values()), 33), keys=list("abcde"))
        index.remove([4])
    del stored[4]
    for options in ({}, {"n_bits": 33}, {"create": True}, {"model_fingerprint": "abc"}):
        with closing(keeper.open(**options)) as index:
            assert (len(index), index.n_bits, index.model_fingerprint) == (4, 33, "abc")
            assert index.search(to_codes([78], 33), 9)[0] == ranked(stored, 78)
    with pytest.raises(ParameterError, match="holds codes of 33 bits, not 64"):
        keeper.open(64, create=True)
    with pytest.raises(FormatError, match=r"another model .fingerprint abc, not xyz"):
        keeper.open(model_fingerprint="xyz")
    with closing(keeper.open()) as index:
        assert index.add(to_codes([1], 33)).tolist() == [5]  # 4 is never given again


def test_a_second_connection_sees_what_the_first_one_stores(keeper: Engine) -> None:
    one, other = keeper.open(8, create=True), keeper.open()
    for turn in range(3):
        one.add(to_codes([turn], 8))
        assert other.search(to_codes([turn], 8), 1)[0][0][1] == 0
        one, other = other, one
    assert one.present([0, 1, 2, 3]) == {0, 1, 2}
    one.remove([1])
    assert len(other) == 2 and other.search(to_codes([1], 8), 5)[0] == ranked({0: 0, 2: 2}, 1)


def test_any_sequence_of_changes(engine: Engine) -> None:
    """A random walk of all operations against a dictionary."""
    rng = np.random.default_rng(7)
    index = engine.open(10, create=True)
    stored: dict[int, int] = {}
    keys: dict[int, str | None] = {}
    following = 0
    for step in range(60):
        values = rng.integers(2**10, size=int(rng.integers(1, 6))).tolist()
        action = rng.integers(5)
        if action == 0:
            ids = index.add(to_codes(values, 10)).tolist()
            assert ids == list(range(following, following + len(values)))
            new_keys: list[str | None] = [None] * len(ids)
        elif action == 1:
            ids = rng.permutation(80)[: len(values)].tolist()
            index.add(to_codes(values, 10), ids=ids, upsert=True)
            new_keys = [None] * len(ids)
        elif action == 2:
            names = [f"k{number}" for number in rng.permutation(12)[: len(values)]]
            new_keys = list(names)
            ids = index.add(to_codes(values, 10), keys=names, upsert=True).tolist()
            held = {key: identifier for identifier, key in keys.items() if key is not None}
            assert [held.get(name, identifier) for name, identifier in zip(names, ids, strict=True)] == ids
        elif action == 3 and stored:
            leaving = rng.permutation(sorted(stored))[:3].tolist()
            assert index.remove(leaving) == len(leaving)
            for identifier in leaving:
                del stored[identifier], keys[identifier]
            continue
        elif engine.keeps and step % 2:
            index.close()
            index = engine.open()
            continue
        else:
            query = int(rng.integers(2**10))
            assert index.search(to_codes([query], 10), 7)[0] == ranked(stored, query)[:7]
            near = [row for row in ranked(stored, query) if row[1] <= 3]
            assert index.range_search(to_codes([query], 10), 3)[0] == near
            continue
        stored |= dict(zip(ids, values, strict=True))
        keys |= dict(zip(ids, new_keys, strict=True))
        following = max(following, max(ids) + 1)
    items = index.get(list(stored))
    assert [(item.code, item.key) for item in items] == [(to_codes([v], 10), keys[i]) for i, v in stored.items()]
    assert len(index) == len(stored)


def test_a_closed_index_says_so(engine: Engine) -> None:
    index = engine.open(8, create=True)
    index.close()
    index.close()
    calls: list[Callable[[], Any]] = [
        lambda: len(index),
        index.ids,
        lambda: index.get([0]),
        lambda: index.search(to_codes([1], 8)),
        lambda: index.add(to_codes([1], 8)),
        lambda: index.remove([0]),
    ]
    for call in calls:
        with pytest.raises(DataError, match="closed"):
            call()


def test_the_items_of_a_source(engine: Engine) -> None:
    index = engine.open(8, create=True)
    folder, other = "/ph_otos/caf\udce9 %'\"\\", "/ph_otos/caf"
    entries: list[dict[str, Any] | None] = [
        {"source": folder, "key": "a"}, {"source": other, "also": [folder, "x"]}, {"source": other, "key": folder}, None,
        {"source": "x"}, {"also": folder}, {"source": [folder]}, {"note": {"source": folder}},
    ]  # fmt: skip
    keys = [f"{folder}/a", "b", "c", f"{folder}/d", f"{folder}e", "f", f"/phXotos{folder[8:]}/g", "h"]
    ids = index.add(to_codes(list(range(8)), 8), metadata=entries, keys=keys, digests=[b"%d" % i for i in range(8)])
    index.add(to_codes([9], 8), metadata=[{"source": folder}])  # without a key
    found = list(index.members(folder))
    assert [(one.id, one.key, one.digest, one.metadata) for one in found] == [
        (ids[place], keys[place], b"%d" % place, entries[place]) for place in (0, 1)
    ]
    assert found[1].sources == [other, folder, "x"]
    assert [one.id for one in index.members(folder, f"{folder}/")] == [ids[0], ids[1], ids[3]]
    assert [one.key for one in index.members(other)] == ["b", "c"]
    assert [one.id for one in index.members("nobody", "/ph_otos/")] == [ids[0], ids[3], ids[4]]
    assert list(index.members("nobody")) == []


def test_many_items_of_a_source(searcher: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distillhash.index.embedded._MEMBERS_AT_ONCE", 7)
    monkeypatch.setattr("distillhash.index.postgres._VALUES_AT_ONCE", 7)
    index = searcher.open(8, create=True)
    index.add(
        to_codes([1] * 40, 8),
        keys=[f"k{row}" for row in range(40)],
        metadata=[{"source": "a" if row % 3 else "b"} for row in range(40)],
    )
    assert [one.key for one in index.members("a")] == [f"k{row}" for row in range(40) if row % 3]


def test_items_exchange_their_keys(engine: Engine) -> None:
    index = engine.open(8, create=True)
    index.add(to_codes([1, 2, 3, 4], 8), keys=["a", "b", "c", "d"])
    index.add(to_codes([1, 2, 3], 8), ids=[0, 1, 2], keys=["b", "c", "a"], upsert=True)
    assert {item.key: (item.id, item.code) for item in index.get(range(4))} == {
        key: (place, to_codes([place + 1], 8)) for place, key in enumerate(["b", "c", "a", "d"])
    }
    assert {key: found[0] for key, found in index.known(["a", "b", "c", "d"]).items()} == {
        "a": 2,
        "b": 0,
        "c": 1,
        "d": 3,
    }
    assert len(index) == 4 and index.search(to_codes([2], 8), 1)[0] == [(1, 0)]
    with pytest.raises(DataError, match="the key 'd' belongs to id 3, not 0"):
        index.add(to_codes([1, 2], 8), ids=[0, 1], keys=["d", "b"], upsert=True)


@pytest.mark.parametrize("k", [70, 1025, 10**11, 2**63, 10**20, np.int64(2**62), np.uint64(2**64 - 1)])
def test_k_is_cut_to_what_there_is(engine: Engine, k: Any) -> None:
    index = engine.open(8, create=True)
    values = [place * 7 % 256 for place in range(30)]
    index.add(to_codes(values, 8))
    found = index.search(to_codes([9, 3], 8), k)
    assert list(found) == [ranked(dict(enumerate(values)), query) for query in (9, 3)]
    assert found.ids.shape[1] == min(k, 1024)
    assert index.range_search(to_codes([9], 8), k)[0] == found[0]


def test_a_source_that_changes(engine: Engine) -> None:
    """Renamed, exchanged, edited, copied, new and gone rows at once; what two sources hold; ids as a plain dictionary has them."""
    index = engine.open(8, create=True)

    def bring_in(source: str, contents: dict[str, int], prune: bool = False) -> Added:
        own = list(contents)
        update = Update(index, Rows(source, own, own, own))
        digests = [b"content %d" % contents[key] for key in own]
        known = np.array(update.recognise(own, digests), bool)
        new = np.flatnonzero(~known)
        codes = to_codes([contents[own[row]] for row in new.tolist()], 8)
        update.store(Batch(new, codes, [digests[row] for row in new.tolist()], np.flatnonzero(known)))
        return update.finish([], prune=prune)

    def stored() -> dict[str | None, tuple[int, int, list[str]]]:
        metadata = {item.id: item.metadata or {} for item in index.get(index.ids().tolist())}
        return {
            item.key: (
                item.id,
                int(item.code.packed[0, 0]),
                [metadata[item.id]["source"], *metadata[item.id].get("also", [])],
            )
            for item in index.get(index.ids().tolist())
        }

    def value(content: int) -> int:
        return int(to_codes([content], 8).packed[0, 0])

    before = {"same": 1, "renamed": 2, "one": 3, "other": 4, "edited": 5, "copied": 6, "gone": 7, "shared": 8}
    ids = {key: place for place, key in enumerate(before)}
    assert bring_in("here", before)[:3] == (8, 0, 0)
    assert bring_in("there", {"shared": 8, "own": 9})[:3] == (1, 0, 1)
    after = {"same": 1, "new name": 2, "one": 4, "other": 3, "edited": 50, "copied": 6, "a copy": 6, "new": 70}
    added = bring_in("here", after)
    assert added == Added(added=2, updated=1, unchanged=2, skipped=[], renamed=3, gone=1)
    wanted = {"same": 0, "new name": ids["renamed"], "one": ids["other"], "other": ids["one"], "edited": 4, "copied": 5}
    found = stored()
    assert found.keys() == after.keys() | {"own", "gone", "shared"}
    assert {key: found[key][0] for key in wanted} == wanted and {found[key][0] for key in ("a copy", "new")} == {9, 10}
    assert {key: found[key][1:] for key in after} == {key: (value(content), ["here"]) for key, content in after.items()}
    assert found["shared"] == (7, value(8), ["here", "there"])
    assert bring_in("here", after, prune=True) == Added(0, 0, 8, [], pruned=1)
    assert stored() == {key: item for key, item in found.items() if key != "gone"} | {
        "shared": (7, value(8), ["there"])
    }
    assert bring_in("there", {"own": 9}, prune=True) == Added(0, 0, 1, [], pruned=1)
    assert stored().keys() == after.keys() | {"own"}
