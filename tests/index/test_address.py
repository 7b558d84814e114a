"""Addresses: folders, URIs, options, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from distillhash.errors import DistillHashError, ParameterError
from distillhash.index import open_index
from distillhash.index.address import check_address, folder_of, refuse_options, shown, split_options


@pytest.mark.parametrize(
    ("place", "folder", "text"),
    [
        ("photos.index", Path("photos.index"), "photos.index"),
        (Path("a") / "b", Path("a/b"), "a/b"),
        ("memory://", None, "memory://"),
        ("milvus://me:secret@host:1/c?largest=5", None, "milvus://me@host:1/c?largest=5"),
        ("postgresql://me:se%40cret@host/db?table=t&password=x", None, "postgresql://me@host/db?table=t"),
        ("postgresql://@/db?host=/tmp/socket", None, "postgresql://@/db?host=/tmp/socket"),
    ],
)
def test_addresses(place: str | Path, folder: Path | None, text: str) -> None:
    assert folder_of(place) == folder
    assert shown(place) == text and "cret" not in shown(place)


def test_options_are_taken_out_of_an_address() -> None:
    uri = "postgresql://me@host/db?table=t&sslmode=require&options=-csearch_path%3Da%20b&patience="
    rest, taken = split_options(uri, ("table", "patience"))
    assert taken == {"table": "t", "patience": ""}
    assert rest == "postgresql://me@host/db?sslmode=require&options=-csearch_path%3Da%20b"
    assert split_options("milvus://h/c", ("table",)) == ("milvus://h/c", {})
    refuse_options("milvus://h/c", ("index",))
    with pytest.raises(ParameterError, match="unknown option 'tabel'; choose from table"):
        refuse_options("x://h?tabel=t", ("table",))


def test_engines_that_are_not_there_are_refused_by_name() -> None:
    for scheme in ("redis", "sharded"):
        with pytest.raises(
            ParameterError, match=f"{scheme}:// is not an engine of this version; choose from a folder, memory://, post"
        ):
            open_index(f"{scheme}://localhost/0?shards=2", n_bits=8, create=True)
    for place in ("memory://name", "memory://?a=b"):
        with pytest.raises(ParameterError, match="takes no name and no options"):
            open_index(place, n_bits=8, create=True)
    with pytest.raises(ParameterError, match="no durability levels"):
        open_index("memory://", n_bits=8, create=True, durability="full")


@pytest.mark.parametrize(
    "place",
    [
        "postgresql://me:s3cr/et@host/db", "postgresql://me:s3cr?et@host/db", "postgresql://me:s3cr@et@host/db", "postgresql://me:s3cret%zz@host/db",
        "POSTGRESQL://me:s3cr/et@host:5432/db", "postgresql:/me:s3cret@host/db", "Milvus:me:s3cret@host", "milvus://root:s3cr/et@host/c",
        "milvus://host/c?token=s3cret", "milvus://host/c?apikey=secret:s3cret", "postgresql://host/db?table=-&user=me;password=s3cret",
    ],
)  # fmt: skip
def test_a_password_in_the_wrong_place_is_not_shown(place: str) -> None:
    with pytest.raises(DistillHashError) as caught:
        open_index(place + ("&" if "?" in place else "?") + "patience=0")
    assert "s3cr" not in str(caught.value) and "et@" not in str(caught.value)


@pytest.mark.parametrize(
    "place",
    ["photos", "a:b/c%", "memory://", "postgresql://me:p%2Fw@[::1]:5432,other:1/db?host=/tmp", "postgresql:///db", "milvus://root:p@ss@host:1/c"],
)  # fmt: skip
def test_addresses_that_can_be_read(place: str) -> None:
    check_address(place)
