"""Captions in CSV files as spreadsheets and people write them."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distillhash.errors import DataError, ParameterError
from distillhash.sources import open_source
from distillhash.sources.pairs import open_pairs
from image_factory import make_png


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, name in enumerate(("a", "b", "sub/c")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.png").write_bytes(make_png(8, 8, number))
    (tmp_path / "link").symlink_to("sub")
    return tmp_path


def texts(folder: Path, content: str | bytes, **columns: str) -> dict[str, list[str]]:
    """The texts of each image that has some."""
    path = folder / "captions.csv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    pairs = open_pairs(path, **columns)  # type: ignore[arg-type]
    found: dict[str, list[str]] = {}
    for owner, text in zip(pairs.owners, pairs.texts, strict=True):
        found.setdefault(pairs.keys[owner], []).append(str(text))
    return found


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_what_spreadsheets_write(folder: Path, separator: str, ending: str, encoding: str) -> None:
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, delimiter=separator, lineterminator=ending, quoting=csv.QUOTE_ALL)
    rows = [("a.png", "a dog, a cat; a|b\tand ü"), ("b.png", 'she said "no"'), ("a.png", "two\nlines")]
    writer.writerows([("Image", " caption "), *rows])
    assert texts(folder, stream.getvalue().encode(encoding)) == {
        "a.png": ["a dog, a cat; a|b and ü", "two lines"],
        "b.png": ['she said "no"'],
    }


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    separator=st.sampled_from([",", ";", "\t", "|"]),
    captions=st.lists(
        st.text(st.characters(exclude_categories=["Cs", "Cc"])).filter(str.strip), min_size=1, max_size=5
    ),
)
def test_whatever_the_csv_module_writes(folder: Path, separator: str, captions: list[str]) -> None:
    stream = io.StringIO(newline="")
    csv.writer(stream, delimiter=separator).writerows([("image", "caption"), *(("a.png", text) for text in captions)])
    assert texts(folder, stream.getvalue()) == {"a.png": [" ".join(text.split()) for text in captions]}


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (
            "image,caption\na.png,a dog, near water\n",
            "line 2 .* has 3 fields and the header 2; put texts that hold commas in double",
        ),
        ("image;caption\na.png;x\nb.png;y;z\n", "line 3 .* has 3 fields .* hold semicolons"),
        ('image,caption\na.png,"x\ny\nz"\nb.png,q,w\n', "line 5 .* has 3 fields"),  # lines of the file, not rows
        ('\n\nimage,caption\n\na.png,"x\r\ny"\nb.png,q,w\n', "line 7 .* has 3 fields"),
        ("sep=;\nimage;caption\na.png;x;y\n", "line 3 .* has 3 fields"),
        ('image,caption\na.png,x\nb.png,"y\na.png,z\n', "the row at line 3 .*unexpected end of data"),
        ('image,caption\na.png,"5 inch\nb.png,6" tall\n', "the row at line 2 .*expected after"),
        ("image,caption\na.png,x\nb.png,\0\n", "line 3 .* holds a NUL"),
        ("image,caption\na.png,x\n".encode("utf-16-le"), "holds a NUL"),
        ("image,caption\na.png,x\nb.png,café\n".encode("latin-1"), "line 3 holds the byte 0xe9; save it as UTF-8"),
        ("image,caption,caption\na.png,x,y\n", "2 columns of the header are called 'caption'"),
        (f"{'x' * 300_000},caption\na.png,x\n", "names the columns xxx"),
        ("image,caption\n" + "y" * 300_000 + ",x\n", "none of the 1 images"),
    ],
)
def test_what_cannot_be_read_is_named_by_its_line(folder: Path, content: str | bytes, line: str) -> None:
    with pytest.raises(DataError, match=line) as raised:
        texts(folder, content)
    assert len(str(raised.value)) < 2000


def test_short_rows_and_empty_cells(folder: Path) -> None:
    assert texts(folder, "image,caption,note\na.png,x\nb.png\n,,\n\na.png,y,,,\n\n") == {"a.png": ["x", "y"]}
    assert texts(folder, "sep=;\r\nimage;caption\r\na.png;x, y\r\n") == {"a.png": ["x, y"]}


def test_cells_of_any_length(folder: Path) -> None:
    words = "word " * 400_000
    assert texts(folder, f"image,caption\na.png,{words}\n")["a.png"] == [words.strip()]


def test_one_file_is_one_item_under_every_spelling(folder: Path) -> None:
    lines = [
        f"{folder}/a.png,1",
        "./a.png,2",
        "sub/../a.png,3",
        "link/c.png,4",
        "sub//c.png,5",
        "sub\\c.png,6",
        "b.png,7",
    ]
    assert texts(folder, "image,caption\n" + "\n".join(lines)) == {
        "a.png": ["1", "2", "3"],
        "sub/c.png": ["4", "5", "6"],
        "b.png": ["7"],
    }
    assert len(open_pairs(folder / "captions.csv")) == 3


def test_chosen_columns(folder: Path) -> None:
    content = "picture;words;more\na.png;hi, you;x\n"
    assert texts(folder, content, image_column="picture", caption_column="Words") == {"a.png": ["hi, you"]}
    with pytest.raises(ParameterError, match="no column 'nope' for --caption-column; it holds picture, words, more"):
        texts(folder, content, image_column="picture", caption_column="nope")
    with pytest.raises(DataError, match="choose them with --image-column and --caption-column"):
        texts(folder, content)
    for option in ("label_column", "embedding_column"):
        with pytest.raises(ParameterError, match="is for tables"):
            texts(folder, content, **{option: "x"})


def test_list_files_of_other_systems(folder: Path) -> None:
    for content in (
        b"a.png\r\nsub/c.png\r\n",
        b"a.png\rsub/c.png",
        "a.png\nsub/c.png\n".encode("utf-16"),
        b"\xef\xbb\xbfa.png\nsub/c.png",
    ):
        (folder / "list.txt").write_bytes(content)
        assert list(open_source(folder / "list.txt").keys) == ["a.png", "sub/c.png"]


@pytest.mark.parametrize("suffix", ["txt", "lst", "csv", "npy", "npz", "parquet"])
def test_endless_and_special_files(tmp_path: Path, suffix: str) -> None:
    places = [tmp_path / f"{name}.{suffix}" for name in ("pipe", "zero", "sparse", "folder")]
    os.mkfifo(places[0])
    places[1].symlink_to("/dev/zero")
    with places[2].open("wb") as file:
        file.truncate(10 << 40)
    places[3].mkdir()
    for place in places:
        for opened in (open_source, open_pairs):
            with pytest.raises(DataError, match=place.name):
                opened(place)
