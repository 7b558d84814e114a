from __future__ import annotations

import functools
import hashlib
import http.server
import io
import pickle
import shutil
import socket
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

import image_factory as factory
from distillhash.errors import DataError, FormatError
from distillhash.sources import ImageSource, Source, cifar10
from distillhash.sources.cifar10 import open_cifar10
from distillhash.sources.download import download

ROWS = 3  # a batch of the miniature; 10,000 in the real one
BATCHES = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]


def stored_batch(number: int) -> tuple[NDArray[np.uint8], list[int]]:
    rng = np.random.default_rng(number)
    return rng.integers(0, 256, (ROWS, 3072), dtype=np.uint8), rng.integers(0, 10, ROWS).tolist()


def python_files(protocol: int = 2) -> dict[str, bytes]:
    files = {}
    for number, batch in enumerate(BATCHES):
        data, labels = stored_batch(number)
        content = {b"batch_label": b"x", b"labels": labels, b"data": data, b"filenames": [b"a.png"] * ROWS}
        files[batch] = pickle.dumps(content, protocol)
    return files


def binary_files() -> dict[str, bytes]:
    files = {}
    for number, batch in enumerate(BATCHES):
        data, labels = stored_batch(number)
        files[f"{batch}.bin"] = b"".join(
            bytes([label]) + row.tobytes() for label, row in zip(labels, data, strict=True)
        )
    return files


def plant(folder: Path, files: dict[str, bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)


def archive(path: Path, top: str, files: dict[str, bytes]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as tar:
        for name, content in {"readme.html": b"hello", **files}.items():
            info = tarfile.TarInfo(f"{top}/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return hashlib.md5(path.read_bytes()).hexdigest()


def open_mini(folder: Path, **constants: Any) -> Source:
    """What the folder holds, with batches of ``ROWS`` images and other published values."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"BATCH_ROWS": ROWS, **constants}.items():
            patch.setattr(cifar10, name, value)
        return open_cifar10(folder, "c")


def check(source: Source) -> None:
    """Every image and label, computed from the stored bytes one value at a time."""
    assert isinstance(source, ImageSource)
    assert list(source.keys) == [f"train/{i}" for i in range(5 * ROWS)] + [f"test/{i}" for i in range(ROWS)]
    assert source.labels is not None
    assert source.label_names is not None
    assert source.label_names[:2] == ("airplane", "automobile")
    for number in range(6):
        data, labels = stored_batch(number)
        for row in range(ROWS):
            item = number * ROWS + row
            assert source.labels[item] == labels[row]
            pixels = source.read(item)
            assert isinstance(pixels, np.ndarray)
            assert pixels.flags.c_contiguous
            for y, x, channel in [(0, 0, 0), (0, 31, 1), (31, 0, 2), (17, 5, 1)]:
                assert pixels[y, x, channel] == data[row, 1024 * channel + 32 * y + x]
    assert source.splits["train"].tolist() == list(range(5 * ROWS))
    assert source.splits["test"].tolist() == list(range(5 * ROWS, 6 * ROWS))


def test_the_official_constants() -> None:
    """As published on https://www.cs.toronto.edu/~kriz/cifar.html."""
    assert cifar10.URL == "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
    assert cifar10.PYTHON_MD5 == "c58f30108f718f92721af3b95e74349a"
    assert cifar10.BINARY_MD5 == "c32a1d4ab5d03f1284b67883e8d87530"
    assert cifar10.BATCH_ROWS == 10_000


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_python_folder(tmp_path: Path, protocol: int) -> None:
    plant(tmp_path / "cifar-10-batches-py", python_files(protocol))
    check(open_mini(tmp_path))
    check(open_mini(tmp_path / "cifar-10-batches-py"))


def test_a_pickle_as_python_2_wrote_it(tmp_path: Path) -> None:
    """Strings as 8-bit str and NumPy's old module path, like the official batches."""
    files = python_files(2)
    for name in files:
        number = BATCHES.index(name)
        data, labels = stored_batch(number)
        raw = data.tobytes()
        ints = b"".join(b"K" + bytes([label]) for label in labels)
        array = (
            b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85U\x01b\x87R"
            b"(K\x01K"
            + bytes([ROWS])
            + b"M\x00\x0c\x86cnumpy\ndtype\nU\x02u1K\0K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb"
            b"\x89T" + len(raw).to_bytes(4, "little") + raw + b"tb"
        )
        files[name] = b"\x80\x02}(U\x04data" + array + b"U\x06labels](" + ints + b"eu."
    plant(tmp_path, files)
    check(open_mini(tmp_path))


def test_binary_folder(tmp_path: Path) -> None:
    plant(tmp_path / "cifar-10-batches-bin", binary_files())
    check(open_mini(tmp_path))


def test_archives(tmp_path: Path) -> None:
    md5 = archive(tmp_path / "p" / "cifar-10-python.tar.gz", "cifar-10-batches-py", python_files())
    check(open_mini(tmp_path / "p", PYTHON_MD5=md5))
    md5 = archive(tmp_path / "b" / "cifar-10-binary.tar.gz", "cifar-10-batches-bin", binary_files())
    check(open_mini(tmp_path / "b", BINARY_MD5=md5))
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == [
        "cifar-10-binary.tar.gz",
        "cifar-10-python.tar.gz",
    ]


def test_parquet(tmp_path: Path) -> None:
    for split, n in (("train", 5), ("test", 2)):
        structs = [
            {"bytes": factory.make_png(seed=seed + (split == "test") * 5), "path": f"{seed}.png"} for seed in range(n)
        ]
        pq.write_table(pa.table({"img": structs, "label": list(range(n))}), tmp_path / f"{split}.parquet")
    source = open_cifar10(tmp_path, "c")
    assert isinstance(source, ImageSource)
    assert list(source.keys) == ["train/0", "train/1", "train/2", "train/3", "train/4", "test/0", "test/1"]
    assert source.read(6) == factory.make_png(seed=6)
    assert source.splits["test"].tolist() == [5, 6]
    assert source.label_names is not None
    assert source.label_names[9] == "truck"
    (tmp_path / "test.parquet").unlink()
    with pytest.raises(FormatError, match=r"test.parquet is missing beside the other split"):
        open_cifar10(tmp_path, "c")


def test_a_pickle_cannot_run_code(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "ran",))

    files = python_files()
    files["data_batch_2"] = pickle.dumps({b"data": Evil(), b"labels": [0]})
    plant(tmp_path / "cifar-10-batches-py", files)
    with pytest.raises(
        FormatError, match=r"the batch data_batch_2 is not the expected dictionary of arrays \(UnpicklingError: pathlib"
    ):
        open_mini(tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("data_batch_3", None, "the batch data_batch_3 cannot be read from .* \\(No such file"),
        ("data_batch_1", b"", "data_batch_1 is not the expected dictionary"),
        ("test_batch", pickle.dumps([1, 2]), "test_batch is not the expected dictionary"),
        (
            "test_batch",
            pickle.dumps({b"data": np.zeros((3, 9), np.uint8), b"labels": [1] * 3}),
            "pixels of another kind",
        ),
        (
            "test_batch",
            pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [1] * 2}),
            "holds 2 images and 2 labels, expected 3",
        ),
        (
            "test_batch",
            pickle.dumps({b"data": np.zeros((3, 3072), np.uint8), b"labels": [1] * 2}),
            "3 images and 2 labels",
        ),
        (
            "test_batch",
            pickle.dumps({b"data": np.zeros((3, 3072), np.uint8), b"labels": [1, 2, 10]}),
            "labels 0 to 9; get the data again",
        ),
    ],
)
def test_damaged_python_batches(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    files = python_files()
    if content is None:
        del files[name]
    else:
        files[name] = content
    plant(tmp_path / "cifar-10-batches-py", files)
    with pytest.raises(FormatError, match=message):
        open_mini(tmp_path)


def test_damaged_binary_batches(tmp_path: Path) -> None:
    files = binary_files()
    for content, message in (
        (files["test_batch.bin"][:-1], "has 9218 bytes, not a multiple of 3073"),
        (b"", "holds 0 images"),
    ):
        plant(tmp_path / "cifar-10-batches-bin", {**files, "test_batch.bin": content})
        with pytest.raises(FormatError, match=message):
            open_mini(tmp_path)


def test_damaged_archives(tmp_path: Path) -> None:
    path = tmp_path / "cifar-10-python.tar.gz"
    archive(path, "cifar-10-batches-py", python_files())
    with pytest.raises(
        FormatError, match=r"has MD5 .*, expected c58f30108f718f92721af3b95e74349a: it is cut short or another file"
    ):
        open_mini(tmp_path)
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"nonsense" * 100, whole[:50] + b"\xff" * 50 + whole[100:]):
        path.write_bytes(content)
        with pytest.raises(FormatError, match="is a damaged archive"):
            open_mini(tmp_path, PYTHON_MD5=hashlib.md5(content).hexdigest())
    files = python_files()
    del files["data_batch_5"]
    md5 = archive(path, "cifar-10-batches-py", files)
    with pytest.raises(
        FormatError, match=r"the batch data_batch_5 is not in .*cifar-10-python.tar.gz; get the data again from https"
    ):
        open_mini(tmp_path, PYTHON_MD5=md5)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Path]]:
    """A web server on this machine: its address, and the folder it serves."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    folder = tmp_path / "served"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_port}", folder
        httpd.shutdown()


def test_download(tmp_path: Path, server: tuple[str, Path]) -> None:
    url, served = server
    md5 = archive(served / "cifar-10-python.tar.gz", "cifar-10-batches-py", python_files())
    mini: dict[str, Any] = {"URL": f"{url}/cifar-10-python.tar.gz", "PYTHON_MD5": md5}
    check(open_mini(tmp_path / "new" / "folder", **mini))
    assert [path.name for path in (tmp_path / "new" / "folder").iterdir()] == ["cifar-10-python.tar.gz"]
    (served / "cifar-10-python.tar.gz").unlink()
    check(open_mini(tmp_path / "new" / "folder", **mini))  # nothing is fetched twice


def test_downloads_that_fail_leave_nothing(tmp_path: Path, server: tuple[str, Path]) -> None:
    url, served = server
    (served / "a.bin").write_bytes(b"content")
    good = hashlib.md5(b"content").hexdigest()
    target = tmp_path / "to" / "a.bin"
    with pytest.raises(
        DataError, match=r"none.bin cannot be downloaded \(.*404.*\); fetch it elsewhere and put it at .*a.bin"
    ):
        download(f"{url}/none.bin", target, algorithm="md5", checksum=good)
    assert not target.parent.exists()
    with pytest.raises(FormatError, match=f"has MD5 {good}, expected {'0' * 32}"):
        download(f"{url}/a.bin", target, algorithm="md5", checksum="0" * 32)
    assert list(target.parent.iterdir()) == []
    download(f"{url}/a.bin", target, algorithm="md5", checksum=good)
    assert target.read_bytes() == b"content"


def test_a_connection_that_breaks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    listener = socket.create_server(("127.0.0.1", 0))

    monkeypatch.setattr("distillhash.sources.download._WAITS", (0.0, 0.0))
    asked: list[bytes] = []

    def answer() -> None:
        for _ in range(3):
            connection, _ = listener.accept()
            asked.append(connection.recv(1000))
            connection.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: 100\r\n\r\nonly this")
            connection.close()

    threading.Thread(target=answer, daemon=True).start()
    with pytest.raises(DataError, match=r"cannot be downloaded \(the connection ended 91 bytes too early\); fetch it"):
        download(
            f"http://127.0.0.1:{listener.getsockname()[1]}/a",
            tmp_path / "a",
            algorithm="md5",
            checksum=hashlib.md5(b"x").hexdigest(),
        )
    listener.close()
    assert list(tmp_path.iterdir()) == []
    assert [b"Range: bytes=9-" in request for request in asked] == [False, True, True]


@pytest.mark.parametrize("ranges", [True, False])
def test_a_download_goes_on_where_it_stopped(ranges: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server hangs up after a third, twice; it sends what was asked for, or, where it knows no ranges, everything again."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr("distillhash.sources.download._WAITS", (0.0, 0.0, 0.0))
    content, starts = np.random.default_rng(0).bytes(3_000_000), list[int]()

    class Breaking(http.server.BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

        def do_GET(self) -> None:
            start = int(self.headers.get("Range", "bytes=0-")[6:-1]) if ranges else 0
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            starts.append(start)
            self.wfile.write(content[start:] if len(starts) == 3 else content[start : start + 1_000_000])

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Breaking) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True, args=(0.01,)).start()
        url, target = f"http://127.0.0.1:{httpd.server_port}/a", tmp_path / "a"
        download(url, target, algorithm="sha256", checksum=hashlib.sha256(content).hexdigest())
        assert target.read_bytes() == content and [path.name for path in tmp_path.iterdir()] == ["a"]
        assert starts == ([0, 1_000_000, 2_000_000] if ranges else [0, 0, 0])
        httpd.shutdown()


def test_a_disk_that_is_full(tmp_path: Path, server: tuple[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    resource = pytest.importorskip("resource")  # not on Windows
    url, served = server
    (served / "a.bin").write_bytes(bytes(300_000))
    limits, target = resource.getrlimit(resource.RLIMIT_FSIZE), tmp_path / "to" / "a.bin"
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # the file cannot grow beyond that
    try:
        with pytest.raises(DataError, match=r"a.bin cannot be written \(File too large\); give it room and permission"):
            download(f"{url}/a.bin", target, algorithm="md5", checksum="")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(target.parent.iterdir()) == []
    usage = shutil.disk_usage(tmp_path)._replace(free=299_999)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(DataError, match=r"cannot be written \(300,000 bytes are needed, 299,999 are free\)"):
        download(f"{url}/a.bin", target, algorithm="md5", checksum="")


def test_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(
        DataError,
        match=r"cannot be downloaded \(.*refused\); fetch it elsewhere and put it at .*cifar-10-python.tar.gz",
    ):
        open_mini(tmp_path / "none", URL=f"http://127.0.0.1:{port}/x.tar.gz")
    assert not (tmp_path / "none").exists()
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="is a file; give the folder"):
        open_cifar10(tmp_path / "file", "c")


def test_the_unpickler_does_not_touch_deprecated_numpy(tmp_path: Path) -> None:
    plant(tmp_path, python_files())
    code = "import pathlib, sys, distillhash.sources.cifar10 as c; c.BATCH_ROWS = 3; c.open_cifar10(pathlib.Path(sys.argv[1]), '')"
    subprocess.run([sys.executable, "-W", "error", "-c", code, str(tmp_path)], check=True, timeout=60)
