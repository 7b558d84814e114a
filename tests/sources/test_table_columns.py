"""Tables as people write them: which column counts, paths instead of bytes, odd labels, folders of files."""

from __future__ import annotations

import logging
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distillhash.cli import main
from distillhash.errors import DataError, ParameterError
from distillhash.files import open_regular
from distillhash.sources import BadItemError, EmbeddingSource, ImageSource, open_source
from distillhash.sources import parquet as reader
from distillhash.sources.pairs import open_pairs
from image_factory import make_png

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
N = 6
PNGS = [make_png(8, 6, seed) for seed in range(N)]
VECTORS = np.random.default_rng(0).normal(size=(N, 3)).astype(np.float32)


def vectors() -> Any:
    return pa.array(VECTORS.tolist(), pa.list_(pa.float32()))


def write(path: Path, /, write_options: dict[str, Any] | None = None, **columns: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, **(write_options or {}))
    return path


def contents(spec: Any, **columns: Any) -> list[Any]:
    """The bytes of every image, or the reason why there are none."""
    source = open_source(spec, **columns)
    assert isinstance(source, ImageSource)
    found: list[Any] = []
    for row in range(len(source)):
        try:
            found.append(source.read(row))
        except BadItemError as error:
            found.append(str(error))
    return found


@pytest.mark.parametrize("store", ["struct", "string", "path only", "dictionary", "large"])
def test_rows_that_name_files(tmp_path: Path, store: str) -> None:
    for number, data in enumerate(PNGS):
        (tmp_path / f"{number}.png").write_bytes(data)
    os.mkfifo(tmp_path / "pipe")
    paths = [
        "0.png",
        str(tmp_path / "1.png"),
        "./2.png",
        "gone.png",
        "pipe",
        "/dev/zero",
        None,
        ".",
        "a\0b",
        "y" * 9999,
    ]
    text = pa.large_string() if store == "large" else pa.string()
    array = pa.array(paths, text)
    if store == "string":
        table = write(tmp_path / "t.parquet", file_name=array)
    elif store == "path only":
        table = write(tmp_path / "t.parquet", image=pa.StructArray.from_arrays([array], ["path"]))
    else:
        array = array.dictionary_encode() if store == "dictionary" else array
        table = write(
            tmp_path / "t.parquet",
            image=pa.StructArray.from_arrays([pa.nulls(len(paths), pa.binary()), array], ["bytes", "path"]),
        )
    found = contents(table)
    assert found[:3] == PNGS[:3]
    for place, reason in enumerate(
        [
            "No such file",
            "it is a pipe",
            "it is a device",
            "and no path",
            "it is a folder",
            "null byte",
            "File name too long",
        ],
        3,
    ):
        assert reason in found[place]


def test_bytes_come_before_paths(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(PNGS[5])
    rows = [
        {"bytes": PNGS[0], "path": "x.png"},
        {"bytes": None, "path": "x.png"},
        {"bytes": b"", "path": "x.png"},
        None,
    ]
    found = contents(write(tmp_path / "t.parquet", image=pa.array(rows, IMAGE)))
    assert found[:3] == [PNGS[0], PNGS[5], PNGS[5]] and "no image bytes" in found[3]
    limited = open_source(tmp_path / "t.parquet", max_file_size=len(PNGS[0]) - 1)
    assert isinstance(limited, ImageSource)
    for row in (0, 1):
        with pytest.raises(BadItemError, match=r"over the limit of .* raise it with --max-file-size"):
            limited.read(row)


def test_paths_that_are_not_utf8(tmp_path: Path) -> None:
    (Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png"))).write_bytes(PNGS[0])
    path = pa.Array.from_buffers(pa.string(), 1, pa.array([b"\xff.png"]).buffers())
    image = pa.StructArray.from_arrays([pa.nulls(1, pa.binary()), path], ["bytes", "path"])
    assert contents(write(tmp_path / "t.parquet", image=image)) == [PNGS[0]]


@pytest.mark.parametrize(
    "kind", [pa.binary(), pa.large_binary(), pa.binary_view(), pa.dictionary(pa.int32(), pa.binary())], ids=str
)
@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("encoding", ["dictionary", "PLAIN", "DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY"])
def test_every_way_to_store_bytes(tmp_path: Path, kind: Any, version: str, encoding: str) -> None:
    if "dictionary" in str(kind) and encoding.startswith("DELTA"):
        pytest.skip("pyarrow cannot read what it writes here")
    options: dict[str, Any] = {"data_page_version": version, "write_page_checksum": True, "data_page_size": 300}
    options |= (
        {"use_dictionary": True} if encoding == "dictionary" else {"use_dictionary": False, "column_encoding": encoding}
    )
    array = (
        pa.array([*PNGS, None, PNGS[0]], pa.binary()).cast(kind)
        if "view" not in str(kind)
        else pa.array([*PNGS, None, PNGS[0]], kind)
    )
    found = contents(write(tmp_path / "t.parquet", options, image=array))
    assert found[:N] == PNGS and found[-1] == PNGS[0] and "no image" in found[N]


@pytest.mark.parametrize(
    ("columns", "chosen", "is_image"),
    [
        ({"thumb": pa.array(PNGS), "embedding": vectors()}, {}, False),
        ({"thumb": pa.array([b"x"] * N), "embedding": vectors()}, {}, False),
        ({"thumb": pa.array(PNGS), "embedding": vectors()}, {"image_column": "thumb"}, True),
        ({"image": pa.array(PNGS), "embedding": vectors()}, {}, True),
        ({"image": pa.array(PNGS), "embedding": vectors()}, {"embedding_column": "embedding"}, False),
        ({"image": pa.nulls(N, IMAGE), "embedding": vectors()}, {}, False),
        ({"image": pa.array([b"no image"] * N), "v": vectors()}, {}, False),
        ({"a": pa.array(PNGS), "b": pa.array(PNGS), "v": vectors()}, {}, False),
        ({"path": pa.array(["x"] * N), "v": vectors()}, {}, False),
        ({"a": vectors(), "b": vectors()}, {"embedding_column": "b"}, False),
        ({"s": pa.StructArray.from_arrays([vectors()], ["v"])}, {"embedding_column": "s.v"}, False),
        ({"s": pa.StructArray.from_arrays([pa.array(PNGS)], ["i"])}, {"image_column": "s.i"}, True),
        ({"a.b": pa.array(PNGS), "a": vectors()}, {"image_column": "a.b"}, True),
    ],
)
def test_which_column_counts(tmp_path: Path, columns: dict[str, Any], chosen: dict[str, str], is_image: bool) -> None:
    table = write(tmp_path / "t.parquet", **columns)
    source = open_source(table, **chosen)  # type: ignore[arg-type]
    if is_image:
        assert contents(table, **chosen) == PNGS
    else:
        assert isinstance(source, EmbeddingSource)
        np.testing.assert_array_equal(source.vectors, VECTORS)


def test_columns_that_do_not_fit(tmp_path: Path) -> None:
    table = write(tmp_path / "t.parquet", image=pa.array(PNGS), embedding=vectors(), n=pa.array(range(N)))
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(PNGS[0])
    np.save(tmp_path / "v.npy", VECTORS)
    np.savez(tmp_path / "v.npz", features=VECTORS, other=2 * VECTORS, classes=np.arange(N))
    for spec, chosen, reason in [
        (table, {"image_column": "nope"}, "no column 'nope' for --image-column; it holds image: binary, embedding"),
        (table, {"label_column": "nope"}, "no column 'nope' for --label-column; it holds image: binary"),
        (table, {"embedding_column": "n"}, "'n' holds no embeddings"),
        (table, {"image_column": "n"}, "'n' holds no images"),
        (table, {"image_column": "image", "embedding_column": "embedding"}, "exclude each other"),
        (tmp_path / "photos", {"label_column": "x"}, "--label-column 'x' is for tables"),
        (tmp_path / "photos" / "a.png", {"image_column": "x"}, "is for tables"),
        (tmp_path / "v.npy", {"embedding_column": "x"}, "is for tables"),
        (tmp_path / "v.npz", {"image_column": "x"}, "is for tables"),
        (tmp_path / "v.npz", {"embedding_column": "x"}, r"no column 'x' .* it holds features float32 \(6, 3\), other"),
        ("digits:", {"label_column": "x"}, "is for tables"),
        (VECTORS, {"label_column": "x"}, "is for tables"),
        ([tmp_path / "photos" / "a.png"], {"image_column": "x"}, "is for tables"),
        (open_source(table), {"image_column": "x"}, "is for tables"),
    ]:
        with pytest.raises(ParameterError, match=reason):
            open_source(spec, **chosen)  # type: ignore[arg-type]
    np.testing.assert_array_equal(open_source(tmp_path / "v.npz", embedding_column="other").vectors, 2 * VECTORS)  # type: ignore[attr-defined]
    labels = open_source(tmp_path / "v.npz", label_column="classes").labels
    assert labels is not None and labels.tolist() == list(range(N))


ODD = {
    "NaN": pa.array([1.0, float("nan")] * 3),
    "infinite": pa.array([float("inf")] * N),
    "too large": pa.array([1e300] * N),
    "unsigned": pa.array([2**64 - 1] * N, pa.uint64()),
    "nested": pa.array([[[1]]] * N),
    "nulls": pa.array(["a", None] * 3),
    "all null": pa.nulls(N),
    "date": pa.array([0] * N, pa.date32()),
    "time": pa.array([0] * N, pa.timestamp("ns")),
    "decimal": pa.array([1] * N, pa.decimal128(5, 2)),
    "struct": pa.array([{"a": 1}] * N),
    "map": pa.array([[("a", 1)]] * N, pa.map_(pa.string(), pa.int8())),
    "negative sets": pa.array([[-1]] * N),
    "huge sets": pa.array([[10**12]] * N),
    "unsigned sets": pa.array([[2**64 - 1]] * N, pa.list_(pa.uint64())),
    "sets with nulls": pa.array([[1, None]] * N),
    "word lists": pa.array([["a"]] * N),
    "bytes": pa.array([b"a"] * N),
    "not UTF-8": pa.Array.from_buffers(pa.string(), N, pa.array([b"\xff"] * N).buffers()),
    "dictionary with nulls": pa.array(["a", None] * 3).dictionary_encode(),
}


@pytest.mark.parametrize("odd", ODD)
def test_odd_labels_never_stop_a_job(tmp_path: Path, odd: str, caplog: pytest.LogCaptureFixture) -> None:
    table = write(tmp_path / "t.parquet", embedding=vectors(), label=ODD[odd])
    with caplog.at_level(logging.WARNING):
        source = open_source(table)
    assert source.labels is None and source.label_names is None and "ignored" in caplog.text
    with pytest.raises(DataError, match="'label'"):  # but labels that were asked for must be usable
        open_source(table, label_column="label")


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (pa.array([-1, -5] * 3), [-1, -5] * 3),
        (pa.array([10**12, 2**63 - 1] * 3), [10**12, 2**63 - 1] * 3),
        (pa.array(np.array([1, 2] * 3, np.float16)), [1, 2] * 3),
        (pa.array(["b", "a"] * 3, pa.string_view()), [1, 0] * 3),
        (pa.array([7, 8] * 3).dictionary_encode(), [7, 8] * 3),
    ],
)
def test_labels_that_are_only_unusual(tmp_path: Path, array: Any, expected: list[int]) -> None:
    table = write(tmp_path / "t.parquet", embedding=vectors(), cls=array)
    labels = open_source(table, label_column="cls").labels
    assert labels is not None and labels.tolist() == expected


def test_odd_labels_of_an_archive(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for labels in (
        np.array([0, 1, 2, 3, 4, np.nan]),
        np.full((N, 2), 2),
        np.array(["2020-01-01"] * N, "M8[D]"),
        np.zeros((N, 1, 1)),
    ):
        caplog.clear()
        np.savez(tmp_path / "v.npz", features=VECTORS, labels=labels)
        assert open_source(tmp_path / "v.npz").labels is None and "the labels are ignored" in caplog.text
        with pytest.raises(DataError, match="'labels'"):
            open_source(tmp_path / "v.npz", label_column="labels")


def test_class_names_that_do_not_fit_are_left_out(tmp_path: Path) -> None:
    info = b'{"info": {"features": {"label": {"names": ["cat", "dog"]}}}}'
    table = pa.table({"embedding": vectors(), "label": [0, 1, 2, 0, 1, 2]}).replace_schema_metadata(
        {b"huggingface": info}
    )
    pq.write_table(table, tmp_path / "t.parquet")
    assert open_source(tmp_path / "t.parquet").label_names is None
    nested = b'{"info":' * 100_000
    pq.write_table(table.replace_schema_metadata({b"huggingface": nested}), tmp_path / "t.parquet")
    assert open_source(tmp_path / "t.parquet").label_names is None


def test_a_hugging_face_clone(tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    for name, rows in {
        "train-00000-of-00002": [0, 1],
        "train-00001-of-00002": [2],
        "test-00000-of-00001": [3, 4],
    }.items():
        write(clone / "data" / f"{name}.parquet", image=pa.array([PNGS[row] for row in rows]), label=pa.array(rows))
    (clone / "README.md").write_text("# data")
    (clone / ".git").mkdir()
    write(clone / ".git" / "x.parquet", other=[1])
    source = open_source(clone)
    assert contents(clone) == [PNGS[row] for row in (3, 4, 0, 1, 2)]
    assert source.labels is not None and source.labels.tolist() == [3, 4, 0, 1, 2]
    assert contents(f"{clone}#train") == PNGS[:3] and contents(f"{clone}#test") == PNGS[3:5]
    blobs = tmp_path / "hub" / "blobs"  # the hub's cache: links to blobs without a suffix
    blobs.mkdir(parents=True)
    (tmp_path / "hub" / "snapshots" / "1").mkdir(parents=True)
    for number, path in enumerate(sorted((clone / "data").iterdir())):
        (blobs / f"{number}").write_bytes(path.read_bytes())
        (tmp_path / "hub" / "snapshots" / "1" / path.name).symlink_to(f"../../blobs/{number}")
    assert contents(tmp_path / "hub") == contents(clone)


def test_hive_folders(tmp_path: Path) -> None:
    for place, row in {"label=cat": 0, "label=dog%20house": 1, "label=ant": 2}.items():
        write(tmp_path / "h" / f"{place}" / "part-0.PARQUET", image=pa.array([PNGS[row]] * 2))
    for unused in ("_SUCCESS", "_metadata.parquet", "_temporary/x.parquet", ".part-0.parquet.crc"):
        path = tmp_path / "h" / unused
        path.parent.mkdir(exist_ok=True)
        path.write_text("not a table")
    source = open_source(tmp_path / "h")
    assert source.labels is not None and source.label_names == ["ant", "cat", "dog house"]
    assert [source.label_names[label] for label in source.labels] == [
        w for w in ("ant", "cat", "dog house") for _ in "ab"
    ]
    for place, row in {"split=train/year=2020": 0, "split=dev/year=2021": 1}.items():
        write(tmp_path / "s" / place / "0.parquet", image=pa.array([PNGS[row]]))
    assert contents(f"{tmp_path / 's'}#train") == PNGS[:1] and contents(f"{tmp_path / 's'}#dev") == PNGS[1:2]
    years = open_source(tmp_path / "s", label_column="year").labels
    assert years is not None and years.tolist() == [2021, 2020]  # split=dev comes first
    for place, row in {"train": 0, "validation": 1, "val": 2}.items():
        write(tmp_path / "f" / place / "0.parquet", image=pa.array([PNGS[row]]))
    assert contents(f"{tmp_path / 'f'}#validation") == PNGS[2:0:-1] and contents(f"{tmp_path / 'f'}#train") == PNGS[:1]


def test_what_lies_below_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path / "d" / "a" / "x.parquet", image=pa.array(PNGS))
    write(tmp_path / "d" / "b" / "y.parquet", text=["no image"])
    with pytest.raises(DataError, match=r"different columns.*a/x\.parquet: image; b/y\.parquet: text"):
        open_source(tmp_path / "d")
    write(tmp_path / "d" / "top.parquet", image=pa.array(PNGS[:1]))
    assert contents(tmp_path / "d") == PNGS[:1] and "not the 2 below it" in caplog.text
    (tmp_path / "d" / "photo.png").write_bytes(PNGS[3])
    assert contents(tmp_path / "d") == [PNGS[3]] and "top.parquet" in caplog.text


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (pa.array([[1.0, 2.0]] * 5 + [None], pa.list_(pa.float32(), 2)), "row 5 of the column 'v' is null"),
        (pa.array([[1.0]] * 3 + [[1.0, 2.0]] * 3), "row 3 of the column 'v' holds 2 numbers, not 1"),
        (pa.array([[1, None]] * N, pa.list_(pa.int8())), "6 of 6 rows hold NaN"),
    ],
)
def test_rows_of_embeddings_that_cannot_be_used(tmp_path: Path, array: Any, reason: str) -> None:
    table = write(tmp_path / "t.parquet", {"row_group_size": 2}, v=array)
    with pytest.raises(DataError, match=reason):
        open_source(table, embedding_column="v")


@pytest.mark.parametrize(
    "array",
    [
        pa.array(VECTORS.tolist(), pa.list_(pa.float16())),
        pa.array(VECTORS.tolist(), pa.large_list(pa.float64())),
        pa.array(VECTORS.tolist(), pa.list_(pa.float32(), 3)),
        pa.ExtensionArray.from_storage(
            pa.fixed_shape_tensor(pa.float32(), [3]), pa.array(VECTORS.tolist(), pa.list_(pa.float32(), 3))
        ),
        pa.array(np.rint(VECTORS * 50).astype(int).tolist(), pa.list_(pa.int8())),
    ],
)
def test_kinds_of_embeddings(tmp_path: Path, array: Any) -> None:
    source = open_source(write(tmp_path / "t.parquet", {"row_group_size": 4}, embedding=array))
    assert isinstance(source, EmbeddingSource)
    np.testing.assert_array_equal(source.vectors, np.array(array.to_pylist()).astype(source.vectors.dtype))


def test_captions_of_a_chosen_column(tmp_path: Path) -> None:
    words = [f"text {row}" for row in range(N)]
    table = write(
        tmp_path / "t.parquet", jpg=pa.array(PNGS), thumb=pa.array(PNGS), alt=words, caption=["x"] * N, n=range(N)
    )
    assert open_pairs(table, image_column="jpg", caption_column="alt").texts == words
    for chosen, reason in [
        ({"caption_column": "nope"}, "no column 'nope' for --caption-column"),
        ({"caption_column": "n"}, "no texts but int64"),
    ]:
        with pytest.raises(ParameterError, match=reason):
            open_pairs(table, image_column="jpg", **chosen)  # type: ignore[arg-type]


def test_captions_that_are_no_texts(tmp_path: Path) -> None:
    for kind in ([True] * N, [1.5] * N, [[1]] * N):
        with pytest.raises(DataError, match=r"has a usable text; first .*no string but"):
            open_pairs(write(tmp_path / "t.parquet", image=pa.array(PNGS), caption=pa.array(kind)))


def test_page_headers_say_what_pyarrow_reads(tmp_path: Path) -> None:
    """Against an independent count: values and bytes of pages as pyarrow's metadata state them."""
    rng = random.Random(0)
    for round_ in range(20):
        n = rng.randint(1, 5000)
        values = [None if rng.random() < 0.1 else rng.randbytes(rng.choice([0, 3, 200])) for _ in range(n)]
        options = {
            "compression": rng.choice(["none", "snappy", "zstd", "gzip"]),
            "use_dictionary": rng.random() < 0.5,
            "data_page_version": rng.choice(["1.0", "2.0"]),
            "data_page_size": rng.choice([100, 10_000]),
            "write_page_checksum": rng.random() < 0.5,
            "row_group_size": rng.choice([100, 10_000]),
        }
        table = write(
            tmp_path / f"{round_}.parquet",
            options,
            b=pa.array(values, pa.binary()),
            l=pa.array([[1.0] * (i % 3) for i in range(n)]),
        )
        metadata = pq.read_metadata(table)
        with open_regular(table) as file:
            for group in range(metadata.num_row_groups):
                for place in range(2):
                    chunk = metadata.row_group(group).column(place)
                    (own,) = reader.row_groups(file)[group].of(chunk.path_in_schema)
                    pages = reader.read_pages(file, own)
                    assert (own.n_values, reader.row_groups(file)[group].n_rows) == (
                        chunk.num_values,
                        metadata.row_group(group).num_rows,
                    )
                    assert pages.n_values == chunk.num_values
                    assert (
                        0 <= chunk.total_uncompressed_size - pages.unpacked <= 20_000
                    )  # the headers themselves count there
        assert contents(table, image_column="b")[:50] == [
            v or "the table holds no image bytes in this row, and no path" for v in values[:50]
        ]


BOMB = """
import sys
from distillhash.errors import DataError
from distillhash.sources import BadItemError, open_source
before = int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
try:
    source = open_source(sys.argv[1])
    for row in range(min(4, len(source))):
        try:
            print(len(source.read(row)) if hasattr(source, "read") else source.vectors.shape)
        except BadItemError as error:
            print(error)
except DataError as error:
    print(error)
print(int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) - before >> 10)
"""
WRITE = """
import sys, numpy as np, pyarrow as pa, pyarrow.parquet as pq
kind, path, small = sys.argv[1], sys.argv[2], bytes.fromhex(sys.argv[3])
zeros = bytes(600_000_000)
column = {
    "cell": lambda: {"image": pa.array([small, zeros, small], pa.large_binary())},
    "struct": lambda: {"image": pa.array([{"bytes": small}, {"bytes": zeros}], pa.struct([("bytes", pa.large_binary())]))},
    "path": lambda: {
        "image": pa.array(
            [{"bytes": small, "path": "x"}, {"bytes": None, "path": zeros.decode()}],
            pa.struct([("bytes", pa.binary()), ("path", pa.large_string())]),
        )
    },
    "shared": lambda: {
        "image": pa.DictionaryArray.from_arrays(pa.array(np.zeros(50_000, "i4")), pa.array([zeros[:900_000]])),
        "id": pa.DictionaryArray.from_arrays(pa.array(np.zeros(50_000, "i4")), pa.array(["x" * 900_000])),
        "label": pa.DictionaryArray.from_arrays(pa.array(np.zeros(50_000, "i4")), pa.array(["x" * 900_000])),
    },
    "vectors": lambda: {"embedding": pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(300_000_000, "f4")), 1_000)},
}[kind]()
pq.write_table(pa.table(column), path, compression="zstd", row_group_size=10**6 if kind in ("shared", "vectors") else 1)
"""


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("cell", ["{small}", "a page of it unpacks to 600,000,004 bytes, over the limit of 268,435,456", "{small}"]),
        ("struct", ["{small}", "a page of it unpacks to 600,000,004"]),
        ("path", ["{small}", "a page of it unpacks to 600,000,004"]),
        ("shared", ["900000"] * 4),
        ("vectors", ["it unpacks to 1,200,000,"]),
    ],
)
@pytest.mark.skipif(sys.platform != "linux", reason="the memory is read from /proc")
@pytest.mark.long
def test_a_small_table_that_unpacks_to_much(tmp_path: Path, kind: str, expected: list[str]) -> None:
    table = tmp_path / "bomb.parquet"
    subprocess.run([sys.executable, "-c", WRITE, kind, str(table), PNGS[0].hex()], check=True, timeout=120)
    assert table.stat().st_size < 200_000
    done = subprocess.run(
        [sys.executable, "-c", BOMB, str(table)], capture_output=True, text=True, check=True, timeout=120
    )
    *lines, grown = done.stdout.splitlines()
    assert len(lines) == len(expected)
    for line, wanted in zip(lines, expected, strict=True):
        assert wanted.format(small=len(PNGS[0])) in line
    assert int(grown) < 300


def test_a_page_over_the_limit(tmp_path: Path) -> None:
    big = bytes(300_000)
    table = write(
        tmp_path / "t.parquet", {"row_group_size": 1, "compression": "zstd"}, image=pa.array([PNGS[0], big, PNGS[1]])
    )
    source = open_source(table, max_file_size=100_000)
    assert isinstance(source, ImageSource)
    assert (source.read(0), source.read(2)) == (PNGS[0], PNGS[1])
    with pytest.raises(BadItemError, match="a page of it unpacks to 300,004 bytes, over the limit of 100,000"):
        source.read(1)
    assert open_source(table).read(1) == big  # type: ignore[attr-defined]


def test_the_same_picture_in_many_rows(tmp_path: Path) -> None:
    """Ten thousand rows of one placeholder take the memory of one."""
    picture = np.random.default_rng(0).bytes(400_000)
    write(tmp_path / "t.parquet", image=pa.array([picture]).dictionary_encode().take(pa.array([0] * 10_000)))
    before = pa.total_allocated_bytes()
    source = open_source(tmp_path / "t.parquet")
    assert isinstance(source, ImageSource)
    assert source.read(9_999) == picture and source.read(0) == picture
    assert pa.total_allocated_bytes() - before < 50_000_000  # of 4 GB


def test_columns_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = str(write(tmp_path / "t.parquet", a=vectors(), b=vectors(), cls=["x", "y"] * 3))
    out = str(tmp_path / "m")
    train = ["train", table, "--method", "lsh", "--bits", "8", "--out", out, "--quiet", "--no-cache"]
    assert main(train) == 1 and "--embedding-column" in capsys.readouterr().err
    assert main([*train, "--embedding-column", "b"]) == 0
    codes = ["encode", table, "--model", out, "--out", str(tmp_path / "c.npz"), "--quiet"]
    assert main([*codes, "--embedding-column", "nope"]) == 2
    assert main([*codes, "--embedding-column", "a"]) == 0
    both = ["--query", table, "--database", table, "--label-column", "cls", "--embedding-column", "a"]
    assert main(["evaluate", "--model", out, *both, "--quiet"]) == 0
    assert main([*train, "--embedding-column", "b", "--caption-column", "cls"]) == 2
