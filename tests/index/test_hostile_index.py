"""Indexes from strangers: whatever lies in the folder, reading it ends with a sentence or the right answer, and changes nothing."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import sqlite3
import struct
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from distillhash import Codes
from distillhash.errors import DistillHashError, FormatError, ParameterError
from distillhash.hamming.clustered import ClusteredCodes
from distillhash.index import embedded, open_index
from distillhash.search import Query, Searcher

N_BITS = 16
RNG = np.random.default_rng(0)
CENTRES = RNG.integers(0, 256, (6, 2), np.uint8)
VALUES = CENTRES[RNG.integers(0, 6, 300)] ^ np.packbits(RNG.random((300, 16)) < 0.06, axis=1)
QUERY = Codes.from_packed(VALUES[:1], N_BITS)
EXPECTED = sorted((int(np.bitwise_count(value ^ VALUES[0]).sum()), row) for row, value in enumerate(VALUES))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache and clusters are worth it for these few items, and nothing takes long."""
    monkeypatch.setattr(embedded, "_CACHED_FROM", 20)
    monkeypatch.setattr(embedded, "CLUSTERED_FROM", 200)
    monkeypatch.setattr(embedded, "_JOURNAL_SECONDS", 0.05)
    monkeypatch.setattr("distillhash.hamming.clustered._MARGIN", np.inf)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound") / "index"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embedded, "_CACHED_FROM", 20)
        patch.setattr(embedded, "CLUSTERED_FROM", 200)
        patch.setattr("distillhash.hamming.clustered._MARGIN", np.inf)
        with open_index(folder, n_bits=N_BITS, create=True) as index:
            index.add(
                Codes.from_packed(VALUES, N_BITS),
                keys=[f"k{row}" for row in range(300)],
                metadata=[{"year": row} for row in range(300)],
            )
            index.compact()
    assert {file.name for file in folder.iterdir()} == {
        "manifest.json",
        "items.sqlite",
        "codes.cache",
        "codes.clusters",
    }
    return folder


@pytest.fixture
def folder(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "index"))


def content(folder: Path) -> dict[str, Any]:
    """Bytes of all regular files; what else is there by its kind. SQLite's shared memory holds no data."""
    return {
        file.name: file.read_bytes() if file.is_file() and not file.is_symlink() else file.lstat().st_mode
        for file in folder.iterdir()
        if not file.name.endswith("-shm")
    }


def search(folder: Path) -> None:
    """Everything that a search reads: the right answers, from the codes and from the rows."""
    with Searcher(open_index(folder)) as searcher:
        (found,) = searcher.answer([Query(QUERY.packed.tobytes(), 20)])
        if isinstance(found, Exception):
            raise found
        assert [(d, item.id) for item, d in zip(found.items, found.distances, strict=True)] == EXPECTED[:20]
        near = searcher.index.range_search(QUERY, 3)[0]
        assert [(d, i) for i, d in near] == [pair for pair in EXPECTED if pair[0] <= 3]
        assert searcher.index.search(QUERY, 300, where="metadata->>'year' < 300").ids.shape == (1, 300)


def refuses(folder: Path) -> str:
    """The sentence with which a search of all items ends; nothing has changed then."""
    before = content(folder)
    with pytest.raises(DistillHashError) as caught, open_index(folder) as index:
        list(index.members("x", "k"))
        index.get(index.search(QUERY, 300).ids[0].tolist())
    assert content(folder) == before
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
    return str(caught.value)


def run_sql(folder: Path, *statements: str) -> None:
    connection = sqlite3.connect(folder / "items.sqlite", isolation_level=None)
    for statement in statements:
        connection.execute(statement)
    connection.close()


def test_reading_changes_nothing(folder: Path) -> None:
    before = content(folder)
    search(folder)
    (folder / "codes.cache").unlink()
    del before["codes.cache"]
    search(folder)
    assert content(folder) == before and not (folder / "items.sqlite-shm").exists()


# Files


@pytest.mark.parametrize(
    "name", ["items.sqlite", "items.sqlite-wal", "items.sqlite-shm", "items.sqlite-journal", "manifest.json"]
)
@pytest.mark.parametrize("kind", ["pipe", "device", "link", "folder", "loop", "hard link"])
def test_files_that_are_none(folder: Path, tmp_path: Path, name: str, kind: str) -> None:
    if (kind in ("hard link", "link") and name == "manifest.json") or (kind, name) == ("hard link", "items.sqlite"):
        pytest.skip("reading it is harmless, and backups have such")
    victim = tmp_path / "victim"
    shutil.copy(folder / name, victim) if (folder / name).exists() else victim.write_bytes(b"precious" * 1000)
    before = victim.read_bytes()
    file = folder / name
    file.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "folder":
        file.mkdir()
    elif kind == "hard link":
        os.link(victim, file)
    else:
        file.symlink_to({"device": "/dev/zero", "link": str(victim), "loop": str(file)}[kind])
    begin = time.monotonic()
    sentence = refuses(folder)
    assert str(file) in sentence and time.monotonic() - begin < 5
    with pytest.raises(DistillHashError):
        open_index(folder, n_bits=N_BITS, create=True)
    assert victim.read_bytes() == before


@pytest.mark.parametrize("name", ["codes.cache", "codes.clusters"])
@pytest.mark.parametrize("kind", ["pipe", "device", "loop", "folder", "empty"])
def test_caches_that_are_none(folder: Path, name: str, kind: str) -> None:
    file = folder / name
    file.unlink()
    if kind == "pipe":
        os.mkfifo(file)
    elif kind in ("folder", "empty"):
        file.mkdir() if kind == "folder" else file.write_bytes(b"")
    else:
        file.symlink_to("/dev/zero" if kind == "device" else file)
    search(folder)


def test_a_hot_journal_is_not_played_back(folder: Path, tmp_path: Path) -> None:
    """SQLite would roll the database back, and delete the file that the journal's end names."""
    victim = tmp_path / "victim"
    victim.write_bytes(b"/nowhere/x-journal\0")
    name = os.fsencode(victim)
    header = b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7" + struct.pack(">IIIII", 0, 1, 1, 512, 4096)
    ending = struct.pack(">I", 0x40000000 // 4096 + 1) + name + struct.pack(">II", len(name), sum(name)) + header[:8]
    (folder / "items.sqlite-journal").write_bytes(header.ljust(512, b"\0") + ending)
    data = bytearray((folder / "items.sqlite").read_bytes())
    data[18:20] = b"\1\1"  # a database that has journals
    (folder / "items.sqlite").write_bytes(data)
    assert "no such journal" in refuses(folder)
    with pytest.raises(FormatError, match="no such journal"):
        open_index(folder, n_bits=N_BITS, create=True)
    assert victim.exists() and (folder / "items.sqlite-journal").exists()


def test_a_log_that_a_killed_writer_left_is_read_and_kept(folder: Path, tmp_path: Path) -> None:
    with open_index(folder) as writer:
        writer.add(Codes.from_packed(VALUES[:1], N_BITS), keys=["new"])
        killed = Path(shutil.copytree(folder, tmp_path / "killed", ignore=shutil.ignore_patterns("*-shm")))
    before = content(killed)
    assert before["items.sqlite-wal"]
    for _ in range(2):
        with open_index(killed) as index:
            assert index.known(["new"])["new"][0] == 300 and len(index) == 301
        assert content(killed) == before
    with open_index(killed) as index:
        index.remove([300])
    search(killed)
    assert not (killed / "items.sqlite-wal").exists()


@pytest.mark.parametrize("log", [b"", b"\x37\x7f\x06\x82" + 60 * b"\xff", b"text", bytes(100_000)])
def test_a_log_of_nothing(folder: Path, log: bytes) -> None:
    (folder / "items.sqlite-wal").write_bytes(log)
    before = content(folder) | ({} if log else {"items.sqlite-wal": b""})
    search(folder)
    after = content(folder)
    assert after == before or (not log and after == {k: v for k, v in before.items() if not k.endswith("-wal")})


MANIFESTS = [
    "[" * 100_000, "null", "3", '"text"', '{"format_version": 1e999, "n_bits": 16, "model_fingerprint": null}',
    '{"format_version": [], "n_bits": 16, "model_fingerprint": null}', '{"format_version": 2, "n_bits": 16, "model_fingerprint": {}}',
    '{"format_version": 2, "n_bits": "16", "model_fingerprint": null}', '{"format_version": true, "n_bits": 16, "model_fingerprint": null}',
    '{"format_version": 2, "n_bits": 1e9, "model_fingerprint": null}', '{"format_version": ' + "9" * 5000 + "}", " " * 2_000_000,
]  # fmt: skip


@pytest.mark.parametrize("text", MANIFESTS)
def test_manifests(folder: Path, text: str) -> None:
    (folder / "manifest.json").write_text(text)
    assert "manifest.json is damaged" in refuses(folder)


# Tables


COLUMNS = "id INTEGER PRIMARY KEY AUTOINCREMENT, code BLOB NOT NULL, key TEXT UNIQUE, digest BLOB, metadata TEXT"
ENDLESS = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) "
ENDLESS += "SELECT x AS id, x'0000' AS code, x AS key, x AS digest, '{}' AS metadata FROM c"
SCHEMAS = {
    "an endless view": ["ALTER TABLE items RENAME TO old", f"CREATE VIEW items AS {ENDLESS}"],
    "a view of all": ["ALTER TABLE items RENAME TO old", "CREATE VIEW items AS SELECT * FROM old"],
    "a view beside": [f"CREATE VIEW extra AS {ENDLESS}"],
    "a view of generations": ["ALTER TABLE generations RENAME TO old", "CREATE VIEW generations AS SELECT * FROM old"],
    "a trigger": ["CREATE TRIGGER t AFTER INSERT ON items BEGIN DELETE FROM items; END"],
    "a trigger on removals": ["CREATE TRIGGER t AFTER DELETE ON items BEGIN INSERT INTO items (code) SELECT code FROM items; END"],
    "a virtual table": ["DROP TABLE changes", "CREATE VIRTUAL TABLE changes USING fts5(id, generation)"],
    "a generated column": ["DROP TABLE items", f"CREATE TABLE items ({COLUMNS}, g AS (hex(zeroblob(1000000))))"],
    "a generated key": ["DROP TABLE items", f"CREATE TABLE items ({COLUMNS.replace('key TEXT', 'key TEXT AS (hex(code))')})"],
    "a default": ["DROP TABLE items", f"CREATE TABLE items ({COLUMNS.replace('TEXT UNIQUE', 'TEXT DEFAULT (hex(randomblob(9))) UNIQUE')})"],
    "a check": ["DROP TABLE items", f"CREATE TABLE items ({COLUMNS}, CHECK (length(hex(zeroblob(id))) > 0))"],
    "an index on an expression": ["CREATE INDEX slow ON items (length(hex(zeroblob(1000))))"],
    "an index": ["CREATE INDEX more ON items (digest)"],
    "another table": ["CREATE TABLE extra (x)"],
    "other types": ["DROP TABLE items", f"CREATE TABLE items ({COLUMNS.replace('INTEGER', 'TEXT').replace('AUTOINCREMENT', '')})"],
    "no generations": ["DROP TABLE generations"],
}  # fmt: skip


TRIGGER = "CREATE TRIGGER {} AFTER INSERT ON items BEGIN DELETE FROM items WHERE id < 9; END"
INSERT = "INSERT INTO sqlite_schema VALUES ('trigger', '{0}', 'items', 0, '{1}')"
HIDDEN = {
    "a trigger with a name of SQLite's": [INSERT.format("sqlite_t", TRIGGER.format("sqlite_t"))],
    "a trigger behind many": [INSERT.format(name, TRIGGER.format(name)) for name in (*(f"sqlite_t{i}" for i in range(20)), "t")],
    "a trigger with the name of an index": [
        "CREATE TEMP TABLE kept AS SELECT * FROM sqlite_schema WHERE name = 'changes_by_generation'",
        f"UPDATE sqlite_schema SET type = 'trigger', tbl_name = 'items', rootpage = 0, sql = '{TRIGGER.format('changes_by_generation')}' "
        "WHERE name = 'changes_by_generation'",
        "INSERT INTO sqlite_schema SELECT * FROM kept",
    ],
    "a view with a name of SQLite's": [
        "INSERT INTO sqlite_schema VALUES ('view', 'sqlite_v', 'sqlite_v', 0, 'CREATE VIEW sqlite_v AS SELECT 1')",
    ],
    "an index on an expression": [
        "CREATE INDEX slow ON items (length(hex(zeroblob(1000))))",
        "UPDATE sqlite_schema SET name = 'sqlite_slow', sql = replace(sql, 'slow', 'sqlite_slow') WHERE name = 'slow'",
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", HIDDEN)
def test_schemas_that_hide_what_they_hold(folder: Path, name: str) -> None:
    run_sql(folder, "PRAGMA writable_schema = ON", *HIDDEN[name])
    assert "is not the database of an index" in refuses(folder)
    with pytest.raises(FormatError):
        open_index(folder, n_bits=N_BITS, create=True)


def test_statistics_of_sqlite_are_no_harm(folder: Path) -> None:
    run_sql(folder, "ANALYZE", "UPDATE sqlite_stat1 SET stat = '1 1'")
    search(folder)


def test_more_metadata_than_memory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "_BYTES_AT_ONCE", 1 << 20)
    run_sql(folder, "UPDATE items SET metadata = json_object('a', hex(zeroblob(100000)))")
    with open_index(folder) as index:
        assert len(index.get(range(5))) == 5
        with pytest.raises(FormatError, match="300 items have more than 19 MiB of keys and metadata"):
            index.get(range(300))


@pytest.mark.parametrize("table", ["changes", "items"])
def test_rows_without_end_in_a_small_file(folder: Path, monkeypatch: pytest.MonkeyPatch, table: str) -> None:
    """Every page of the tree has one page below it, 400 times."""
    monkeypatch.setattr(embedded, "_LEAST_STEPS", 500_000)
    (folder / "codes.cache").unlink()
    database, depth = folder / "items.sqlite", 6
    with open_index(folder, n_bits=N_BITS, create=True) as index:
        index.remove(ids=[3])
    run_sql(folder, "PRAGMA wal_checkpoint(TRUNCATE)", "PRAGMA journal_mode = DELETE")
    with contextlib.closing(sqlite3.connect(database)) as connection:
        (root,) = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = ?", [table]).fetchone()
        ((size,), (n_pages,)) = (
            connection.execute(f"PRAGMA {name}").fetchone() for name in ("page_size", "page_count")
        )
    data = bytearray(database.read_bytes())
    places = [root, *range(n_pages + 1, n_pages + 1 + depth)]
    data += bytes(depth * size)
    data[-size:] = data[(root - 1) * size : root * size]
    for place, below in itertools.pairwise(places):
        page, end = bytearray(size), size
        for cell in range(400):
            end -= 5
            page[end : end + 5] = struct.pack(">IB", below, 1 + min(cell, 100))
            struct.pack_into(">H", page, 12 + 2 * cell, end)
        struct.pack_into(">BHHHBI", page, 0, 5, 0, 400, end, 0, below)
        data[(place - 1) * size : place * size] = page
    struct.pack_into(">I", data, 28, n_pages + depth)
    database.write_bytes(data)
    assert "items.sqlite is damaged" in refuses(folder)


@pytest.mark.parametrize("schema", SCHEMAS)
def test_tables_that_are_not_ours(folder: Path, schema: str) -> None:
    run_sql(folder, *SCHEMAS[schema])
    assert "is not the database of an index" in refuses(folder)
    with pytest.raises(FormatError):
        open_index(folder, n_bits=N_BITS, create=True)


VALUES_IN_ROWS = {
    "a code of text": ("code = 'text'", "id 7 has the type text"),
    "a number as a code": ("code = 7", "id 7 has the type integer"),
    "a huge code": ("code = zeroblob(10000000)", "has 10000000 bytes, not 2"),
    "a metadata beyond memory": ("metadata = '{\"a\":\"' || hex(zeroblob(10000000)) || '\"}'", "too big"),
    "metadata of text": ("metadata = 'text'", "row of id 7"),
    "metadata of a list": ("metadata = '[1]'", "row of id 7"),
    "metadata of a number": ("metadata = 5", "row of id 7"),
    "deep metadata": (f"metadata = '{'[' * 50_000}'", "row of id 7"),
    "metadata of bytes": ("metadata = x'ff00'", "row of id 7"),
    "a key of bad bytes": ("key = x'ff'", "row of id 7"),
    "a huge key": ("key = hex(zeroblob(10000000))", "too big"),
    "a digest of text": ("digest = 'text'", "row of id 7"),
    "a negative id": ("id = -7", "fewer items than the 300"),
}


@pytest.mark.parametrize("name", VALUES_IN_ROWS)
def test_values_that_are_not_ours(folder: Path, name: str) -> None:
    change, sentence = VALUES_IN_ROWS[name]
    run_sql(folder, f"UPDATE items SET {change} WHERE id = 7")
    for cache in ("codes.cache", "codes.clusters"):
        (folder / cache).unlink()
    assert sentence in refuses(folder)


@pytest.mark.parametrize(
    "change",
    [
        "generations SET items = 1000000000000000", "generations SET items = -5", "generations SET items = 'many'",
        "generations SET items = 299", "generations SET items = 301", "generations SET name = x'00'",
        "generations SET name = 3.5, items = 2.5",
        "sqlite_sequence SET seq = 'text'", "sqlite_sequence SET seq = x'ffff'", "sqlite_sequence SET seq = 1e300",
    ],
)  # fmt: skip
def test_counts_that_are_wrong(folder: Path, change: str) -> None:
    run_sql(folder, f"UPDATE {change}")
    (folder / "codes.cache").unlink()
    assert "items.sqlite is damaged" in refuses(folder)


def test_any_byte_of_the_database(folder: Path) -> None:
    """Flipped bytes give a sentence or answers, and nothing else."""
    whole, rng = (folder / "items.sqlite").read_bytes(), np.random.default_rng(0)
    for cache in ("codes.cache", "codes.clusters"):
        (folder / cache).unlink()
    for turn in range(150):
        data = bytearray(whole)
        for place in rng.integers(0, 4096 if turn % 2 else len(data), 3).tolist():
            data[place] ^= int(rng.integers(1, 256))
        (folder / "items.sqlite").write_bytes(data)
        before = content(folder)
        try:
            with open_index(folder) as index:
                index.search(QUERY, 300, where="key LIKE 'k%'")
                index.get(index.ids().tolist())
                list(index.members("x", "k"))
        except DistillHashError as error:
            assert "\n" not in str(error)
        assert {name: data for name, data in content(folder).items() if not name.endswith("-wal")} == before


# Caches with the right checksums


def write_cache(folder: Path, ids: NDArray[Any], planes: NDArray[Any], **fields: Any) -> None:
    """A cache file with right checksums, by docs/formats.md."""
    file = folder / "codes.cache"
    old = file.read_bytes()
    text = json.loads(old[: old.index(b"}") + 1].partition(b"\n")[2].partition(b"\n")[2])
    body = ids.tobytes() + planes.tobytes()
    text |= {"shape": [1, len(ids)], "checksum": zlib.crc32(body)} | fields
    data = json.dumps(text).encode()
    file.write_bytes(
        (b"distillhash codes 1\n%08x %08x\n" % (len(data), zlib.crc32(data)) + data).ljust(4096, b"\0") + body
    )


def test_caches_with_wild_contents(folder: Path) -> None:
    data = (folder / "codes.cache").read_bytes()[4096:]
    ids, planes = np.frombuffer(data[:2400], np.int64), np.frombuffer(data[2400:], np.uint16)
    write_cache(folder, ids, planes)
    assert embedded._read_cache(folder / "codes.cache", N_BITS) is not None
    for wrong in (ids[::-1], ids - 5, ids * 0, ids + 2**62, np.append(ids[1:], ids[:1])):
        write_cache(folder, wrong, planes)
        search(folder)
    wild: tuple[dict[str, Any], ...] = (
        {"shape": [1, 300.0]}, {"shape": [1, -300]}, {"shape": [1, 2**70]}, {"shape": 3}, {"shape": [1, None]}, {"generation": []},
        {"generation": "1"}, {"generation": 2**70}, {"name": []}, {"name": None}, {"last_id": "x"}, {"last_id": 2**70}, {"checksum": "x"},
        {"last_id": 10}, {"deep": json.loads("[" * 900 + "]" * 900)},
    )  # fmt: skip
    for fields in wild:
        write_cache(folder, ids, planes, **fields)
        search(folder)
    text = b"[" * 4000
    head = b"distillhash codes 1\n%08x %08x\n" % (len(text), zlib.crc32(text)) + text
    (folder / "codes.cache").write_bytes(head.ljust(4096, b"\0"))
    search(folder)


def wild_arrays(sound: dict[str, NDArray[Any]]) -> dict[str, dict[str, NDArray[Any]]]:
    rings, rows, centres, plan = (sound[name] for name in ("rings", "row_of", "centres", "plan"))
    far, falling, shifted, twice = rings.copy(), rings.copy(), rings.copy(), rows.copy()
    far[0, 5:] = 4_000_000_000
    falling[0, 3:9] = 250
    falling[0, 9:] = 0
    shifted[0, 0] = 7
    twice[3] = twice[4]
    outside = rows.copy()
    outside[0] = 2**32 - 1
    return {
        "rings beyond the rows": {"rings": far},
        "rings that fall": {"rings": falling},
        "rings that begin late": {"rings": shifted},
        "rings of zeros": {"rings": np.zeros_like(rings)},
        "rings of other types": {"rings": rings.astype(np.int64)},
        "rings of too few distances": {"rings": rings[:, :5]},
        "rings of more distances": {"rings": np.pad(rings, ((0, 0), (0, 100)), mode="edge")},
        "rings of more centres": {"rings": np.concatenate([rings, rings[-1:] * 0 + 300])},
        "flat rings": {"rings": rings.ravel()},
        "rows twice": {"row_of": twice},
        "rows that are not there": {"row_of": outside},
        "too few rows": {"row_of": rows[:-1]},
        "negative rows": {"row_of": -rows.astype(np.int64) - 1},
        "rows of floats": {"row_of": rows.astype(np.float32)},
        "no centres": {"centres": centres[:, :0], "rings": rings[:0]},
        "centres of other types": {"centres": centres.astype(np.uint64)},
        "more planes of centres": {"centres": np.concatenate([centres, centres])},
        "no plan": {"plan": plan[:0]},
        "a plan of nothing": {"plan": plan * np.nan},
        "a plan below zero": {"plan": -plan},
        "a plan of integers": {"plan": plan.astype(np.int64)},
    }


def test_clusters_with_wild_contents(folder: Path, sound: Path) -> None:
    arrays = load_file(sound / "codes.clusters")
    with open_index(sound) as index:
        state: Any = index.state()

    def write(given: dict[str, NDArray[Any]]) -> None:
        given = {key: np.ascontiguousarray(value) for key, value in given.items()}
        save_file(
            given, folder / "codes.clusters", {"name": state.name, "checksum": str(embedded._crc_of_arrays(given))}
        )

    def loads() -> bool:
        cached = embedded._read_cache(folder / "codes.cache", N_BITS)
        assert cached is not None
        return embedded._with_stored_clusters(cached, folder / "codes.clusters").base.clusters is not None

    write(arrays)
    assert loads()
    search(folder)
    for what, change in wild_arrays(arrays).items():
        write(arrays | change)
        assert not loads(), what
        search(folder)
    for missing in arrays:
        write({key: value for key, value in arrays.items() if key != missing})
        assert not loads()


def test_cluster_arrays_are_checked_by_the_library(sound: Path) -> None:
    arrays = load_file(sound / "codes.clusters")
    planes = np.frombuffer(np.ascontiguousarray(VALUES).tobytes(), np.uint16)[None]
    assert ClusteredCodes.from_arrays(planes, arrays).nearest(planes[:, :1], 3)[1].shape == (1, 3)
    for change in wild_arrays(arrays).values():
        with pytest.raises(ValueError, match="damaged"):
            ClusteredCodes.from_arrays(planes, arrays | change)


# Writing


def test_no_link_is_written_through(folder: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    for name in ("codes.cache", "codes.clusters"):
        (folder / name).unlink()
        (folder / name).symlink_to(victim)
        (folder / f".{name}.{os.getpid()}").symlink_to(victim)
    with open_index(folder) as index:
        index.remove([299])
        index.compact()
    assert victim.read_bytes() == b"precious"


# Conditions


ENDLESS_CONDITIONS: dict[str, Callable[[], str]] = {
    "a product of all rows": lambda: "(SELECT count(*) FROM items a, items b, items c, items d) > 0",
    "a search in a product": lambda: "EXISTS (SELECT 1 FROM items b, items c, items d WHERE items.key || b.key = c.key || d.key || '!')",
    "a sort of a product": lambda: "id IN (SELECT a.id FROM items a, items b, items c, items d ORDER BY a.key || b.key || c.key)",
}  # fmt: skip


@pytest.mark.parametrize("name", ENDLESS_CONDITIONS)
def test_conditions_without_end(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(embedded, "_CONDITION_SECONDS", 0.3)
    begin = time.monotonic()
    with open_index(folder) as index:
        with pytest.raises(ParameterError, match=r"takes longer than 0\.30\d* s"):
            index.search(QUERY, 3, where=ENDLESS_CONDITIONS[name]())
        assert time.monotonic() - begin < 3
        assert len(index.search(QUERY, 3, where="id > 5")[0]) == 3


@pytest.mark.parametrize(
    "condition",
    [
        "(WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT count(*) FROM c) > 0",
        "length(randomblob(1000000000)) > 0", "length(zeroblob(1000000000)) > 0",
        "key LIKE '" + "%a" * 5000 + "'", "key GLOB '" + "*a" * 5000 + "'", "id = " + "(" * 2000 + "1" + ")" * 2000,
        "id = 1 " + "OR id = 1 " * 2000, "1) UNION SELECT id FROM items; ATTACH 'x' AS y; --", "load_extension('x.so')",
        "(SELECT count(*) FROM pragma_table_info('items')) > 0", "(SELECT sql FROM sqlite_master) != ''",
        "(SELECT name FROM generations) != ''",
        "(SELECT file FROM pragma_database_list) != ''", "id = " + " + ".join(["1"] * 5000), "x" * 200_000,
    ],
)  # fmt: skip
def test_conditions_that_are_refused(folder: Path, condition: str) -> None:
    begin, before = time.monotonic(), content(folder)
    with open_index(folder) as index:
        with pytest.raises(ParameterError) as caught:
            index.search(QUERY, 3, where=condition)
        assert len(str(caught.value)) < 600 and time.monotonic() - begin < 5
        assert len(index.search(QUERY, 3)[0]) == 3
    assert content(folder) == before


def test_conditions_that_are_answered(folder: Path) -> None:
    with open_index(folder) as index:
        for condition, wanted in {
            "key LIKE 'K12%'": [12, *range(120, 130)],
            "metadata->>'year' BETWEEN 3 AND 5": [3, 4, 5],
            "id IN (SELECT max(id) FROM items)": [299],
            "length(printf('%.*c', 1000, 'x')) = 1000 AND id = 4": [4],
        }.items():
            assert sorted(index.search(QUERY, 300, where=condition).ids[0][: len(wanted)].tolist()) == wanted
