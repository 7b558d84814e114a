"""What only a complete Milvus shows: approximate search, users, two writers, a crash. The conformance suite runs against it as well."""

from __future__ import annotations

import itertools
import secrets
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from distillhash import Codes
from distillhash.codes import hamming_distances
from distillhash.errors import DataError, DistillHashError, ParameterError
from distillhash.index import open_index
from engine_servers import StandaloneMilvus

pytestmark = pytest.mark.long
NUMBERS = itertools.count()
RUN = secrets.token_hex(3)


@pytest.fixture
def name() -> str:
    return f"whole_{RUN}_{next(NUMBERS)}"


def codes_of(ids: range) -> Codes:
    """Codes that say which id they are of."""
    return Codes.from_packed(np.array(ids, ">u8").view(np.uint8).reshape(-1, 8), 64)


def clustered(n: int, rng: np.random.Generator, centres: np.ndarray) -> Codes:
    bits = centres[rng.integers(len(centres), size=n)] ^ (rng.random((n, 64)) < 0.1)
    return Codes.from_signs(2 * bits.astype(np.int8) - 1)


def test_the_approximate_index_says_so_and_finds_most(
    standalone: StandaloneMilvus, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from pymilvus import MilvusClient

    rng = np.random.default_rng(0)
    centres = rng.integers(0, 2, (300, 64))
    database, queries = clustered(20_000, rng, centres), clustered(100, rng, centres)
    tenth = np.sort(hamming_distances(queries, database), axis=1)[:, 9]
    place = standalone.uri(name, "index=BIN_IVF_FLAT&nlist=128")
    with open_index(place, 64, create=True) as index:
        index.add(database)
        assert not index.is_exact() and not index.is_exact(within=True)
    client = MilvusClient(f"http://{standalone.address}")
    client.flush(name)  # only a sealed segment has an index
    give_up = time.monotonic() + 120
    while client.describe_index(name, "code")["pending_index_rows"] and time.monotonic() < give_up:
        time.sleep(0.5)
    client.release_collection(name)  # or the server hands the segment over in its own time
    client.load_collection(name)
    client.close()
    recalls = []
    for probes in (1, 4, 128):
        with open_index(f"{place}&nprobe={probes}") as index:
            found = index.search(queries, 10).distances
            recalls.append(float(((found >= 0) & (found <= tenth[:, None])).mean()))
            assert (found >= 0).all() and (found[:, 1:] >= found[:, :-1]).all()
    with capsys.disabled():
        print(f"\nBIN_IVF_FLAT, 20,000 codes, 128 lists: recall@10 {recalls} of 1, 4 and 128 probed")  # noqa: T201
    assert recalls[0] < recalls[1] <= recalls[2] == 1 and recalls[1] > 0.6
    with open_index(standalone.uri(name)) as index:  # the address does not say it, the collection does
        assert not index.is_exact()
    with pytest.raises(ParameterError, match="has a BIN_IVF_FLAT index, got index='BIN_FLAT'; leave the option out"):
        open_index(standalone.uri(name, "index=BIN_FLAT"))


def test_two_writers_with_ids_of_their_own(standalone: StandaloneMilvus, name: str) -> None:
    open_index(standalone.uri(name), 64, create=True).close()

    def write(first: int) -> None:
        with open_index(standalone.uri(name)) as index:
            for start in range(first, first + 2000, 100):
                index.add(codes_of(range(start, start + 100)), ids=range(start, start + 100))

    threads = [threading.Thread(target=write, args=(first,)) for first in (0, 10_000)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with open_index(standalone.uri(name)) as index:
        assert index.ids().tolist() == [*range(2000), *range(10_000, 12_000)]
        assert index.search(codes_of(range(10_500, 10_501)), 1)[0] == [(10_500, 0)]


def test_what_was_acknowledged_is_there_after_a_kill(standalone: StandaloneMilvus, name: str) -> None:
    acknowledged: list[int] = []
    errors: list[str] = []

    def write() -> None:
        with open_index(standalone.uri(name, "patience=0"), 64, create=True) as index:
            try:
                while True:
                    ids = range(len(acknowledged), len(acknowledged) + 500)
                    acknowledged.extend(index.add(codes_of(ids), ids=ids).tolist())
            except DistillHashError as error:
                errors.append(str(error))

    writer = threading.Thread(target=write)
    writer.start()
    give_up = time.monotonic() + 120
    while len(acknowledged) < 5000 and time.monotonic() < give_up:
        time.sleep(0.01)
    standalone.kill()
    writer.join()
    standalone.start()
    assert len(acknowledged) >= 5000 and "does not answer" in errors[0]
    with open_index(standalone.uri(name)) as index:
        stored = index.ids().tolist()
        assert stored[: len(acknowledged)] == acknowledged and len(stored) - len(acknowledged) in (0, 500)
        found = index.search(codes_of(range(len(acknowledged)))[::50], 1)
        assert found.ids[:, 0].tolist() == acknowledged[::50] and not found.distances.any()


def test_an_older_server_has_another_index_of_keys(standalone: StandaloneMilvus, name: str) -> None:
    from pymilvus import MilvusClient

    open_index(standalone.uri(name), 64, create=True).close()
    client = MilvusClient(f"http://{standalone.address}")
    assert client.get_server_version().startswith("v2.3.5")
    assert client.describe_index(name, "key")["index_type"] == "Trie"
    assert client.describe_index(name, "code")["index_type"] == "BIN_FLAT"
    client.close()


def test_the_largest_id_is_refused(standalone: StandaloneMilvus, name: str) -> None:
    with open_index(standalone.uri(name), 64, create=True) as index:
        with pytest.raises(DataError, match="does not hold the id 9223372036854775807"):
            index.add(codes_of(range(1)), ids=[2**63 - 1])
        assert len(index) == 0


@pytest.fixture
def guarded(standalone: StandaloneMilvus, tmp_path: Path) -> Iterator[str]:
    """The address of a server that wants users; one runs at a time."""
    standalone.kill()
    server = StandaloneMilvus(tmp_path, authorization=True)
    try:
        server.start()
        yield server.address
    finally:
        server.kill()
        standalone.start()


def test_a_wrong_password_is_called_one(guarded: str) -> None:
    from pymilvus import MilvusClient

    place = f"@{guarded}/photos?patience=30"
    with open_index(f"milvus://root:Milvus{place}", 64, create=True) as index:
        index.add(codes_of(range(10)))
    started = time.monotonic()
    for user in ("root:geheim", "nobody:geheim", ""):
        with pytest.raises(DistillHashError, match=r"refused the user \(.*\); check the name, the password") as caught:
            open_index(f"milvus://{user}{place}".replace("//@", "//"))
        assert "geheim" not in str(caught.value) and "does not answer" not in str(caught.value)
    assert time.monotonic() - started < 20  # patience is for servers that are away
    client = MilvusClient(f"http://{guarded}", token="root:Milvus")
    client.create_user("reader", "reader-1")
    client.close()
    with pytest.raises(DistillHashError, match=r"refused the user \(.*permission deny.*rights of the user"):
        open_index(f"milvus://reader:reader-1@{guarded}/others", 64, create=True)
