"""Several processes: readers beside a writer, writers taking turns, and a writer that is killed."""

import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distillhash import Codes
from distillhash.errors import DistillHashError
from distillhash.index import embedded, open_index

BATCH = 37

# Adds batches for ever and acknowledges each on stdout. Batch b holds items b*37 .. b*37+36, whose code is their id.
WRITER = """
import sys
import numpy as np
from distillhash import Codes
from distillhash.index import open_index

folder, batch, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
index = open_index(folder, n_bits=32, create=True)
while True:
    ids = np.arange(batch * size, (batch + 1) * size)
    index.add(Codes.from_packed(ids.astype(">u4").view(np.uint8).reshape(-1, 4), 32), ids=ids)
    print(batch, flush=True)
    batch += 1
"""


def start_writer(folder: Path, batch: int) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-c", WRITER, str(folder), str(batch), str(BATCH)]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)


def codes_of(ids: list[int]) -> Codes:
    return Codes.from_packed(np.array(ids, ">u4").view(np.uint8).reshape(-1, 4), 32)


def test_every_acknowledged_batch_survives_a_kill_and_none_is_half_there(tmp_path: Path) -> None:
    folder, batch = tmp_path / "index", 0
    for delay in (0.0, 0.03, 0.011, 0.05, 0.002):
        writer = start_writer(folder, batch)
        assert writer.stdout is not None
        acknowledged = [int(writer.stdout.readline())]
        time.sleep(delay)
        os.kill(writer.pid, signal.SIGKILL)
        acknowledged += [int(line) for line in writer.stdout.read().split()]
        writer.wait()
        with open_index(folder) as index:
            stored = len(index)
            assert stored % BATCH == 0
            assert stored // BATCH >= acknowledged[-1] + 1
            assert [item.code for item in index.get(list(range(stored)))] == [codes_of([i]) for i in range(stored)]
            assert index.search(codes_of([stored - 1]), k=1)[0] == [(stored - 1, 0)]
        batch = stored // BATCH


@pytest.mark.parametrize("kills", [25, pytest.param(2000, marks=pytest.mark.long)])
def test_a_writer_that_is_killed_at_any_moment(tmp_path: Path, kills: int) -> None:
    """Adds, replacements, removals, compactions and new cache files, with a reader beside; see ``killing.py``."""
    program = [sys.executable, str(Path(__file__).with_name("killing.py")), str(tmp_path / "index"), str(kills), "0"]
    result = subprocess.run(program, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"{kills} kills, ")
    assert int(re.findall(r"\d+ changes", result.stdout)[0].split()[0]) > kills // 5


def test_a_reader_sees_whole_batches_while_another_process_writes(tmp_path: Path) -> None:
    folder = tmp_path / "index"
    writer = start_writer(folder, 0)
    try:
        assert writer.stdout is not None
        sizes: list[int] = []
        for line in writer.stdout:
            with_acknowledged = (int(line) + 1) * BATCH
            if not sizes:
                reader = open_index(folder)
            everything = reader.range_search(codes_of([0]), radius=32)[0]
            sizes.append(len(everything))
            assert sizes[-1] % BATCH == 0
            assert sizes[-1] >= with_acknowledged
            assert sorted(identifier for identifier, _ in everything) == list(range(sizes[-1]))
            # The first search may come after many batches, whose lines then wait here: go on until it saw the writer move.
            if len(sizes) >= 8 and sizes[-1] > sizes[0]:
                break
        assert sizes == sorted(sizes)
    finally:
        writer.kill()
        writer.communicate()


def test_processes_that_make_and_fill_one_index_take_turns(tmp_path: Path) -> None:
    program = (
        "import sys; import numpy as np; from distillhash import Codes; from distillhash.index import open_index\n"
        "index = open_index(sys.argv[1], n_bits=32, create=True)\n"
        "print(*(int(i) for _ in range(20) for i in index.add(Codes.from_packed(np.zeros((3, 4), np.uint8), 32))))"
    )
    arguments = [sys.executable, "-c", program, str(tmp_path / "index")]
    writers = [subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    ids = [int(identifier) for writer in writers for identifier in writer.communicate(timeout=60)[0].split()]
    assert sorted(ids) == list(range(180))
    assert len(open_index(tmp_path / "index")) == 180


def test_a_writer_that_waits_too_long_says_so_and_search_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "_WAIT_SECONDS", 0.05)
    with open_index(tmp_path / "index", n_bits=32, create=True) as index:
        index.add(codes_of([1]))
        other = sqlite3.connect(tmp_path / "index" / "items.sqlite", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(DistillHashError, match="another process has been writing"):
            index.add(codes_of([2]))
        assert index.search(codes_of([1]), k=1)[0] == [(0, 0)]
        other.execute("ROLLBACK")
        assert index.add(codes_of([2])).tolist() == [1]
        other.close()


def test_a_full_disk_stores_nothing_of_the_batch(tmp_path: Path) -> None:
    with open_index(tmp_path / "index", n_bits=32, create=True) as index:
        index.add(codes_of([1]))
        inner: Any = index
        pages = inner._items._connection.execute("PRAGMA page_count").fetchone()[0]
        inner._items._connection.execute(f"PRAGMA max_page_count={pages + 2}")
        with pytest.raises(DistillHashError, match="full"):
            index.add(codes_of(list(range(5000))))
        assert len(index) == 1
        inner._items._connection.execute("PRAGMA max_page_count=1000000")
        assert index.add(codes_of([2])).tolist() == [1]
