"""The cache of features: full disks, damaged files, several processes."""

import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from distillhash.backbones import FeatureCache
from distillhash.errors import DistillHashError, FormatError


def test_damaged_and_unwritable_caches_are_explained(tmp_path: Path) -> None:
    FeatureCache(tmp_path / "cache").store("x", 8).close()
    (file,) = (tmp_path / "cache").glob("*.sqlite")
    file.write_bytes(b"rubbish" * 1000)
    with pytest.raises(FormatError, match=r"is damaged .* delete the file"):
        FeatureCache(tmp_path / "cache").store("x", 8)
    (tmp_path / "file").write_text("")
    with pytest.raises(DistillHashError, match="--cache DIR or --no-cache"):
        FeatureCache(tmp_path / "file" / "sub").store("x", 8)


def test_rows_of_another_width_are_refused(tmp_path: Path) -> None:
    store = FeatureCache(tmp_path).store("x", 8)
    store.put([b"digest"], np.zeros((1, 8), np.float32))
    store.close()
    store = FeatureCache(tmp_path).store("x", 9)
    with pytest.raises(FormatError, match="rows of another width; delete the file"):
        store.get([b"digest"])
    store.close()


def test_cache_folder_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTILLHASH_CACHE", str(tmp_path / "here"))
    assert FeatureCache().folder == tmp_path / "here"
    assert FeatureCache(tmp_path / "there").folder == tmp_path / "there"


def test_a_full_disk_is_explained(tmp_path: Path) -> None:
    store = FeatureCache(tmp_path).store("x", 1280)
    store._connection.execute("PRAGMA max_page_count = 4")  # SQLite's own way to be full
    rows = np.zeros((40, 1280), np.float32)
    with pytest.raises(DistillHashError, match=r"is full.*free space there, or choose --cache DIR"):
        store.put([number.to_bytes(16, "big") for number in range(40)], rows)
    assert not store.get([number.to_bytes(16, "big") for number in range(40)])  # all or nothing
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
