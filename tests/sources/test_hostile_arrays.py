"""Damaged and hostile .npy and .npz files, and files of codes: one sentence each, and no memory."""

from __future__ import annotations

import io
import os
import struct
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distillhash.codes import Codes
from distillhash.errors import DataError, DistillHashError, FormatError
from distillhash.sources import EmbeddingSource, ImageSource, open_source

GOOD = "{'descr': '<f4', 'fortran_order': False, 'shape': (4, 4), }"


def npy(header: str, version: int = 1, data: bytes = bytes(64), length: int | None = None) -> bytes:
    text = header.encode()
    size = struct.pack("<H" if version == 1 else "<I", len(text) if length is None else length)
    return b"\x93NUMPY" + bytes([version, 0]) + size + text + data


HEADERS = {
    "a shape of exabytes": GOOD.replace("(4, 4)", "(1000000000000, 1000000)"),
    "a shape that overflows": GOOD.replace("(4, 4)", "(4611686018427387904, 4)"),
    "a shape of 5,000 digits": GOOD.replace("(4, 4)", f"({'9' * 5000}, 4)"),
    "a negative shape": GOOD.replace("(4, 4)", "(-1, 4)"),
    "two negative lengths": GOOD.replace("(4, 4)", "(-2, -2)"),
    "a fractional shape": GOOD.replace("(4, 4)", "(2.5, 4)"),
    "a shape that is text": GOOD.replace("(4, 4)", "'44'"),
    "no dimension": GOOD.replace("(4, 4)", "()"),
    "objects": GOOD.replace("<f4", "|O"),
    "a struct": GOOD.replace("'<f4'", "[('a', '<f4')]"),
    "complex numbers": GOOD.replace("<f4", "<c8"),
    "dates": GOOD.replace("<f4", "<M8[s]"),
    "no such type": GOOD.replace("<f4", "xx"),
    "nothing in each element": GOOD.replace("<f4", "|V0").replace("(4, 4)", "(4000000000000000000,)"),
    "brackets": "(" * 5000,
    "signs": "-" * 9000 + "1",
    "deep lists": GOOD.replace("(4, 4)", "[" * 500 + "]" * 500),
    "a name": "nan",
    "a call": "__import__('os').system('true')",
    "too long": GOOD.replace("}", " " * 20_000 + "}"),
}


@pytest.mark.parametrize("header", HEADERS)
@pytest.mark.parametrize("version", [1, 2, 3])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_headers(tmp_path: Path, header: str, version: int) -> None:
    content = npy(HEADERS[header], version)
    (tmp_path / "v.npy").write_bytes(content)
    with zipfile.ZipFile(tmp_path / "v.npz", "w") as archive:
        archive.writestr("features.npy", content)
    for name in ("v.npy", "v.npz"):
        with pytest.raises(DataError, match=name) as raised:
            open_source(tmp_path / name)
        assert "\n" not in str(raised.value) and len(str(raised.value)) < 1000


def test_good_headers_of_all_versions(tmp_path: Path) -> None:
    expected = np.arange(16, dtype=np.float32).reshape(4, 4)
    for version in (1, 2, 3):
        for header, array in ((GOOD, expected), (GOOD.replace("False", "True"), expected.T)):
            (tmp_path / "v.npy").write_bytes(npy(header, version, np.ascontiguousarray(expected).tobytes()))
            source = open_source(tmp_path / "v.npy")
            assert isinstance(source, EmbeddingSource)
            np.testing.assert_array_equal(source.vectors, array)


def test_a_header_length_that_lies(tmp_path: Path) -> None:
    for length in (0, 5, 2**16 - 1):
        (tmp_path / "v.npy").write_bytes(npy(GOOD, length=length))
        with pytest.raises(DataError, match="not a readable NumPy file"):
            open_source(tmp_path / "v.npy")
    (tmp_path / "v.npy").write_bytes(npy(GOOD, 3, length=2**32 - 1))
    with pytest.raises(DataError, match="not a readable NumPy file"):
        open_source(tmp_path / "v.npy")


def test_a_sparse_file_of_ten_terabytes(tmp_path: Path) -> None:
    with (tmp_path / "v.npy").open("wb") as file:
        file.write(npy(GOOD.replace("(4, 4)", "(2500000000000, 1)"), data=b""))
        file.truncate(file.tell() + 10**13)
    with pytest.raises(DataError, match="unpacks to 10,000,000,000,000 bytes, over 100 times"):
        open_source(tmp_path / "v.npy")


def bomb(size: int) -> bytes:
    """A member of an archive that unpacks to an array of ``size`` zero bytes."""
    return npy(GOOD.replace("<f4", "|u1").replace("(4, 4)", f"({size}, 1)"), data=bytes(size))


@pytest.mark.long
def test_archives_that_unpack_to_much(tmp_path: Path) -> None:
    data = bomb(1_200_000_000)
    with zipfile.ZipFile(tmp_path / "v.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("features.npy", npy(GOOD))
        archive.writestr("junk.npy", data)
        archive.writestr("packed.npy", data)
        archive.writestr(
            "n_bits.npy", npy("{'descr': '<i8', 'fortran_order': False, 'shape': (), }", data=b"\x08" + bytes(7))
        )
    assert len(open_source(tmp_path / "v.npz")) == 4  # what is not asked for is not unpacked
    with pytest.raises(DataError, match="unpacks to 1,200,000,"):
        open_source(tmp_path / "v.npz", embedding_column="junk")
    with pytest.raises(FormatError, match="unpacks to 1,200,000,"):
        Codes.load(tmp_path / "v.npz")


def test_archives_of_other_kinds(tmp_path: Path) -> None:
    good, path = npy(GOOD), tmp_path / "v.npz"

    def write(**members: bytes) -> bytearray:
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in members.items():
                archive.writestr(name, data)
        return bytearray(path.read_bytes())

    whole = write(**{"features.npy": good})
    central = whole.find(b"PK\x01\x02")
    changes: list[tuple[dict[int, int], str]] = [
        ({6: 1, central + 8: 1}, "encrypted"),
        ({8: 99, central + 10: 99}, "not supported"),
        ({central + 16: whole[central + 16] ^ 255}, "CRC"),
    ]
    for change, reason in changes:
        damaged = bytearray(whole)
        for place, byte in change.items():
            damaged[place] = byte
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=reason):
            open_source(path)
    write(**{"features.npy": b"text"})
    with pytest.raises(DataError, match="is no array"):
        open_source(path)
    write(**{"/etc/passwd.npy": good, "../up.npy": good})
    with pytest.raises(DataError, match="2 candidate arrays"):
        open_source(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("features.npy", good)
            archive.writestr("features.npy", npy(GOOD.replace("<f4", "|O")))
    with pytest.raises(DataError, match="Object arrays"):
        open_source(path)


def test_any_damage_is_one_error(tmp_path: Path) -> None:
    """Bytes changed at random: the array, or a sentence."""
    rng = np.random.default_rng(0)
    stream = io.BytesIO()
    np.savez(stream, features=np.ones((3, 4), np.float32), labels=np.arange(3), keys=["a", "b", "c"])
    wholes = {"v.npz": stream.getvalue(), "v.npy": npy(GOOD)}
    pq.write_table(
        pa.table({"embedding": [[1.0, 2.0]] * 9, "label": ["x"] * 9, "id": [f"{i}" for i in range(9)]}),
        tmp_path / "v.parquet",
    )
    wholes["v.parquet"] = (tmp_path / "v.parquet").read_bytes()
    rows = [{"bytes": bytes([row]) * 50, "path": f"{row}"} for row in range(9)]
    pq.write_table(pa.table({"image": rows}), tmp_path / "i.parquet")
    wholes["i.parquet"] = (tmp_path / "i.parquet").read_bytes()
    codes = Codes.from_signs(np.ones((3, 12)))
    for name in ("c.npz", "c.parquet"):
        codes.save(tmp_path / name, keys=["a", "b", "c"])
        wholes[name] = (tmp_path / name).read_bytes()
    n_errors = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(300):
            for name, whole in wholes.items():
                content = bytearray(whole)
                for place in rng.integers(0, len(content), rng.integers(1, 4)):
                    content[place] = rng.integers(0, 256)
                (tmp_path / name).write_bytes(
                    content[: rng.integers(1, len(content) + 1)] if rng.random() < 0.2 else content
                )
                try:
                    opened = Codes.load(tmp_path / name) if name[0] == "c" else open_source(tmp_path / name)
                    if isinstance(opened, ImageSource):
                        for row in range(min(9, len(opened))):
                            opened.read(row)
                except DistillHashError:
                    n_errors += 1
    assert n_errors > 100


PACKED = np.zeros((3, 2), np.uint8)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"n_bits": -5}, "-5 bits a code; there are 1 to 1,048,576"),
        ({"n_bits": 0}, "0 bits"),
        ({"n_bits": 2**62}, "4611686018427387904 bits"),
        ({"n_bits": 16.0}, "one integer, got float64"),
        ({"n_bits": True}, "one integer, got bool"),
        ({"n_bits": [16, 16]}, r"one integer, got int64 of shape \(2,\)"),
        ({"n_bits": "16"}, "one integer"),
        ({"n_bits": 24}, "24-bit codes take 3 bytes each, got 2"),
        ({"packed": PACKED + 1, "n_bits": 15}, "pad bits"),
        ({"packed": PACKED.astype(np.float32)}, "2-d uint8 array"),
        ({"packed": PACKED[None]}, "2-d uint8 array, got 3-d"),
        ({"packed": np.array([None, {}], object)}, "Object arrays"),
        ({"keys": [1, 2, 3]}, "strings as keys, got int64"),
        ({"keys": ["a"]}, r"strings as keys, got <U1 of shape \(1,\)"),
        ({"keys": [["a"], ["b"], ["c"]]}, "strings as keys"),
    ],
)
def test_files_of_codes(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    np.savez(tmp_path / "c.npz", **{"packed": PACKED, "n_bits": 16, **change})
    with pytest.raises(FormatError, match=reason):
        Codes.load(tmp_path / "c.npz")


@pytest.mark.parametrize(
    ("metadata", "columns"),
    [
        ({}, {"key": ["a"], "code": [b"12"]}),
        ({"distillhash.n_bits": "-1"}, {"key": ["a"], "code": [b"12"]}),
        ({"distillhash.n_bits": "9" * 5000}, {"key": ["a"], "code": [b"12"]}),
        ({"distillhash.n_bits": "16"}, {"key": ["a", "b"], "code": [b"1", b"123"]}),  # of the right length in all
        ({"distillhash.n_bits": "16"}, {"key": ["a", "b"], "code": [None, b"1234"]}),
        ({"distillhash.n_bits": "16"}, {"key": ["a"], "code": [12]}),
        ({"distillhash.n_bits": "16"}, {"key": ["a"], "code": ["12"]}),
        ({"distillhash.n_bits": "16"}, {"key": [b"a"], "code": [b"12"]}),
        ({"distillhash.n_bits": "16"}, {"key": [["a"]], "code": [b"12"]}),
        ({"distillhash.n_bits": "16"}, {"code": [b"12"]}),
    ],
)
def test_tables_of_codes(tmp_path: Path, metadata: dict[str, str], columns: dict[str, Any]) -> None:
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata), tmp_path / "c.parquet")
    with pytest.raises(FormatError, match="not a readable codes file"):
        Codes.load(tmp_path / "c.parquet")


def test_special_files_of_codes(tmp_path: Path) -> None:
    for name in ("pipe.npz", "pipe.parquet"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(FormatError, match="it is a pipe"):
            Codes.load(tmp_path / name)
    (tmp_path / "zero.npz").symlink_to("/dev/zero")
    with pytest.raises(FormatError, match="it is a device"):
        Codes.load(tmp_path / "zero.npz")
