"""What only the Postgres engine has: a server that comes and goes, commits whose answer is lost, and its own options."""

from __future__ import annotations

import itertools
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest

from distillhash import Codes
from distillhash.codes import hamming_distances
from distillhash.errors import DataError, DistillHashError, FormatError, MissingDependencyError, ParameterError
from distillhash.index import open_index

NUMBERS = itertools.count()
RUN = secrets.token_hex(3)  # a server may outlive the tests
CODES = Codes.from_packed(np.arange(20, dtype=np.uint8)[:, None], 8)


@pytest.fixture
def place(postgres: str) -> str:
    return f"{postgres}&table=own_{RUN}_{next(NUMBERS)}"


def table_of(place: str) -> str:
    return place.rpartition("=")[2]


def execute(postgres: str, statement: str) -> list[Any]:
    import psycopg

    with psycopg.connect(postgres, autocommit=True) as connection:
        cursor = connection.execute(statement)
        return cursor.fetchall() if cursor.description else []


def test_the_table_is_plain_sql(postgres: str, place: str) -> None:
    with open_index(place, 8, create=True, model_fingerprint="abc") as index:
        index.add(CODES[5:6], keys=["cat"], metadata=[{"year": 2021}], digests=[b"\1\2"])
    rows = execute(postgres, f"SELECT id, code::text, key, digest, metadata->>'year' FROM {table_of(place)}")
    assert rows == [(0, "00000101", "cat", b"\1\2", "2021")]
    assert '"model_fingerprint": "abc"' in execute(postgres, f"SELECT manifest FROM {table_of(place)}_manifest")[0][0]


@pytest.mark.parametrize("method", ["hnsw", "ivfflat"])
def test_an_approximate_index_on_the_column_is_not_used(postgres: str, place: str, method: str) -> None:
    """Even where reading the table is forbidden; a statement that an index may serve gives another answer."""
    rng = np.random.default_rng(0)
    codes = Codes.from_packed(rng.integers(0, 256, (2000, 4), np.uint8), 32)
    order = np.argsort(hamming_distances(codes[:10], codes), axis=1, kind="stable")[:, :50]
    with open_index(f"{place}&options=-cenable_seqscan%3Doff", 32, create=True) as index:
        index.add(codes)
        execute(postgres, f"CREATE INDEX ON {table_of(place)} USING {method} (code bit_hamming_ops)")
        assert np.array_equal(index.search(codes[:10], 50).ids, order)
        assert index.is_exact() and not index.is_exact(16) and index.is_exact(16, within=True)
    bits = "".join("1" if sign > 0 else "0" for sign in codes.signs()[0])
    plain = f"SELECT id FROM {table_of(place)} ORDER BY code <~> B'{bits}' LIMIT 50"
    execute(postgres, f"ANALYZE {table_of(place)}")
    answer = execute(postgres, f"SET enable_seqscan = off; {plain}")
    assert [row[0] for row in answer] != order[0].tolist()


def test_hnsw_is_made_when_asked_for_and_called_approximate(postgres: str, place: str) -> None:
    rng = np.random.default_rng(0)
    codes = Codes.from_packed(rng.integers(0, 256, (3000, 32), np.uint8), 256)
    tenth = np.sort(hamming_distances(codes[:50], codes), axis=1)[:, 9]
    indexes = f"SELECT indexdef FROM pg_indexes WHERE tablename = '{table_of(place)}' AND indexdef LIKE '%hnsw%'"
    forced = f"{place}&options=-cenable_seqscan%3Doff"  # Postgres would rather read so small a table
    with open_index(f"{forced}&index=hnsw&ef=10", 256, create=True) as index:
        index.add(codes, metadata=[{"even": row % 2 == 0} for row in range(3000)])
        assert not index.is_exact() and index.is_exact(within=True)
        assert np.array_equal(index.search(codes[:50], 10).distances[:, 9], tenth)  # there is no such index yet
        for _ in range(2):
            index.prepare()
            assert "code bit_hamming_ops" in execute(postgres, indexes)[0][0] and len(execute(postgres, indexes)) == 1
        few = index.search(codes[:50], 10).distances
        assert (few >= 0).all() and (few[:, 1:] >= few[:, :-1]).all() and (few[:, 9] > tenth).any()
        assert (index.search(codes[:5], 100).ids >= 0).all()  # more than ef
        ids = index.search(codes[:50], 10, where="(metadata->>'even')::bool").ids
        assert (ids >= 0).all() and not (ids % 2).any()
        near = hamming_distances(codes[:5], codes) <= 105
        assert [sorted(i for i, _ in row) for row in index.range_search(codes[:5], 105)] == [
            np.flatnonzero(row).tolist() for row in near
        ]
    with open_index(f"{forced}&index=hnsw&ef=1000") as index:
        many = index.search(codes[:50], 10).distances
        assert (many[:, 9] == tenth).mean() > (few[:, 9] == tenth).mean()
    with open_index(place) as index:
        assert index.is_exact() and np.array_equal(index.search(codes[:50], 10).distances[:, 9], tenth)


def test_two_writers_at_a_time_never_share_an_id(place: str) -> None:
    open_index(place, 8, create=True).close()
    chosen: list[int] = []

    def write() -> None:
        with open_index(place) as index:
            for _ in range(5):
                chosen.extend(index.add(CODES).tolist())

    threads = [threading.Thread(target=write) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(chosen) == list(range(300))
    with open_index(place) as index:
        assert len(index) == 300


def test_two_processes_may_make_one_index(place: str) -> None:
    opened: list[Any] = []
    threads = [threading.Thread(target=lambda: opened.append(open_index(place, 8, create=True))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [len(index) for index in opened] == [0] * 4
    for index in opened:
        index.close()


def test_a_connection_that_was_cut_comes_back(postgres: str, place: str) -> None:
    with open_index(place, 8, create=True) as index:
        index.add(CODES)
        calls: list[Callable[[], bool]] = [
            lambda: index.search(CODES[:1], 1)[0] == [(0, 0)],
            lambda: len(index.add(CODES)) == 20,
        ]
        for call in calls:
            execute(
                postgres,
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'distillhash'",
            )
            assert call()
        assert len(index) == 40


class Proxy:
    """Stands between client and server, and cuts the line at the next COMMIT: before the server hears of it, or before its answer."""

    def __init__(self, folder: Path, server: str) -> None:
        self._server = server
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(folder / ".s.PGSQL.5432"))
        self._listener.listen()
        self.cut: str | None = None
        self.commits = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.socket(socket.AF_UNIX)
                server.connect(self._server)
                silent = threading.Event()
                threading.Thread(target=self._to_server, args=(client, server, silent), daemon=True).start()
                threading.Thread(target=self._to_client, args=(server, client, silent), daemon=True).start()

    def _to_server(self, client: socket.socket, server: socket.socket, silent: threading.Event) -> None:
        with suppress(OSError):
            while data := client.recv(65536):
                if b"COMMIT" in data:
                    self.commits += 1
                    if self.cut is not None:
                        cut, self.cut = self.cut, None
                        silent.set()
                        if cut == "answer":
                            server.sendall(data)
                        client.shutdown(socket.SHUT_RDWR)
                        if cut == "answer":
                            server.recv(65536)  # it has committed
                        break
                server.sendall(data)
            server.shutdown(socket.SHUT_RDWR)

    def _to_client(self, server: socket.socket, client: socket.socket, silent: threading.Event) -> None:
        with suppress(OSError):
            while not silent.is_set() and (data := server.recv(65536)):
                if not silent.is_set():
                    client.sendall(data)

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def proxy(postgres: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Proxy, str]]:
    if not hasattr(socket, "AF_UNIX"):
        pytest.skip("no Unix sockets here")
    host = parse_qs(urlsplit(postgres).query).get("host", [""])[0]
    if not host.startswith("/"):
        pytest.skip("the server does not listen on a Unix socket here")
    folder = Path(os.path.realpath(tmp_path_factory.mktemp("p")))
    proxy = Proxy(folder, f"{host}/.s.PGSQL.5432")
    yield proxy, f"{postgres.partition('?')[0]}?host={folder}&table=own_{RUN}_{next(NUMBERS)}"
    proxy.close()


@pytest.mark.parametrize("cut", ["request", "answer"])
def test_a_commit_whose_answer_is_lost_happens_once(proxy: tuple[Proxy, str], cut: str) -> None:
    line, place = proxy
    with open_index(place, 8, create=True) as index:
        index.add(CODES)
        before, line.cut = line.commits, cut
        assert index.add(CODES[:3]).tolist() == [20, 21, 22]
        assert line.commits - before == (2 if cut == "request" else 1)  # done again only where it had not happened
        assert len(index) == 23


def test_a_server_that_is_away_is_said_at_once_and_without_a_password(tmp_path: Path) -> None:
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    for place in (
        f"postgresql://me:geheim@127.0.0.1:{port}/photos?table=t",
        f"postgresql://127.0.0.1:{port}/photos?user=me&password=geheim",
    ):
        with pytest.raises(
            DistillHashError, match=f"127.0.0.1:{port}/photos.* cannot be used now .*refused.* check that"
        ) as caught:
            open_index(place, 8, create=True)
        assert "geheim" not in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ("table=a-b", "letters, digits and underscores, got 'a-b'"),
        ("table=1a", "got '1a'"),
        ("patience=soon", "patience must be an integer in 0..86400, got 'soon'"),
        ("table=a&table=b", "'table' comes twice"),
        ("index=ivf", r"index must be exact or hnsw \(approximate\), got 'ivf'"),
        ("ef=10", "ef belongs to index=hnsw"),
        ("index=hnsw&ef=1001", "ef must be an integer in 1..1000, got '1001'"),
    ],
)
def test_wrong_options(postgres: str, options: str, sentence: str) -> None:
    with pytest.raises(ParameterError, match=sentence):
        open_index(f"{postgres}&{options}", 8, create=True)


def test_other_tables_are_not_touched(postgres: str, place: str) -> None:
    name = table_of(place)
    execute(postgres, f"CREATE TABLE {name} (x int)")
    with pytest.raises(FormatError, match=f"table {name} in .* is not an index"):
        open_index(place, 8, create=True)
    assert execute(postgres, f"SELECT count(*) FROM {name}") == [(0,)]


def test_a_manifest_that_is_damaged_is_named(postgres: str, place: str) -> None:
    open_index(place, 8, create=True).close()
    for change, sentence in (
        ("'{'", "is damaged"),
        ('\'{"format_version": 9, "n_bits": 8, "model_fingerprint": null}\'', "has format 9"),
    ):
        execute(postgres, f"UPDATE {table_of(place)}_manifest SET manifest = {change}")
        with pytest.raises(FormatError, match=sentence):
            open_index(place)


def test_full_durability_is_what_the_server_is_told(place: str) -> None:
    for durability, expected in (("normal", "off"), ("full", "on")):
        uri = f"{place}&options=-csynchronous_commit%3Doff"
        index: Any = open_index(uri, 8, create=True, durability=durability)  # type: ignore[arg-type]
        assert index._session._connected().execute("SHOW synchronous_commit").fetchone() == (expected,)
        index.close()


def test_a_reader_needs_no_right_to_write(postgres: str, place: str) -> None:
    with open_index(place, 8, create=True) as index:
        index.add(CODES)
    name = table_of(place)
    execute(postgres, "DO $$ BEGIN CREATE ROLE reader LOGIN; EXCEPTION WHEN duplicate_object THEN END $$")
    execute(postgres, f"GRANT SELECT ON {name}, {name}_manifest TO reader")
    with open_index(place.replace("postgres:@", "reader@", 1)) as index:
        assert index.search(CODES[3:4], 1)[0] == [(3, 0)]
        with pytest.raises(DistillHashError, match="permission denied"):
            index.add(CODES)
    with pytest.raises(DistillHashError, match=r"refused|denied"):
        open_index(place.replace("postgres:@", "reader@", 1) + "x", 8, create=True)


def test_without_psycopg_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "psycopg", None)
    with pytest.raises(MissingDependencyError, match=r"distillhash\[postgres\]"):
        open_index("postgresql://localhost/photos", 8, create=True)


def test_an_index_that_is_not_there(place: str) -> None:
    with pytest.raises(DataError, match=f"there is no index {table_of(place)} in"):
        open_index(place)


@pytest.mark.parametrize(
    ("condition", "sentence"),
    [
        ("pg_sleep(60) IS NULL", "takes longer than 0.3 s"),
        ("(SELECT count(*) FROM generate_series(1, 1000000000)) > 0", "takes longer than 0.3 s"),
        ("nextval('counter') > 0", "read-only transaction"),
        ("true); DROP SEQUENCE counter; --", "no condition that Postgres takes"),
        ("lo_create(0) > 0", "read-only transaction"),
    ],
)
def test_a_condition_has_no_time_and_changes_nothing(
    postgres: str, place: str, condition: str, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distillhash.index.postgres._CONDITION_SECONDS", 0.3)
    execute(postgres, "CREATE SEQUENCE IF NOT EXISTS counter")
    begin = time.monotonic()
    with open_index(place, n_bits=8, create=True) as index:
        query = Codes.from_packed(np.zeros((1, 1), np.uint8), 8)
        index.add(query)
        with pytest.raises(ParameterError, match=sentence):
            index.search(query, where=condition)
        assert time.monotonic() - begin < 5
        assert index.search(query, where="id = 0")[0] == index.search(query)[0] == [(0, 0)]
        index.remove([0])
    assert execute(postgres, "SELECT is_called FROM counter") == [(False,)]
