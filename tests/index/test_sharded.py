"""What only the sharded engine has: replicas, and changes of several shards that survive a crash as a whole."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distillhash import Codes
from distillhash.errors import DataError, DistillHashError, FormatError, ParameterError
from distillhash.index import open_index

CODES = Codes.from_packed(np.random.default_rng(0).integers(0, 256, (60, 2), np.uint8), 16)
KEYS = [f"k{row}" for row in range(60)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Sixty codes in three shards of two replicas."""
    with open_index(f"sharded://{tmp_path / 'index'}?shards=3&replicas=2", 16, create=True) as index:
        index.add(CODES, keys=KEYS)
    return tmp_path / "index"


def test_every_replica_holds_the_items_of_its_shard(folder: Path) -> None:
    plan = json.loads((folder / "shards.json").read_text())
    assert plan["shards"] == [[f"shard-{shard}/replica-{replica}" for replica in range(2)] for shard in range(3)]
    for shard, names in enumerate(plan["shards"]):
        for name in names:
            with open_index(folder / name) as part:
                assert part.present(range(60)) == set(range(shard, 60, 3))
                assert all(
                    item.code == CODES[item.id] and item.key == KEYS[item.id] for item in part.get(range(shard, 60, 3))
                )


@pytest.mark.parametrize("form", ["sharded://{}", "{}", "sharded://{}?shards=3", "sharded://{}?shards=3&replicas=2"])
def test_it_opens_by_its_folder(folder: Path, form: str) -> None:
    with open_index(form.format(folder)) as index:
        assert repr(index) == f"ShardedIndex({str(folder)!r}, shards=3, replicas=2, n_bits=16)"
        assert index.search(CODES[7:8], 1)[0][0][1] == 0


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        ("shards=4", ParameterError, "has 3 shards, not 4"),
        ("replicas=1", ParameterError, "has 2 replicas, not 1"),
        ("shards=0", ParameterError, r"shards must be an integer in 1\.\.1024, got '0'"),
        ("shard=3", ParameterError, "unknown option 'shard'"),
    ],
)
def test_wrong_options(folder: Path, options: str, error: type[DistillHashError], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        open_index(f"sharded://{folder}?{options}")


def test_a_lost_replica_is_passed_over_by_readers_and_stops_writers(folder: Path) -> None:
    with open_index(folder) as index:
        expected = index.search(CODES[:5], 7)
    for shard, replica in ((0, 1), (1, 0)):
        shutil.rmtree(folder / f"shard-{shard}/replica-{replica}")
    with open_index(folder) as index:
        for _ in range(4):  # readers take turns
            assert np.array_equal(index.search(CODES[:5], 7).ids, expected.ids)
            assert len(index) == 60 and len(index.range_search(CODES[:1], 16)[0]) == 60
        with pytest.raises(DataError, match=r"no index at .*shard-0/replica-1"):
            index.add(CODES[:3])
    shutil.copytree(folder / "shard-0/replica-0", folder / "shard-0/replica-1")  # the remedy: copy the other one
    shutil.copytree(folder / "shard-1/replica-1", folder / "shard-1/replica-0")
    with open_index(folder) as index:
        assert len(index) == 60
        assert index.add(CODES[:3]).tolist() == [60, 61, 62]
    shutil.rmtree(folder / "shard-2")
    with open_index(folder) as index, pytest.raises(DataError, match=r"no index at .*shard-2"):
        index.search(CODES[:1])


def test_replicas_may_be_moved_elsewhere(folder: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "other disk" / "a"
    elsewhere.parent.mkdir()
    shutil.move(folder / "shard-1/replica-1", elsewhere)
    plan = json.loads((folder / "shards.json").read_text())
    plan["shards"][1][1] = str(elsewhere)
    (folder / "shards.json").write_text(json.dumps(plan))
    with open_index(folder) as index:
        assert index.add(CODES[:3]).tolist() == [60, 61, 62]
    with open_index(elsewhere) as part:
        assert 61 in part.present([60, 61, 62])


@pytest.mark.parametrize(
    "damage", ["{", "[]", '{"shards": []}', '{"shards": [["a"], []]}', '{"shards": [["a"], ["a"]]}']
)
def test_a_damaged_plan_is_named(folder: Path, damage: str) -> None:
    (folder / "shards.json").write_text(damage)
    with pytest.raises(FormatError, match=r"shards.json is damaged"):
        open_index(folder)


# Dies where it is told to: after so many calls of a shard's add or remove.
VICTIM = """
import os, signal, sys
import numpy as np
from distillhash import Codes
from distillhash.index import open_index
from distillhash.index.embedded import EmbeddedIndex
folder, change, calls = sys.argv[1], sys.argv[2], int(sys.argv[3])
def dying(method):
    def call(*arguments, **options):
        global calls
        if calls == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        calls -= 1
        return method(*arguments, **options)
    return call
EmbeddedIndex.add, EmbeddedIndex.remove = dying(EmbeddedIndex.add), dying(EmbeddedIndex.remove)
with open_index(folder) as index:
    codes = Codes.from_packed(np.arange(18, dtype=np.uint8).reshape(9, 2), 16)
    index.add(codes, ids=range(54, 63), upsert=True) if change == "add" else index.remove(range(5, 12))
print("done")
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
@pytest.mark.parametrize(("change", "calls"), [("add", 0), ("add", 1), ("add", 4), ("remove", 0), ("remove", 3)])
def test_a_change_that_was_killed_half_way_is_finished_by_the_next_one(folder: Path, change: str, calls: int) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", VICTIM, folder, change, str(calls)], env=environment, capture_output=True
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    with open_index(folder) as index:
        if change == "add":
            assert len(index) == 63
            codes = Codes.from_packed(np.arange(18, dtype=np.uint8).reshape(9, 2), 16)
            assert [item.code for item in index.get(range(54, 63))] == [codes[row] for row in range(9)]
            assert [item.code for item in index.get(range(54))] == [CODES[row] for row in range(54)]
        else:
            assert index.present(range(60)) == {*range(5), *range(12, 60)}
        assert index.add(CODES[:1]).tolist() == [63 if change == "add" else 60]
    for names in json.loads((folder / "shards.json").read_text())["shards"]:
        held: list[Any] = []
        for name in names:
            with open_index(folder / name) as part:
                held.append(
                    [
                        (item.id, item.code.packed.tobytes(), item.key)
                        for item in part.get(sorted(part.present(range(70))))
                    ]
                )
        assert held[0] == held[1]


def test_a_reader_is_not_stopped_by_a_writer(folder: Path) -> None:
    from distillhash.index.shard_journal import Journal

    journal = Journal(folder, "normal")
    with journal.writing(), open_index(folder) as index:
        assert len(index) == 60
    journal.close()


def test_without_create_there_must_be_one(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no sharded index at"):
        open_index(f"sharded://{tmp_path}/none")
    with open_index(f"sharded://{tmp_path}/new", 8, create=True) as index:
        assert "shards=2, replicas=1" in repr(index)


def test_full_durability_reaches_the_shards(tmp_path: Path) -> None:
    index: Any = open_index(f"sharded://{tmp_path}/i", 8, create=True, durability="full")
    levels = [part._connection.execute("PRAGMA synchronous").fetchone()[0] for part in index._opened.values()]
    assert levels == [2, 2] and index._journal._journal.execute("PRAGMA synchronous").fetchone()[0] == 2
    index.close()
