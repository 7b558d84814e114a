"""Vectors beside the codes: what is kept, that it stays with its item, and what is refused."""

import shutil
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from distillhash import Codes, HashModel, make_hasher
from distillhash.errors import DataError, FormatError, ParameterError
from distillhash.index import open_index
from distillhash.index.base import VectorType, quantise
from distillhash.search import open_searcher

RNG = np.random.default_rng(0)
CODES = Codes.from_projection(RNG.normal(size=(50, 12)))
X = RNG.normal(size=(50, 7)).astype(np.float32)


def kept(x: Any, kind: str = "int8") -> list[list[float]]:
    """What is kept of rows, value by value."""
    rows = [[float(value) / max(abs(float(other)) for other in row) for value in row] for row in x]
    return [[round(127 * v) if kind == "int8" else float(np.float16(v)) for v in row] for row in rows]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """50 items with keys and int8 vectors."""
    with open_index(tmp_path / "index", n_bits=12, create=True, keep_vectors="int8") as index:
        index.add(CODES, keys=[f"k{row}" for row in range(50)], vectors=X)
    return tmp_path / "index"


@pytest.mark.parametrize("kind", ["int8", "float16"])
@pytest.mark.parametrize("place", ["folder", "memory://"])
def test_vectors_are_kept_and_the_choice_as_well(tmp_path: Path, place: str, kind: VectorType) -> None:
    uri = place if place == "memory://" else str(tmp_path / place)
    index = open_index(uri, n_bits=12, create=True, keep_vectors=kind)
    assert index.add(CODES, vectors=1e30 * X.astype(np.float64)).tolist() == list(range(50))
    if place == "folder":
        index.close()
        index = open_index(uri)
        assert index.add(CODES[:1], vectors=X[:1]).tolist() == [50]
    assert index.vector_type == kind
    found = index.vectors([49, 3, 0], 7)
    assert found.dtype == np.float32 and found.tolist() == kept(X[[49, 3, 0]], kind)
    assert index.vectors([], 7).shape == (0, 7)
    with pytest.raises(DataError, match="no item with id 99"):
        index.vectors([0, 99], 7)


def test_quantisation() -> None:
    odd = np.array([[0, 0, 0], [1e-30, -2e-30, 0], [3e38, 1e38, -3e38], [1, 0.5 / 127, 1.6 / 127]])
    assert quantise(odd, "int8").tolist() == [[0, 0, 0], [64, -127, 0], [127, 42, -127], [127, 0, 2]]
    for kind in ("int8", "float16"):
        once = quantise(odd, kind)
        np.testing.assert_array_equal(quantise(once, kind), once)
        assert np.isfinite(once).all() and np.abs(once[1:].astype(float)).max(axis=1).tolist() == (
            [127] * 3 if kind == "int8" else [1] * 3
        )
    for bad, sentence in (
        (np.zeros(3), r"\(m, d\) numbers"),
        (np.zeros((3, 0)), r"\(m, d\) numbers"),
        (np.full((2, 2), "x"), r"\(m, d\) numbers"),
        (np.array([[1.0], [np.nan]]), "row 1 holds NaN"),
        (np.array([[np.inf], [1.0]]), "row 0 holds NaN or infinity"),
    ):
        with pytest.raises(DataError, match=sentence):
            quantise(bad, "int8")


def test_a_vector_stays_with_its_item(folder: Path) -> None:
    with open_index(folder) as index:
        # Two items exchange their keys; codes and vectors stay with the ids.
        index.add(CODES[:2], ids=[0, 1], keys=["k1", "k0"], upsert=True)
        index.add(CODES[:1], keys=["k5"], vectors=X[9:10], upsert=True)
        index.remove([7])
        index.remove(keys=["k8"])
        assert index.vectors([0, 1, 5, 6], 7).tolist() == kept(X[[0, 1, 9, 6]])
        index.compact()
        assert index.add(CODES[:1], ids=[7], vectors=X[20:21]).tolist() == [7]
        assert index.vectors([7, 9], 7).tolist() == kept(X[[20, 9]])
        with pytest.raises(DataError, match="no item with id 8"):
            index.vectors([8], 7)
        assert len(index) == 49
    with sqlite3.connect(folder / "items.sqlite") as connection:
        counts = connection.execute("SELECT count(*) FROM vectors WHERE id IN (SELECT id FROM items)").fetchone()
        assert counts == connection.execute("SELECT count(*) FROM vectors").fetchone() == (49,)
    connection.close()


def test_what_is_refused(folder: Path, tmp_path: Path) -> None:
    with open_index(folder) as index:
        for arguments, sentence in (
            ({"codes": CODES[:1]}, "keeps a vector of every item"),
            ({"codes": CODES[1], "ids": [0], "upsert": True}, "keeps a vector of every item"),  # another code
            ({"codes": CODES[:1], "vectors": X[:1, :6]}, "keeps vectors of 7 bytes, got 6"),
            ({"codes": CODES[:1], "vectors": X[:2]}, "2 vectors for 1 codes"),
            ({"codes": CODES[:1], "vectors": np.full((1, 7), np.nan)}, "row 0 holds NaN"),
        ):
            with pytest.raises(DataError, match=sentence):
                index.add(**arguments)
        assert len(index) == 50
        with pytest.raises(FormatError, match=r"no vector of id 0 that has 6 bytes"):
            index.vectors([0], 6)
    with open_index(folder, n_bits=12, create=True, keep_vectors="int8") as index:
        assert index.vector_type == "int8"
    with pytest.raises(ParameterError, match="was made to keep int8 vectors, which cannot become float16; leave"):
        open_index(folder, keep_vectors="float16")
    with open_index(tmp_path / "plain", n_bits=12, create=True) as index:
        index.add(CODES)
        assert index.vector_type is None
        for call in (lambda: index.vectors([0], 7), lambda: index.add(CODES, vectors=X)):
            with pytest.raises(ParameterError, match="keeps no vectors; index its sources into a new folder"):
                call()
    with pytest.raises(ParameterError, match=r"made to keep no vectors, which cannot become int8; leave .* new folder"):
        open_index(tmp_path / "plain", keep_vectors="int8")
    for uri in ("postgresql://localhost/x", "milvus://localhost:1/x"):
        with pytest.raises(ParameterError, match=r"keeps codes alone, no int8 vectors; use an index folder"):
            open_index(uri, n_bits=12, create=True, keep_vectors="int8")
    with pytest.raises(ParameterError, match="one of int8, float16, got 'int4'"):
        open_index(tmp_path / "new", n_bits=12, create=True, keep_vectors="int4")  # type: ignore[arg-type]


def test_an_empty_index_can_still_be_told_and_a_process_that_has_it_open_notices(tmp_path: Path) -> None:
    with (
        open_index(tmp_path / "i", n_bits=12, create=True) as early,
        open_index(tmp_path / "i", keep_vectors="int8") as index,
    ):
        with pytest.raises(DataError, match="keeps a vector of every item"):
            early.add(CODES)
        early.add(CODES, vectors=X)
        assert index.vectors([3], 7).tolist() == kept(X[3:4])


DAMAGE = {
    "another length": ("UPDATE vectors SET int8 = zeroblob(6) WHERE id = 3", "no vector of id 3 that has 7 bytes"),
    "a huge value": ("UPDATE vectors SET int8 = zeroblob(10000000) WHERE id = 3", "no vector of id 3"),
    "text": ("UPDATE vectors SET int8 = '1234567' WHERE id = 3", "no vector of id 3"),
    "a number": ("UPDATE vectors SET int8 = 1234567 WHERE id = 3", "no vector of id 3"),
    "a row that is gone": ("DELETE FROM vectors WHERE id = 3", "no vector of id 3"),
    "another id": ("UPDATE vectors SET id = -3 WHERE id = 3", "no vector of id 3"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_vectors_are_named(folder: Path, name: str) -> None:
    statement, sentence = DAMAGE[name]
    run_sql(folder, statement)
    with open_index(folder) as index:
        assert index.vectors([2, 4], 7).tolist() == kept(X[[2, 4]])
        with pytest.raises(FormatError, match=f"items.sqlite is damaged .*{sentence}") as caught:
            index.vectors([2, 3, 4], 7)
    assert "\n" not in str(caught.value)


def test_vectors_that_are_not_finite_are_damage(tmp_path: Path) -> None:
    with open_index(tmp_path / "i", n_bits=12, create=True, keep_vectors="float16") as index:
        index.add(CODES, vectors=X)
    bad = np.array([0, 1, 2, np.inf, 0, 0, np.nan], "<f2").tobytes().hex()
    run_sql(tmp_path / "i", f"UPDATE vectors SET float16 = x'{bad}' WHERE id = 3")
    with open_index(tmp_path / "i") as index, pytest.raises(FormatError, match="vector of id 3 holds NaN or infinity"):
        index.vectors([2, 3], 7)


TABLE = "CREATE TABLE vectors (id INTEGER PRIMARY KEY, int8 BLOB NOT NULL)"
SCHEMAS = {
    "a view": ["CREATE VIEW vectors AS SELECT id, code AS int8 FROM items"],
    "another type": [TABLE.replace("int8", "int4")],
    "a default": [TABLE.replace("NULL)", "NULL DEFAULT (hex(zeroblob(99999))))")],
    "a check": [TABLE.replace("NULL)", "NULL CHECK (length(hex(zeroblob(id))) > 0))")],
    "a generated column": [TABLE.replace("NULL)", "NULL, g AS (hex(zeroblob(1000000))))")],
    "a virtual table": ["CREATE VIRTUAL TABLE vectors USING fts5(id, int8)"],
    "a trigger": [TABLE, "CREATE TRIGGER t AFTER INSERT ON vectors BEGIN DELETE FROM items; END"],
    "an index": [TABLE, "CREATE INDEX i ON vectors (int8)"],
}


@pytest.mark.parametrize("schema", SCHEMAS)
def test_tables_that_are_not_ours(folder: Path, schema: str) -> None:
    run_sql(folder, "DROP TABLE vectors", *SCHEMAS[schema])
    for create in (False, True):
        with pytest.raises(FormatError, match="is not the database of an index"):
            open_index(folder, create=create)


def test_conditions_cannot_read_vectors(folder: Path) -> None:
    with open_index(folder) as index, pytest.raises(ParameterError, match="is no condition"):
        index.search(CODES[:1], where="id IN (SELECT id FROM vectors)")


def run_sql(folder: Path, *statements: str) -> None:
    connection = sqlite3.connect(folder / "items.sqlite", isolation_level=None)
    for statement in statements:
        connection.execute(statement)
    connection.close()


def test_vectors_follow_a_source_that_changes(tmp_path: Path) -> None:
    """Rows that change, are copied, exchange their contents or their names, come and go."""
    rng = np.random.default_rng(1)
    x: NDArray[Any] = rng.normal(size=(30, 6)).astype(np.float32)
    model = HashModel("embeddings", make_hasher("itq", 4)).fit(x)
    model.save(tmp_path / "m")
    names, source = [f"n{row}" for row in range(30)], tmp_path / "x.npz"
    for turn in range(12):
        with open_searcher(tmp_path / "i", str(tmp_path / "m"), create=True, keep_vectors="int8") as searcher:
            np.savez(source, features=x, keys=np.array(names))
            searcher.add(str(source), prune=turn % 2 == 0)
            index = searcher.index
            known = {name: index.known([f"{source}:{name}"])[f"{source}:{name}"][0] for name in names}
            assert index.vectors(list(known.values()), 6).tolist() == kept(x)
            assert index.vectors(index.ids().tolist(), 6).shape == (len(index), 6)
        a, b, c, d = rng.choice(len(x), 4, replace=False)
        x[[a, b]] = x[[b, a]]  # contents are exchanged
        names[c] = f"new{turn}"  # a row gets another name
        x[d] = rng.normal(size=6)  # another content
        x = np.concatenate([x[1:], x[5:6], rng.normal(size=(1, 6))]).astype(
            np.float32
        )  # one goes, a copy and another come
        names = [*names[1:], f"copy{turn}", f"more{turn}"]


def test_an_index_from_before_has_no_vectors(tmp_path: Path) -> None:
    folder = shutil.copytree(Path(__file__).parent.parent / "frozen" / "index", tmp_path / "old")
    with open_index(folder) as index:
        assert index.vector_type is None and len(index) == 48
    with pytest.raises(ParameterError, match="keep no vectors"):
        open_index(folder, keep_vectors="int8")
