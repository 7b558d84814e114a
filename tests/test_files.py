"""Whole writes, digests, the write-ahead log of SQLite files that several processes open at once, processors."""

import errno
import os
import socket
import sqlite3
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from distillhash.files import (
    cores,
    digest,
    open_regular,
    read_file,
    remove_partial,
    replacing,
    write_ahead,
    write_atomic,
)


def test_a_file_is_read_up_to_its_limit(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    (tmp_path / "link").symlink_to("file")
    assert read_file(tmp_path / "file", limit=5) == read_file(str(tmp_path / "link")) == b"12345"
    with pytest.raises(OSError, match="it has 5 bytes, over the limit of 4") as raised:
        read_file(tmp_path / "file", limit=4)
    assert raised.value.errno == errno.EFBIG
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(2**42)
    with pytest.raises(OSError, match=r"4,398,046,511,104 bytes"):
        read_file(tmp_path / "sparse")
    assert read_file("/proc/self/status").startswith(b"Name:") or not Path("/proc").exists()
    with pytest.raises(OSError, match="over the limit"):
        read_file("/proc/self/status", limit=10)


def test_what_is_no_regular_file_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    server = socket.socket(socket.AF_UNIX)
    server.bind(os.path.relpath(tmp_path / "socket"))
    (tmp_path / "linked").symlink_to(tmp_path / "pipe")
    for name, kind in (("pipe", "pipe"), ("linked", "pipe"), (".", "folder"), ("/dev/zero", "device")):
        with pytest.raises(OSError, match=f"it is a {kind}, not a regular file"):
            read_file(tmp_path / name)
    with pytest.raises(OSError, match=r"No such device|not a regular file"):
        read_file(tmp_path / "socket")
    with pytest.raises(OSError, match="null"):
        read_file("a\0b")
    server.close()


def test_links_are_refused_where_they_are_not_wanted(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"data")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "broken").symlink_to("nowhere")
    with open_regular(tmp_path / "file", follow_links=False) as file:
        assert file.read() == b"data"
    for name in ("link", "broken"):
        with pytest.raises(OSError, match="symbolic link") as raised:
            read_file(tmp_path / name, follow_links=False)
        assert raised.value.errno == errno.ELOOP


@pytest.mark.parametrize("durable", [False, True])
def test_a_write_is_whole_and_leaves_nothing_beside(tmp_path: Path, durable: bool) -> None:
    file = tmp_path / "new" / "folder" / "file.json"
    write_atomic(file, b"one", durable=durable)
    write_atomic(str(file), b"two", durable=durable)
    assert file.read_bytes() == b"two"
    assert [path.name for path in file.parent.iterdir()] == ["file.json"]


def test_a_write_has_the_permissions_of_any_other(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a", b"")
    (tmp_path / "b").write_bytes(b"")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    write_atomic(file, b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomic(file, b"new", durable=True)
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("file", b"old")]


def test_no_file_takes_the_place_of_a_device_or_a_pipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    (tmp_path / "stdout").symlink_to("file")
    (tmp_path / "file").write_bytes(b"old")
    monkeypatch.setattr("distillhash.files._in_system", lambda path: True)  # as /dev/stdout; never tried there
    for name in ("pipe", "link", "stdout"):
        with pytest.raises(OSError, match="it is a device or a pipe"):
            write_atomic(tmp_path / name, b"data")
    assert (tmp_path / "pipe").is_fifo() and (tmp_path / "stdout").is_symlink()
    assert (tmp_path / "file").read_bytes() == b"old"


def test_a_folder_of_that_name_is_refused_and_nothing_stays(tmp_path: Path) -> None:
    (tmp_path / "name").mkdir()
    with pytest.raises(OSError, match="name"):
        write_atomic(tmp_path / "name", b"data")
    assert [path.name for path in tmp_path.iterdir()] == ["name"]


def test_a_name_of_the_longest_length_can_be_written(tmp_path: Path) -> None:
    write_atomic(tmp_path / ("n" * 255), b"data")
    assert (tmp_path / ("n" * 255)).read_bytes() == b"data"


def test_threads_that_write_one_file_do_not_disturb_each_other(tmp_path: Path) -> None:
    contents = [bytes([number]) * 100_000 for number in range(8)]
    threads = [threading.Thread(target=write_atomic, args=(tmp_path / "file", data)) for data in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "file").read_bytes() in contents
    assert len(list(tmp_path.iterdir())) == 1


def test_digest() -> None:
    # RFC 7693's function with a 16-byte digest; the value for b"abc" is from `b2sum -l 128`.
    assert digest(b"abc").hex() == "cf4ab791c62b8d2b2109c90275287816"
    pixels = np.random.default_rng(0).integers(0, 256, (23, 37, 3)).astype(np.uint8)
    assert digest(pixels) == digest(pixels.copy()) == digest(np.asfortranarray(pixels))
    flat: NDArray[np.uint8] = pixels.reshape(-1, 1, 3)
    others: list[NDArray[Any]] = [pixels[::-1], flat, pixels.astype(np.int16), pixels.transpose(1, 0, 2)]
    assert len({digest(pixels), *(digest(other) for other in others)}) == 5
    assert digest(pixels.astype(">i4")) == digest(pixels.astype("<i4"))
    assert digest(np.zeros((0, 3))) != digest(np.zeros((3, 0)))


def test_it_waits_for_who_writes(tmp_path: Path) -> None:
    other = sqlite3.connect(tmp_path / "file", isolation_level=None, check_same_thread=False)
    other.execute("BEGIN EXCLUSIVE")
    connection = sqlite3.connect(tmp_path / "file", timeout=0)
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        write_ahead(connection, wait=0.05)
    timer = threading.Timer(0.2, other.execute, ["COMMIT"])
    timer.start()
    write_ahead(connection, wait=30)
    timer.join()
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_what_is_no_database_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"not a database" * 100)
    with pytest.raises(sqlite3.DatabaseError, match="not a database"):
        write_ahead(sqlite3.connect(tmp_path / "file"), wait=30)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system does not restrict processors")
def test_cores_are_those_the_process_may_use() -> None:
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)


def test_the_environment_can_lower_the_number_of_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    n = cores()
    for text, expected in {"1": 1, "0": 1, "999999": n, "": n, "-1": n, "two": n, "1.5": n}.items():
        monkeypatch.setenv("DISTILLHASH_CORES", text)
        assert cores() == expected


def test_a_file_that_is_replaced_is_the_old_or_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    with replacing(path) as temporary:
        temporary.write_bytes(b"one")
        assert not path.exists()
    with pytest.raises(KeyError), replacing(path) as temporary:
        temporary.write_bytes(b"two")
        raise KeyError
    assert path.read_bytes() == b"one" and list(path.parent.iterdir()) == [path]
    left = path.with_name(f".{'0a' * 8}.partial")  # as a kill leaves it
    other = path.with_name(".other.partial")
    for one in (left, other):
        one.touch()
    remove_partial(path.parent)
    assert sorted(path.parent.iterdir()) == [other, path]
