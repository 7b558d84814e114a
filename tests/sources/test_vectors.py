from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from distillhash.errors import DataError
from distillhash.sources import EmbeddingSource, ImageSource, open_source
from distillhash.sources.base import RowKeys, class_labels, label_sets, take_keys, unique_keys
from distillhash.sources.vectors import check_finite


def vectors(n: int = 11, d: int = 5, dtype: str = "float32") -> NDArray[Any]:
    return np.random.default_rng(0).normal(size=(n, d)).astype(dtype)


def embeddings(spec: object) -> EmbeddingSource:
    source = open_source(spec)  # type: ignore[arg-type]  # paths and arrays
    assert isinstance(source, EmbeddingSource)
    return source


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ">f4"])
def test_npy(tmp_path: Path, dtype: str) -> None:
    stored = vectors(dtype=dtype)
    np.save(tmp_path / "v.npy", stored)
    source = embeddings(tmp_path / "v.npy")
    np.testing.assert_array_equal(source.vectors, stored)
    assert source.vectors.dtype == np.dtype(dtype).newbyteorder("=")
    assert list(source.keys) == [str(i) for i in range(11)]
    assert source.labels is None


def test_npy_stays_a_memory_map(tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", vectors(100))
    for spec in (f"{tmp_path}/v.npy", f"{tmp_path}/v.npy#10:90"):
        source = embeddings(spec)
        assert isinstance(source.vectors, np.memmap)
        assert np.shares_memory(source.vectors, source.select(np.arange(5, 9)).vectors)
    picked = source.select(np.array([3, 0, 3]))
    np.testing.assert_array_equal(picked.vectors, vectors(100)[[13, 10, 13]])
    assert list(picked.keys) == ["13", "10", "13"]


def test_npy_of_images(tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", np.arange(2 * 3 * 4 * 3, dtype=np.uint8).reshape(2, 3, 4, 3))
    source = open_source(tmp_path / "v.npy")
    assert isinstance(source, ImageSource)
    np.testing.assert_array_equal(source.read(1), np.arange(36, 72).reshape(3, 4, 3))


def test_integers_are_cast_with_a_message(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        source = embeddings(np.arange(6, dtype=np.int8).reshape(3, 2))
    assert source.vectors.dtype == np.float32
    assert source.vectors.tolist() == [[0, 1], [2, 3], [4, 5]]
    assert "embeddings of dtype int8 are cast to float32" in caplog.text


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros(3), r"must be a 2-d array \(n, d\), got shape \(3,\)"),
        (np.zeros((2, 3, 4)), r"got shape \(2, 3, 4\)"),
        (np.zeros((0, 4)), "nothing usable, the embeddings have no rows"),
        (np.zeros((4, 0)), "have no columns"),
        (np.zeros((2, 2), complex), "must be float16, float32 or float64, got complex128"),
        (np.zeros((2, 2), bool), "got bool"),
        (np.zeros((2, 2), np.longdouble), "got float128|got longdouble"),
        (np.array([["a", "b"]]), "got <U1"),
    ],
)
def test_unusable_arrays(array: NDArray[Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_source(array)


def test_values_that_are_not_finite_are_named() -> None:
    array = vectors(40_000, 200)  # two blocks of the scan
    array[31_234, 7] = np.nan
    array[39_999, 0] = -np.inf
    array[39_999, 1] = np.nan
    with pytest.raises(
        DataError, match=r"array: 2 of 40000 rows hold NaN or infinity, the first is row 31234; remove or repair them"
    ):
        open_source(array)
    check_finite(array[:31_234], "the rest")
    with pytest.raises(DataError, match=r"1 of 3 rows .* the first is row 0"):
        open_source(np.array([[np.inf], [0], [1]], np.float16))


def test_only_the_selected_rows_must_be_finite(tmp_path: Path) -> None:
    array = vectors()
    array[9] = np.nan
    np.save(tmp_path / "v.npy", array)
    assert len(embeddings(f"{tmp_path}/v.npy#:9")) == 9
    with pytest.raises(DataError, match="the first is row 9"):
        open_source(tmp_path / "v.npy")


@pytest.mark.parametrize("name", ["features", "embeddings", "vectors", "whatever"])
def test_npz(tmp_path: Path, name: str) -> None:
    extra: dict[str, Any] = {"other": np.zeros((3, 3))} if name != "whatever" else {"ids": np.arange(11)}
    arrays: dict[str, Any] = {name: vectors(), "labels": np.arange(11) % 3, "keys": [f"k{i // 2}" for i in range(11)]}
    np.savez(tmp_path / "v.npz", **arrays, **extra)
    source = embeddings(tmp_path / "v.npz")
    np.testing.assert_array_equal(source.vectors, vectors())
    assert list(source.keys)[:4] == ["k0", "k0#2", "k1", "k1#2"]
    assert source.labels is not None
    assert source.labels.tolist() == [i % 3 for i in range(11)]
    assert source.select(np.array([4])).labels is not None


def test_npz_labels_of_other_kinds(tmp_path: Path) -> None:
    indicators = np.eye(3)[np.arange(11) % 3]
    np.savez(tmp_path / "v.npz", features=vectors(), labels=indicators, label_names=["x", "y", "z"])
    source = embeddings(tmp_path / "v.npz")
    assert source.labels is not None
    assert source.labels.dtype == np.uint8
    np.testing.assert_array_equal(source.labels, indicators)
    assert source.label_names == ["x", "y", "z"]


def test_labels_that_do_not_fit_are_ignored(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    np.savez(tmp_path / "v.npz", features=np.eye(2), labels=np.zeros(3))
    assert open_source(tmp_path / "v.npz").labels is None
    assert "has shape (3,); labels are (2,) classes" in caplog.text
    with pytest.raises(DataError, match=r"has shape \(3,\)"):
        open_source(tmp_path / "v.npz", label_column="labels")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"a": np.zeros((2, 2)), "b": np.zeros((2, 2))}, "has 2 candidate arrays of embeddings; name one 'features'"),
        ({"packed": np.zeros((2, 2), np.uint8)}, r"has 0 candidate arrays .* \(it holds: packed uint8 \(2, 2\)\)"),
        ({}, "it holds: nothing"),
        ({"features": np.zeros((2, 2)), "keys": np.array(["a"])}, "2 embeddings need 2 keys"),
        ({"features": np.array([[None, 1]], object)}, "is not a readable NumPy file .*without objects"),
    ],
)
def test_unusable_npz(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    np.savez(tmp_path / "v.npz", **arrays)
    with pytest.raises(DataError, match=message):
        open_source(tmp_path / "v.npz")


def test_damaged_files(tmp_path: Path) -> None:
    np.save(tmp_path / "whole.npy", vectors(1000))
    np.savez(tmp_path / "whole.npz", vectors(1000))
    for suffix in ("npy", "npz"):
        whole = (tmp_path / f"whole.{suffix}").read_bytes()
        for content in (whole[: len(whole) // 2], b"", b"nonsense" * 9, whole[:20]):
            (tmp_path / f"cut.{suffix}").write_bytes(content)
            with pytest.raises(DataError, match="is not a readable NumPy file"):
                open_source(tmp_path / f"cut.{suffix}")
    np.save(tmp_path / "objects.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(DataError, match="without objects"):
        open_source(tmp_path / "objects.npy")
    (tmp_path / "really.npy").write_bytes((tmp_path / "whole.npz").read_bytes())
    with pytest.raises(DataError, match="rename it to"):
        open_source(tmp_path / "really.npy")
    (tmp_path / "really.npz").write_bytes((tmp_path / "whole.npy").read_bytes())
    with pytest.raises(DataError, match="is not a readable NumPy file"):
        open_source(tmp_path / "really.npz")


@pytest.mark.parametrize("kind", [pa.list_(pa.float32()), pa.list_(pa.float16(), 5), pa.large_list(pa.float64())])
def test_parquet(tmp_path: Path, kind: Any) -> None:
    stored = vectors(dtype=str(kind.value_type).replace("halffloat", "float16").replace("double", "float64"))
    stored = stored.astype(kind.value_type.to_pandas_dtype())
    table = pa.table(
        {
            "id": [f"p{i}" for i in range(11)],
            "embedding": pa.array(list(stored), kind),
            "label": pa.array([i % 2 for i in range(11)]),
        }
    )
    pq.write_table(table, tmp_path / "v.parquet", row_group_size=4)
    source = embeddings(tmp_path / "v.parquet")
    assert source.vectors.dtype == stored.dtype
    np.testing.assert_array_equal(source.vectors, stored)
    assert list(source.keys) == [f"p{i}" for i in range(11)]
    assert source.labels is not None
    assert source.labels.tolist() == [i % 2 for i in range(11)]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[1.0, 2.0], [3.0]], "row 1 of the column 'v' holds 1 numbers, not 2"),
        ([[1.0, 2.0], [1.0, 2.0], None], "row 2 of the column 'v' is null"),
        ([None, [1.0]], "row 0 of the column 'v' is null"),
        ([[1.0], [None]], "1 of 2 rows hold NaN or infinity, the first is row 1"),
        ([[], []], "have no columns"),
        ([], "nothing usable, the table has no rows"),
    ],
)
def test_unusable_parquet(tmp_path: Path, rows: list[Any], message: str) -> None:
    pq.write_table(pa.table({"v": pa.array(rows, pa.list_(pa.float32()))}), tmp_path / "v.parquet", row_group_size=2)
    with pytest.raises(DataError, match=message):
        open_source(tmp_path / "v.parquet")


def test_parquet_columns(tmp_path: Path) -> None:
    floats = pa.array([[1.0], [2.0]], pa.list_(pa.float32()))
    pq.write_table(pa.table({"a": floats, "b": floats}), tmp_path / "two.parquet")
    with pytest.raises(DataError, match=r"several columns could hold the embeddings \(a, b\); name one 'embedding'"):
        open_source(tmp_path / "two.parquet")
    pq.write_table(pa.table({"a": floats, "features": floats, "id": ["x", "x"]}), tmp_path / "named.parquet")
    assert list(embeddings(tmp_path / "named.parquet").keys) == ["0", "1"]  # ids that repeat are no keys


def test_row_keys() -> None:
    keys = RowKeys("t/", range(3, 20, 2))
    assert list(keys) == [f"t/{i}" for i in range(3, 20, 2)]
    assert [keys[i] for i in range(len(keys))] == list(keys)
    assert keys[-1] == "t/19"
    assert list(keys[2:4]) == ["t/7", "t/9"]
    assert list(keys.take(np.array([4, 0]))) == ["t/11", "t/3"]
    assert list(keys.take(np.array([4, 0, 4])).take(np.array([2, 1]))) == ["t/11", "t/3"]
    assert "t/5" in keys
    assert "t/4" not in keys
    assert take_keys(["a", "b", "c"], np.array([2, 2])) == ["c", "c"]
    assert len(RowKeys("", range(10**12))) == 10**12


def test_unique_keys_avoid_names_already_taken() -> None:
    assert unique_keys(["a", "a#2", "a", "a", "b"]) == ["a", "a#2", "a#3", "a#4", "b"]
    assert unique_keys(["a", "a", "a#2"]) == ["a", "a#3", "a#2"]


@pytest.mark.parametrize("rows", [[4, 5, 6], [4], [4, 6], [5, 4], [1, 3, 2, 4], [1, 1], []])
def test_consecutive_rows_are_a_view(rows: list[int]) -> None:
    source = EmbeddingSource("x", vectors())
    part = source.select(np.array(rows, np.intp))
    np.testing.assert_array_equal(part.vectors, vectors()[rows])
    assert np.shares_memory(part.vectors, source.vectors) == (rows in ([4, 5, 6], [4]))


def test_class_labels() -> None:
    labels, names = class_labels(np.array(["dog", "cat", "dog"]), 3, "x")
    assert labels.tolist() == [1, 0, 1]
    assert names == ["cat", "dog"]
    assert class_labels(np.array([1.0, 2.0]), 2, "x")[0].dtype == np.int64
    for wrong in (np.array([1.5, 2]), np.array([np.nan, 2]), np.array([None, 1])):
        with pytest.raises(DataError, match="whole numbers"):
            class_labels(wrong, 2, "x")


def test_label_sets() -> None:
    assert label_sets([[0, 1], [1, 1]], "x").tolist() == [[0, 1], [1, 1]]
    assert label_sets([[2], [], [0, 2]], "x").tolist() == [[0, 0, 1], [0, 0, 0], [1, 0, 1]]
    assert label_sets([[0], [1]], "x").tolist() == [[1, 0], [0, 1]]  # one number each: classes, not indicators
    assert label_sets([[], []], "x").tolist() == [[0], [0]]
    for wrong in ([[-1], [2]], [[10**6], []]):
        with pytest.raises(DataError, match="number the classes from 0"):
            label_sets(wrong, "x")
