"""The cache of features: full disks, damaged files, several processes."""

import os
import sqlite3
import subprocess
import sys
import textwrap
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest

from distillhash.backbones import FeatureCache


def keys(n: int) -> list[bytes]:
    return [number.to_bytes(16, "big") for number in range(n)]


@pytest.mark.parametrize(
    "fault", ["damaged", "empty folder", "parent is a file", "other table", "damaged schema", "no permission"]
)
def test_a_cache_that_cannot_be_used_is_done_without(
    fault: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / fault
    FeatureCache(folder).store("x", 8).close()
    (file,) = folder.glob("*.sqlite")
    if fault == "damaged":
        file.write_bytes(b"rubbish" * 1000)
    elif fault == "empty folder":
        file.unlink()
        file.mkdir()
    elif fault == "parent is a file":
        folder = file / "sub"
    elif fault == "other table":
        with sqlite3.connect(file) as connection:
            connection.executescript("DROP TABLE features; CREATE TABLE features (digest INTEGER)")
    elif fault == "damaged schema":
        with sqlite3.connect(file) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        data = file.read_bytes().replace(b"CREATE TABLE features", b"CREATE TABLE \xff\xfeatures")
        file.write_bytes(data)
    else:
        monkeypatch.setattr(sqlite3, "connect", Mock(side_effect=sqlite3.OperationalError("unable to open")))
    for _ in range(2):
        store = FeatureCache(folder).store("x", 8)
        store.put(keys(3), np.ones((3, 8), np.float32))
        assert store.get(keys(3)) == {}
        store.close()
    (said,) = [record.getMessage() for record in caplog.records]
    assert str(folder) in said and "features are not kept" in said and "--cache DIR or --no-cache" in said


def test_damaged_rows_are_computed_anew(tmp_path: Path) -> None:
    store = FeatureCache(tmp_path).store("x", 8)
    store.put(keys(4), np.ones((4, 8), np.float32))
    store.close()
    (file,) = tmp_path.glob("*.sqlite")
    with sqlite3.connect(file) as connection:
        connection.execute("UPDATE features SET row = 'text' WHERE digest = ?", keys(4)[:1])
        connection.execute("UPDATE features SET row = x'00' WHERE digest = ?", keys(4)[1:2])
        connection.execute("UPDATE features SET row = 3 WHERE digest = ?", keys(4)[2:3])
    store = FeatureCache(tmp_path).store("x", 8)
    assert list(store.get(keys(4))) == keys(4)[3:]
    store.put(keys(4), np.zeros((4, 8), np.float32))
    assert len(store.get(keys(4))) == 4
    store.close()
    other = FeatureCache(tmp_path).store("x", 9)
    assert other.get(keys(4)) == {}  # of another width
    other.close()


def test_a_user_without_a_home_keeps_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DISTILLHASH_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 4_000_000)  # pwd knows no such user
    cache = FeatureCache()
    assert cache.folder is None
    store = cache.store("x", 8)
    store.put(keys(1), np.ones((1, 8), np.float32))
    assert store.get(keys(1)) == {}
    store.close()


def test_cache_folder_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTILLHASH_CACHE", str(tmp_path / "here"))
    assert FeatureCache().folder == tmp_path / "here"
    assert FeatureCache(tmp_path / "there").folder == tmp_path / "there"


def test_a_full_disk_keeps_what_there_is(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = FeatureCache(tmp_path).store("x", 1280)
    store.put(keys(1), np.ones((1, 1280), np.float32))
    assert store._connection is not None
    store._connection.execute("PRAGMA max_page_count = 6")  # SQLite's own way to be full
    for _ in range(2):
        store.put(keys(40), np.zeros((40, 1280), np.float32))
    found = store.get(keys(40))
    assert list(found) == keys(1) and found[keys(1)[0]].all()  # all or nothing, and what was there stays
    (said,) = [record.getMessage() for record in caplog.records]
    assert "is full" in said
    store.close()


def test_processes_share_a_cache(tmp_path: Path) -> None:
    script = textwrap.dedent(
        """
        import sys, numpy as np
        from distillhash.backbones.cache import FeatureCache
        number = int(sys.argv[2])
        sys.stdin.readline()
        for round in range(20):
            store = FeatureCache(sys.argv[1]).store("shared", 8)
            ids = [round * 100 + i + (50 if number else 0) for i in range(100)]  # half of them the other's too
            store.put([i.to_bytes(16, "big") for i in ids], np.repeat(np.float32(ids)[:, None], 8, axis=1))
            store.close()
        """
    )
    started = [
        subprocess.Popen([sys.executable, "-c", script, str(tmp_path), str(number)], stdin=subprocess.PIPE, text=True)
        for number in (0, 1)
    ]
    for process in started:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.close()
    assert [process.wait() for process in started] == [0, 0]
    store = FeatureCache(tmp_path).store("shared", 8)
    found = store.get([i.to_bytes(16, "big") for i in range(2050)])
    assert len(found) == 2050
    assert all((row == int.from_bytes(key, "big")).all() for key, row in found.items())
    store.close()
