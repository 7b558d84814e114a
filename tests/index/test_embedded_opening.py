"""Opening: what is refused, with which sentence, and that nothing is changed by a refusal."""

import json
import sqlite3
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distillhash import Codes
from distillhash.errors import DataError, DistillHashError, FormatError, ParameterError
from distillhash.index import open_index


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An index of three 8-bit codes made with model abc."""
    with open_index(tmp_path / "index", n_bits=8, create=True, model_fingerprint="abc") as index:
        index.add(Codes.from_packed(np.array([[1], [2], [4]], np.uint8), 8))
    return tmp_path / "index"


def change_manifest(folder: Path, **fields: Any) -> None:
    manifest = folder / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | fields))


def run_sql(folder: Path, *statements: str) -> None:
    connection = sqlite3.connect(folder / "items.sqlite", isolation_level=None)
    for statement in statements:
        connection.execute(statement)
    connection.close()


def test_manifest(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest.pop("created_by").startswith("distillhash ")
    checksum = f"{zlib.crc32(json.dumps([8, 'abc']).encode()):08x}"
    assert manifest == {"format_version": 2, "n_bits": 8, "model_fingerprint": "abc", "checksum": checksum}
    assert sorted(file.name for file in folder.iterdir()) == ["items.sqlite", "manifest.json"]


@pytest.mark.parametrize("arguments", [{}, {"n_bits": 8}, {"create": True}, {"model_fingerprint": "abc"}])
def test_reopens(folder: Path, arguments: dict[str, Any]) -> None:
    with open_index(str(folder), **arguments) as index:
        assert (len(index), index.n_bits) == (3, 8)


@pytest.mark.parametrize("durability", ["normal", "full"])
def test_durability_is_what_sqlite_is_told(tmp_path: Path, durability: Any) -> None:
    index: Any = open_index(tmp_path / "i", n_bits=8, create=True, durability=durability)
    level = index._items._connection.execute("PRAGMA synchronous").fetchone()[0]
    assert level == {"normal": 1, "full": 2}[durability]  # https://sqlite.org/pragma.html#pragma_synchronous
    assert index._items._connection.execute("PRAGMA journal_mode").fetchone()[0] == "wal"


@pytest.mark.parametrize(
    ("arguments", "error", "sentence"),
    [
        ({"n_bits": 16}, ParameterError, "holds codes of 8 bits, not 16"),
        ({"n_bits": 16, "create": True}, ParameterError, "holds codes of 8 bits, not 16"),
        ({"model_fingerprint": "xyz"}, FormatError, "another model .fingerprint abc, not xyz"),
        ({"durability": "some"}, ParameterError, "normal, full, got 'some'"),
    ],
)
def test_what_does_not_fit_is_refused(
    folder: Path, arguments: dict[str, Any], error: type[DistillHashError], sentence: str
) -> None:
    with pytest.raises(error, match=sentence):
        open_index(folder, **arguments)
    assert len(open_index(folder)) == 3


def test_a_new_index_needs_create_and_a_code_length(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no index at"):
        open_index(tmp_path / "i", n_bits=8)
    with pytest.raises(ParameterError, match="needs a code length"):
        open_index(tmp_path / "i", create=True)
    for n_bits in (0, -1, 4097, True, 8.0, "8"):
        with pytest.raises(ParameterError, match=r"integer in 1\.\.4096"):
            open_index(tmp_path / "i", n_bits=n_bits, create=True)  # type: ignore[arg-type]  # wrong on purpose
    assert not (tmp_path / "i").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(DistillHashError, match="cannot be made"):
        open_index(tmp_path / "file" / "i", n_bits=8, create=True)


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "manifest cut short": (lambda f: (f / "manifest.json").write_text('{"format_ver'), "damaged"),
    "manifest of bytes": (lambda f: (f / "manifest.json").write_bytes(b"\xff\xfe\0"), "damaged"),
    "manifest is a list": (lambda f: (f / "manifest.json").write_text("[]"), "damaged"),
    "field missing": (lambda f: (f / "manifest.json").write_text('{"format_version": 1}'), "damaged"),
    "n_bits of zero": (lambda f: change_manifest(f, n_bits=0), "damaged"),
    "n_bits is text": (lambda f: change_manifest(f, n_bits="8"), "damaged"),
    "another n_bits": (lambda f: change_manifest(f, n_bits=7), "checksum differs"),
    "another model": (lambda f: change_manifest(f, model_fingerprint="abd"), "checksum differs"),
    "older format": (lambda f: change_manifest(f, format_version=1), "has format 1, .* again"),
    "newer format": (lambda f: change_manifest(f, format_version=3), "has format 3, .* upgrade"),
    "database missing": (lambda f: (f / "items.sqlite").unlink(), "is missing"),
    "database empty": (lambda f: (f / "items.sqlite").write_bytes(b""), "is not the database of an index"),
    "not a database": (lambda f: (f / "items.sqlite").write_bytes(b"no database at all" * 100), "damaged"),
    "other columns": (lambda f: run_sql(f, "DROP TABLE items", "CREATE TABLE items (x)"), "is not the database of"),
    "manifest lost": (lambda f: (f / "manifest.json").unlink(), "items but no manifest.json"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named(folder: Path, damage: str) -> None:
    change, sentence = DAMAGES[damage]
    change(folder)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    with pytest.raises(FormatError, match=sentence) as caught:
        open_index(folder, n_bits=8, create=True)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert {file.name: file.read_bytes() for file in folder.iterdir() if file.suffix in (".json", ".sqlite")} == before


@pytest.mark.parametrize("damage", ["not a database", "other columns"])
def test_no_index_is_made_over_another_database(folder: Path, damage: str) -> None:
    change, sentence = DAMAGES[damage]
    change(folder)
    (folder / "manifest.json").unlink()
    with pytest.raises(FormatError, match=sentence):
        open_index(folder, n_bits=8, create=True)
    assert not (folder / "manifest.json").exists()


@pytest.mark.parametrize(
    ("statement", "n_bits", "sentence"),
    [
        ("UPDATE items SET code = x'0102' WHERE id = 1", 8, "code of id 1 has 2 bytes, not 1"),
        ("UPDATE items SET code = x'01' WHERE id = 1", 7, "pad bits"),
    ],
)
def test_damaged_codes_are_named_by_search(tmp_path: Path, statement: str, n_bits: int, sentence: str) -> None:
    with open_index(tmp_path / "index", n_bits=n_bits, create=True) as index:
        index.add(Codes.from_packed(np.array([[2], [4]], np.uint8), n_bits))
    run_sql(tmp_path / "index", statement)
    with open_index(tmp_path / "index") as index, pytest.raises(FormatError, match=sentence):
        index.search(Codes.from_packed(np.zeros((1, 1), np.uint8), n_bits))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [("code = x'0102'", "take 1 bytes each, got 2"), ("code = 'text'", "id 1"), ("metadata = '{'", "id 1: Expecting")],
)
def test_damaged_items_are_named_by_get(folder: Path, change: str, sentence: str) -> None:
    run_sql(folder, f"UPDATE items SET {change} WHERE id = 1")
    with open_index(folder) as index:
        assert [item.id for item in index.get([0, 2])] == [0, 2]
        with pytest.raises(FormatError, match=sentence):
            index.get([0, 1])


def test_a_half_made_index_is_made_whole(folder: Path, tmp_path: Path) -> None:
    """A crash between the table and the manifest leaves an empty database; making it again goes on from there."""
    half = tmp_path / "half"
    open_index(half, n_bits=8, create=True).close()
    (half / "manifest.json").unlink()
    with pytest.raises(DataError, match="no index at"):
        open_index(half)
    assert len(open_index(half, n_bits=16, create=True)) == 0


def test_a_sharded_index_is_refused_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "shards.json").write_text('{"shards": [["shard-0/replica-0"]]}')
    with pytest.raises(
        FormatError, match=r"is a sharded index.* export its codes with distillhash 0\.1 and index them"
    ):
        open_index(tmp_path, n_bits=8, create=True)
    assert [file.name for file in tmp_path.iterdir()] == ["shards.json"]


def test_importing_and_opening_need_no_numba_and_no_torch(folder: Path) -> None:
    program = (
        "import sys; from distillhash.index import open_index; index = open_index(sys.argv[1]); index.get([0]); "
        "print(sorted({'numba', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program, folder], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
