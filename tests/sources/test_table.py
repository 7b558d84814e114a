from __future__ import annotations

import json
import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import image_factory as factory
from distillhash.errors import DataError, ParameterError
from distillhash.sources import BadItemError, ImageSource, decode_image, open_source
from distillhash.sources import parquet as blocks

SHARED = Path(__file__).parents[2].parent / "shared" / "data" / "cifar10"


def images(spec: object) -> ImageSource:
    source = open_source(spec)  # type: ignore[arg-type]  # paths
    assert isinstance(source, ImageSource)
    return source


def image_struct(datas: list[bytes | None], paths: list[str | None] | None = None) -> Any:
    names = paths if paths is not None else [None] * len(datas)
    values = [{"bytes": data, "path": path} for data, path in zip(datas, names, strict=True)]
    return pa.array(values, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))


def write(path: Path, n: int = 11, first: int = 0, row_group_size: int = 4, **columns: Any) -> None:
    struct = image_struct([factory.make_png(8, 6, seed) for seed in range(first, first + n)])
    pq.write_table(pa.table({"image": struct, **columns}), path, row_group_size=row_group_size)


@pytest.mark.parametrize("row_group_size", [1, 4, 100])
def test_images(tmp_path: Path, row_group_size: int) -> None:
    write(tmp_path / "t.parquet", row_group_size=row_group_size, label=pa.array(range(11)))
    source = images(tmp_path / "t.parquet")
    assert list(source.keys) == [str(i) for i in range(11)]
    assert source.labels is not None
    assert source.labels.tolist() == list(range(11))
    assert source.path(0) is None
    for row in [10, 0, 5, 4, 3, 10]:
        assert source.read(row) == factory.make_png(8, 6, row)
    part = source.select(np.array([7, 2])).select(np.array([1]))
    assert part.read(0) == factory.make_png(8, 6, 2)
    assert list(part.keys) == ["2"]
    assert part.labels is not None
    assert part.labels.tolist() == [2]


@pytest.mark.parametrize("block_bytes", [1, 700, 10**6])
@pytest.mark.parametrize("cache_bytes", [1, 1500, 10**6])
def test_any_order_with_any_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_bytes: int, cache_bytes: int
) -> None:
    monkeypatch.setattr(blocks, "_BLOCK_BYTES", block_bytes)
    monkeypatch.setattr(blocks, "_CACHE_BYTES", cache_bytes)
    write(tmp_path / "t.parquet", n=23, row_group_size=9)
    source = images(tmp_path / "t.parquet")
    rows = np.random.default_rng(0).integers(0, 23, 60).tolist()
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(source.read, rows))
    assert found == [factory.make_png(8, 6, row) for row in rows]


def test_reading_in_order_decodes_each_block_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "_BLOCK_BYTES", 1)  # one row a block
    monkeypatch.setattr(blocks, "_CACHE_BYTES", 1)  # of which one is kept
    write(tmp_path / "t.parquet", n=12, row_group_size=6)
    source = images(tmp_path / "t.parquet")
    opened = []
    original = blocks.Blocks._read_group

    def batches(self: blocks.Blocks, group: Any, plan: Any) -> Any:
        opened.append(group.number)
        return original(self, group, plan)

    monkeypatch.setattr(blocks.Blocks, "_read_group", batches)
    for row in range(12):
        assert source.read(row) == factory.make_png(8, 6, row)
    assert opened == [0, 1]
    source.read(0)
    assert opened == [0, 1, 0]


def test_memory_of_one_large_row_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table in a single row group (what most writers produce) must not come into memory whole."""
    monkeypatch.setattr(blocks, "_BLOCK_BYTES", 1 << 20)
    monkeypatch.setattr(blocks, "_CACHE_BYTES", 4 << 20)
    rng = np.random.default_rng(0)
    datas: list[bytes | None] = [rng.bytes(10_000) for _ in range(6000)]
    pq.write_table(pa.table({"image": image_struct(datas)}), tmp_path / "t.parquet", compression="none")
    assert pq.read_metadata(tmp_path / "t.parquet").num_row_groups == 1
    expected = [datas[row] for row in (0, 2999, 5999)]
    del datas
    source = images(tmp_path / "t.parquet")
    before = pa.total_allocated_bytes()
    peak = 0
    found = []
    for row in range(6000):
        data = source.read(row)
        peak = max(peak, pa.total_allocated_bytes() - before)
        if row in (0, 2999, 5999):
            found.append(data)
    assert found == expected
    assert peak < 28 << 20  # of 57 MiB: the blocks kept, and two pages of 1,024 rows


def test_absent_images_are_single_errors(tmp_path: Path) -> None:
    struct = pa.array(
        [
            {"bytes": b"x", "path": None},
            {"bytes": None, "path": "a"},
            None,
            {"bytes": b"", "path": None},
            {"bytes": b"y", "path": None},
        ]
    )
    pq.write_table(pa.table({"img": struct}), tmp_path / "t.parquet")
    source = images(tmp_path / "t.parquet")
    assert source.read(0) == b"x"
    assert source.read(4) == b"y"
    for row, reason in ((1, "cannot be read: No such file"), (2, "no image bytes in this row"), (3, "no image bytes")):
        with pytest.raises(BadItemError, match=reason):
            source.read(row)


def test_keys_are_paths_where_they_are_unique(tmp_path: Path) -> None:
    datas: list[bytes | None] = [b"1", b"2"]
    pq.write_table(pa.table({"image": image_struct(datas, ["b.png", "a.png"])}), tmp_path / "t.parquet")
    assert list(images(tmp_path / "t.parquet").keys) == ["b.png", "a.png"]
    pq.write_table(pa.table({"image": image_struct(datas, ["b.png", "b.png"]), "id": [7, 5]}), tmp_path / "t.parquet")
    assert list(images(tmp_path / "t.parquet").keys) == ["7", "5"]
    pq.write_table(pa.table({"image": image_struct(datas, ["b.png", "b.png"])}), tmp_path / "t.parquet")
    assert list(images(tmp_path / "t.parquet").keys) == ["0", "1"]


@pytest.mark.parametrize(
    ("labels", "expected", "names"),
    [
        (pa.array([1, 0, 2], pa.int8()), [1, 0, 2], None),
        (pa.array([True, False, True]), [1, 0, 1], None),
        (pa.array(["dog", "cat", "dog"]), [1, 0, 1], ["cat", "dog"]),
        (pa.array(["dog", "cat", "dog"]).dictionary_encode(), [1, 0, 1], ["cat", "dog"]),
        (pa.array([[0, 1], [1, 1], [0, 0]]), [[0, 1], [1, 1], [0, 0]], None),
        (pa.array([[0, 1], [1, 1], [0, 0]], pa.list_(pa.int8(), 2)), [[0, 1], [1, 1], [0, 0]], None),
        (pa.array([[3], [], [0, 1]]), [[0, 0, 0, 1], [0, 0, 0, 0], [1, 1, 0, 0]], None),
    ],
)
def test_labels(tmp_path: Path, labels: Any, expected: list[Any], names: list[str] | None) -> None:
    write(tmp_path / "t.parquet", n=3, labels=labels)
    source = images(tmp_path / "t.parquet")
    assert source.labels is not None
    assert source.labels.tolist() == expected
    assert source.label_names == names


@pytest.mark.parametrize(
    ("labels", "reason"), [(pa.array([1, None, 2]), "1 nulls"), (pa.array([[1.5], [], []]), "lists of double")]
)
def test_labels_that_cannot_be_used_do_not_stop_a_job(
    tmp_path: Path, labels: Any, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path / "t.parquet", n=3, label=labels)
    with caplog.at_level(logging.WARNING):
        assert images(tmp_path / "t.parquet").labels is None
    assert reason in caplog.text


def test_hugging_face_class_names(tmp_path: Path) -> None:
    info = {"info": {"features": {"label": {"names": ["cat", "dog", "eel"], "_type": "ClassLabel"}}}}
    struct = image_struct([b"1", b"2"])
    table = pa.table({"image": struct, "label": [0, 1]}).replace_schema_metadata({"huggingface": json.dumps(info)})
    pq.write_table(table, tmp_path / "t.parquet")
    assert images(tmp_path / "t.parquet").label_names == ["cat", "dog", "eel"]


def test_shards(tmp_path: Path) -> None:
    write(tmp_path / "train-00000-of-00002.parquet", n=5, label=pa.array([0] * 5, pa.int32()))
    write(tmp_path / "train-00001-of-00002.parquet", n=4, first=5, label=pa.array([1] * 4, pa.int64()))
    write(tmp_path / "test-00000-of-00001.parquet", n=3, first=9, label=pa.array([2] * 3))
    source = images(tmp_path)  # in name order: test comes first
    seeds = [*range(9, 12), *range(9)]
    assert [source.read(row) for row in range(12)] == [factory.make_png(8, 6, seed) for seed in seeds]
    assert source.labels is not None
    assert source.labels.tolist() == [2] * 3 + [0] * 5 + [1] * 4
    assert images(f"{tmp_path}#train").read(8) == factory.make_png(8, 6, 8)
    assert len(images(f"{tmp_path}#test")) == 3
    (tmp_path / "photo.png").write_bytes(factory.make_png())  # photos in a folder come before a table written into it
    assert list(images(tmp_path).keys) == ["photo.png"]


def test_columns(tmp_path: Path) -> None:
    data = pa.array([b"1", b"2"])
    pq.write_table(pa.table({"photo": data, "n": [1, 2]}), tmp_path / "plain.parquet")
    assert images(tmp_path / "plain.parquet").read(1) == b"2"
    pq.write_table(pa.table({"a": data, "b": data}), tmp_path / "two.parquet")
    with pytest.raises(DataError, match=r"several columns could hold the images \(a, b\); name one 'image'"):
        open_source(tmp_path / "two.parquet")
    pq.write_table(
        pa.table({"mask": image_struct([b"3", b"4"]), "image": image_struct([b"1", b"2"])}), tmp_path / "mask.parquet"
    )
    assert images(tmp_path / "mask.parquet").read(0) == b"1"
    pq.write_table(pa.table({"key": ["a"], "code": pa.array([b"12"], pa.binary(2))}), tmp_path / "codes.parquet")
    with pytest.raises(
        DataError, match=r"no column of images .* nor of embeddings .* among key: string, code: fixed_size_binary\[2\]"
    ):
        open_source(tmp_path / "codes.parquet")
    shards = tmp_path / "shards"
    shards.mkdir()
    write(shards / "a.parquet")
    pq.write_table(pa.table({"photo": data}), shards / "b.parquet")
    with pytest.raises(DataError, match="the 2 files have different columns"):
        open_source(shards)


def test_damaged(tmp_path: Path) -> None:
    write(tmp_path / "t.parquet")
    whole = (tmp_path / "t.parquet").read_bytes()
    for content in (b"", b"PAR1", whole[: len(whole) // 2], b"nonsense" * 99):
        (tmp_path / "cut.parquet").write_bytes(content)
        with pytest.raises(DataError, match="not a readable Parquet table"):
            open_source(tmp_path / "cut.parquet")


def test_the_file_of_a_folder_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet")
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n"
    for content, said in (
        (b"", "b.parquet"),
        (b"nonsense" * 99, "b.parquet"),
        (pointer, "b.parquet is .* `git lfs pull`"),
    ):
        (tmp_path / "b.parquet").write_bytes(content)
        with pytest.raises(DataError, match=said):
            open_source(tmp_path)


def test_a_damaged_row_group_costs_its_rows_only(tmp_path: Path) -> None:
    write(tmp_path / "t.parquet", n=8, row_group_size=4)
    path = tmp_path / "t.parquet"
    column = pq.read_metadata(path).row_group(0).column(0)
    content = bytearray(path.read_bytes())
    start = column.dictionary_page_offset or column.data_page_offset
    content[start : start + 200] = b"\xff" * 200
    path.write_bytes(bytes(content))
    source = images(path)
    with pytest.raises(BadItemError, match=r"row group 0 of t.parquet cannot be read"):
        source.read(1)
    assert source.read(5) == factory.make_png(8, 6, 5)


@pytest.mark.skipif(not (SHARED / "test.parquet").exists(), reason="the CIFAR-10 tables are not on this machine")
def test_the_cifar10_tables() -> None:
    source = images(f"cifar10:{SHARED}")
    assert len(source) == 60_000
    assert source.keys[50_003] == "test/3"
    assert source.labels is not None
    assert np.bincount(source.labels[:50_000]).tolist() == [5000] * 10
    test = images(f"cifar10:{SHARED}#test#9990:")
    assert list(test.keys) == [f"test/{row}" for row in range(9990, 10_000)]
    assert decode_image(test.read(9)).shape == (32, 32, 3)
    stored = pq.read_table(SHARED / "test.parquet").slice(9999, 1).to_pylist()[0]
    assert test.read(9) == stored["img"]["bytes"]
    assert test.labels is not None
    assert test.labels[9] == stored["label"]
    with pytest.raises(ParameterError, match="its splits are #train, #test"):
        open_source(f"cifar10:{SHARED}#validation")
