"""What only the Milvus engine has: bounded answers, batches without a transaction, a server that comes and goes, its own options."""

from __future__ import annotations

import itertools
import logging
import random
import secrets
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distillhash import Codes
from distillhash.errors import DataError, DistillHashError, FormatError, MissingDependencyError, ParameterError
from distillhash.index import open_index
from distillhash.index.address import from_plain, to_plain
from distillhash.index.milvus import MilvusIndex, Pair, exact_nearest, exact_within, map_text
from engine_servers import MilvusServer

NUMBERS = itertools.count()
RUN = secrets.token_hex(3)  # a server may outlive the tests
CODES = Codes.from_packed(np.arange(20, dtype=np.uint8)[:, None], 8)


@pytest.fixture
def name() -> str:
    return f"own_{RUN}_{next(NUMBERS)}"


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[MilvusServer]:
    """A server that a test may kill."""
    server = MilvusServer(tmp_path)
    server.start()
    yield server
    server.kill()


def test_more_ties_than_the_server_gives_in_one_answer(milvus: MilvusServer, name: str) -> None:
    """16,384 items at most come back: 20,000 equal codes are found whole, and cut by id."""
    with open_index(milvus.uri(name), 8, create=True) as index:
        ids = np.random.default_rng(0).permutation(40_000)[:20_000]
        index.add(Codes.from_packed(np.full((20_000, 1), 7, np.uint8), 8), ids=ids)
        index.add(CODES[6:7], ids=[50_000])
        expected = [(50_000, 0), *((int(identifier), 1) for identifier in np.sort(ids))]
        assert index.search(CODES[6:7], 30)[0] == expected[:30]
        assert index.range_search(CODES[6:7], 1)[0] == expected
        assert index.search(CODES[6:7], 16_384)[0] == expected[:16_384]
        with pytest.raises(ParameterError, match=r"at most 16384 items, got k=16385; use range_search"):
            index.search(CODES[:1], 16_385)
    with open_index(milvus.uri(name + "_few"), 8, create=True) as index:
        index.add(CODES)
        assert len(index.search(CODES[:1], 100_000)[0]) == 20  # more than there are is fine


def test_a_server_that_comes_back_in_time_is_waited_for(own_server: MilvusServer, name: str) -> None:
    with open_index(own_server.uri(name, "patience=120"), 8, create=True) as index:
        index.add(CODES[:10])
        for call in (lambda: index.add(CODES[10:]).tolist() == list(range(10, 20)), lambda: len(index) == 20):
            own_server.kill()
            starter = threading.Timer(0.5, own_server.start)
            starter.start()
            assert call()
            starter.join()
        assert index.search(CODES[15:16], 1)[0] == [(15, 0)]


def test_an_upload_that_broke_off_goes_on(own_server: MilvusServer, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server dies between two batches: what was stored stays, the same call stores the rest, and no item is there twice."""
    from distillhash.index import milvus as engine

    monkeypatch.setattr(engine, "_ROWS_AT_ONCE", 100)
    codes = Codes.from_packed(np.random.default_rng(0).integers(0, 256, (1000, 2), np.uint8), 16)
    keys = [f"k{row}" for row in range(1000)]
    index: Any = open_index(own_server.uri(name, "patience=3"), 16, create=True)
    call, sent = index._session.call, itertools.count()

    def call_and_die(method: str, *arguments: Any, **options: Any) -> Any:
        if method == "upsert" and arguments[0] == name and next(sent) == 4:
            own_server.kill()
        return call(method, *arguments, **options)

    monkeypatch.setattr(index._session, "call", call_and_die)
    with pytest.raises(DistillHashError, match=f"400 of 1000 items are stored, then: .*{name} does not answer"):
        index.add(codes, keys=keys)
    index.close()
    own_server.start()
    with open_index(own_server.uri(name)) as index:
        assert len(index) == 400 and set(index.known(keys)) == set(keys[:400])
        ids = index.add(codes, keys=keys, upsert=True)
        assert len(index) == 1000 and ids[:400].tolist() == list(range(400)) and ids[400:].min() >= 1000
        known = index.known(keys)
        assert [known[key][0] for key in keys] == ids.tolist()


def test_a_server_that_is_away_is_said_without_a_password(caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("pymilvus", reason="pymilvus is not installed")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    started = time.monotonic()
    with (
        caplog.at_level(logging.ERROR),
        pytest.raises(
            DistillHashError, match=f"milvus://me@127.0.0.1:{port}/photos does not answer .*check that Milvus runs"
        ) as caught,
    ):
        open_index(f"milvus://me:geheim@127.0.0.1:{port}/photos?patience=2", 8, create=True)
    assert "geheim" not in str(caught.value) and "\n" not in str(caught.value)
    assert time.monotonic() - started < 60


def test_a_server_that_stays_away_is_given_up(own_server: MilvusServer, name: str) -> None:
    with open_index(own_server.uri(name, "patience=1"), 8, create=True) as index:
        index.add(CODES)
        own_server.kill()
        for call in (lambda: len(index), lambda: index.search(CODES), lambda: index.add(CODES)):
            with pytest.raises(DistillHashError, match=r"does not answer .*run the same command again"):
                call()


@pytest.mark.parametrize(
    ("uri", "sentence"),
    [
        ("milvus://localhost:19530/", "ends in a collection .* got ''"),
        ("milvus://localhost/a-b", "got 'a-b'"),
        ("milvus:///photos", "names a host"),
        ("milvus://localhost/a?index=HNSW", r"BIN_FLAT \(exact\) or BIN_IVF_FLAT \(approximate\), got 'HNSW'"),
        ("milvus://localhost/a?nprobe=4", "nprobe belongs to index=BIN_IVF_FLAT"),
        ("milvus://localhost/a?index=BIN_IVF_FLAT&nlist=0", "nlist must be an integer in 1..65536, got '0'"),
        ("milvus://localhost/a?tls=yes", "tls must be true or false, got 'yes'"),
        ("milvus://localhost/a?largest=1", "largest must be an integer in 2..1000000, got '1'"),
        ("milvus://localhost/a?patience=-1", "patience must be an integer"),
        ("milvus://localhost/a?databse=x", "unknown option 'databse'; choose from index, nlist,"),
    ],
)
def test_wrong_addresses(uri: str, sentence: str) -> None:
    with pytest.raises(ParameterError, match=sentence):
        open_index(uri, 8, create=True)


def test_the_approximate_index_is_asked_of_the_server(milvus: MilvusServer, name: str) -> None:
    """This server has none, and says so: its answer shows that the option reaches it."""
    with pytest.raises(DistillHashError, match=r"refused create index .*BIN_IVF_FLAT.* only support BIN_FLAT"):
        open_index(milvus.uri(name, "index=BIN_IVF_FLAT&nlist=4&nprobe=2"), 8, create=True)
    with open_index(milvus.uri(name)) as index:  # the collection that was left half made is finished
        index.add(CODES)
        assert index.search(CODES[3:4], 1)[0] == [(3, 0)]


@pytest.mark.parametrize(
    ("version", "kind"),
    [
        ("v2.3.5-lite", "Trie"), ("2.2.16", "Trie"), ("v2.4.0", "INVERTED"), ("2.6-20250912-4c1fa42", "INVERTED"), ("v3.0.1", "INVERTED"),
        ("Zilliz Cloud", "INVERTED"), (None, "INVERTED"),
    ],
)  # fmt: skip
def test_the_index_of_keys_is_one_that_the_server_has(version: str | None, kind: str) -> None:
    def call(name: str) -> str:
        assert name == "get_server_version"
        if version is None:
            raise DistillHashError("refused get server version")
        return version

    index = SimpleNamespace(_session=SimpleNamespace(call=call))
    assert MilvusIndex._key_index(index) == kind  # type: ignore[arg-type]


def test_other_collections_are_not_touched(milvus: MilvusServer, name: str) -> None:
    from pymilvus import MilvusClient

    client = MilvusClient(f"http://{milvus.address}")
    schema = client.create_schema(description="somebody's")
    schema.add_field("id", 5, is_primary=True)
    schema.add_field("v", 100, dim=8)
    client.create_collection(name, schema=schema)
    with pytest.raises(FormatError, match=f"collection {name} of .* is not an index"):
        open_index(milvus.uri(name), 8, create=True)
    client.close()


def test_what_milvus_cannot_hold_is_refused_before_anything_is_stored(milvus: MilvusServer, name: str) -> None:
    with open_index(milvus.uri(name), 8, create=True) as index:
        with pytest.raises(DataError, match="more than the 65535 bytes"):
            index.add(CODES[:2], keys=["a", "b" * 65_536])
        with pytest.raises(DataError, match="integer of more than 64 bits"):
            index.add(CODES[:2], metadata=[{}, {"n": [2**64]}])
        assert len(index) == 0
    with pytest.raises(ParameterError, match="no durability levels, got 'full'"):
        open_index(milvus.uri(name), durability="full")


def test_large_batches_are_split_by_their_size(milvus: MilvusServer, name: str) -> None:
    with open_index(milvus.uri(name), 8, create=True) as index:
        index.add(CODES, metadata=[{"text": "x" * 60_000}] * 20, keys=[f"{row}" + "k" * 60_000 for row in range(20)])
        assert len(index) == 20 and len(index.get([19])[0].key or "") == 60_002


def test_without_pymilvus_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pymilvus", None)
    with pytest.raises(MissingDependencyError, match=r"distillhash\[milvus\]"):
        open_index("milvus://localhost:19530/photos", 8, create=True)


def test_every_text_of_the_metadata_is_made_plain() -> None:
    value = {"a\n": ["b\n", {"c": "\x00"}, 1, None]}
    plain = map_text(value, to_plain)
    assert plain == {"a\\u000a": ["b\\u000a", {"c": "\\u0000"}, 1, None]}
    assert map_text(plain, from_plain) == value


@given(
    st.dictionaries(st.integers(0, 60) | st.integers(2**63 - 40, 2**63 - 1), st.integers(0, 5), max_size=60),
    st.integers(2, 12),
    st.integers(1, 12),
    st.integers(0, 6),
    st.randoms(),
)
def test_exact_answers_from_a_server_that_cuts_ties_anywhere(
    stored: dict[int, int], largest: int, k: int, radius: int, shuffled: random.Random
) -> None:
    """Whatever ``largest`` is, and whichever of equal distances the server leaves out."""

    def fetch(codes: Sequence[bytes], limit: int, least: int, most: int | None, ids: Any) -> list[list[Pair]]:
        assert limit <= largest
        pairs = [
            (d, i) for i, d in stored.items() if least <= d <= (9 if most is None else most) and ids[0] <= i <= ids[1]
        ]
        shuffled.shuffle(pairs)
        return [sorted(pairs, key=lambda pair: pair[0])[:limit] for _ in codes]

    expected = sorted((distance, identifier) for identifier, distance in stored.items())
    k = min(k, largest)
    assert exact_nearest(fetch, [b"a", b"b"], k, largest) == [expected[:k]] * 2
    near = [pair for pair in expected if pair[0] <= radius]
    assert exact_within(fetch, [b"a"], radius, largest) == [near]
