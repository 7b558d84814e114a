"""The mover, killed at every step it takes; and undo."""

import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from distillhash.dedup.journal import JOURNAL, Move
from distillhash.dedup.trash import move, undo
from distillhash.errors import DataError, DistillHashError
from trash_factory import TIME, check_restored, content, entries, homes, killed_at, make_files


def check_nothing_lost(contents: dict[Path, bytes], trash: Path) -> None:
    entries = homes(trash)
    for path, data in contents.items():
        places = [place for place in (path, entries.get(path)) if place is not None and place.exists()]
        assert places, f"{path} is in no place"
        assert all(place.read_bytes() == data for place in places)
    journalled = {place for place in entries.values() if place.exists()}
    assert {place for place in trash.rglob("*.jpg") if place.is_file()} <= journalled


# ruff: noqa: B023  # the child runs the function at once


@pytest.mark.parametrize("across_disks", [pytest.param(False, marks=pytest.mark.long), True])
def test_killed_at_any_step_nothing_is_lost(
    tmp_path: Path, across_disks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if across_disks:  # what a link to another disk answers
        real = os.link

        def link(source: Path, target: Path, **options: bool) -> None:
            if Path(source).suffix != ".part":
                raise OSError(18, "Invalid cross-device link")
            real(source, target, **options)

        monkeypatch.setattr(os, "link", link)
    step, steps = 1, 0
    while True:
        root, trash = tmp_path / f"photos{step}", tmp_path / f"photos{step}" / ".trash"
        moves, contents = make_files(root)
        if not killed_at(step, lambda: move(moves, trash, root)):
            break
        check_nothing_lost(contents, trash)
        if step % 2 and (trash / JOURNAL).exists():  # undo at once, or go on, be killed in the undo, and undo again
            undo(trash)
        else:
            move(moves, trash, root)
            check_nothing_lost(contents, trash)
            killed_at(1 + step // 2, lambda: undo(trash))
            check_nothing_lost(contents, trash)
            undo(trash)
        check_restored(contents, trash)
        step, steps = step + 1, steps + 1
    assert steps >= 4 * len(moves)  # the journal and folder, then a link and a removal a file at least
    check_nothing_lost(contents, trash)
    assert all(not Path(one.path).exists() for one in moves)


def test_killed_from_outside_while_it_runs(tmp_path: Path) -> None:
    root, trash = tmp_path / "photos", tmp_path / "photos" / ".trash"
    moves, contents = make_files(root, 400)
    code = (
        "import json, sys; from pathlib import Path; from distillhash.dedup.trash import Move, move\n"
        "moves = [Move(**one) for one in json.loads(sys.stdin.read())]\n"
        "print('ready', flush=True)\n"
        f"move(moves, Path({str(trash)!r}), Path({str(root)!r}))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(json.dumps([vars(one) for one in moves]))
    process.stdin.close()
    assert process.stdout.readline() == "ready\n"
    while not (trash / JOURNAL).exists() or (len(entries(trash)) < 20 and process.poll() is None):
        pass
    process.kill()
    process.wait()
    check_nothing_lost(contents, trash)
    undo(trash)
    check_restored(contents, trash)


def test_moves_and_brings_back(tmp_path: Path) -> None:
    moves, contents = make_files(tmp_path / "photos", 5)
    trash = tmp_path / "trash"
    outcome = move(moves, trash, tmp_path / "photos")
    assert outcome.done == [one.path for one in moves] and not outcome.left
    entry = entries(trash)[0]
    assert (entry["path"], entry["keeper"]) == ("folder0/copy0.jpg", "keeper.jpg")
    assert (entry["root"], entry["size"], entry["mtime_ns"]) == (str(tmp_path / "photos"), 300, TIME)
    assert len(undo(trash).done) == 5
    check_restored(contents, trash)
    assert move(moves, trash, None).done and undo(trash).done and not undo(trash).done
    check_restored(contents, trash)


def test_what_is_not_moved(tmp_path: Path) -> None:
    root, trash = tmp_path / "photos", tmp_path / "trash"
    moves, _ = make_files(root, 6)
    Path(moves[0].path).write_bytes(b"edited since")
    Path(moves[1].path).unlink()
    Path(moves[2].path).unlink()
    Path(moves[2].path).symlink_to(root / "keeper.jpg")
    outside = tmp_path / "elsewhere.jpg"
    outside.write_bytes(b"mine")
    moves += [
        Move(str(outside), content(b"mine"), moves[0].keeper, 0),
        Move(moves[3].path, moves[3].digest, str(root / "gone.jpg"), 0),
        Move(moves[4].path, moves[4].digest, moves[5].path, 0),
    ]
    left = dict(move(moves[:3] + moves[6:] + moves[5:6], trash, root).left)
    reasons = [left[one.path] for one in (*moves[:3], *moves[6:])]
    for reason, part in zip(
        reasons,
        ("changed", "cannot be read", "a link", "outside", "keeper is gone", "keeper is to be moved"),
        strict=True,
    ):
        assert part in reason
    assert outside.exists() and not Path(moves[5].path).exists()


def test_undo_overwrites_nothing(tmp_path: Path) -> None:
    moves, _ = make_files(tmp_path / "photos", 2)
    trash = tmp_path / "trash"
    move(moves, trash, None)
    Path(moves[0].path).write_bytes(b"a newer file")
    outcome = undo(trash)
    assert outcome.done == [moves[1].path] and outcome.left[0][0] == moves[0].path
    assert Path(moves[0].path).read_bytes() == b"a newer file"
    Path(moves[0].path).unlink()
    assert undo(trash).done == [moves[0].path]


def test_a_torn_line_was_never_a_move(tmp_path: Path) -> None:
    moves, contents = make_files(tmp_path / "photos", 4)
    trash = tmp_path / "trash"
    move(moves[:2], trash, None)
    with (trash / JOURNAL).open("ab") as file:
        file.write(b'{"path": "/half')
    assert len(entries(trash)) == 2
    move(moves[2:], trash, None)
    assert len(entries(trash)) == 4
    undo(trash)
    check_restored(contents, trash)


def test_an_absent_journal(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no journal"):
        undo(tmp_path)
    assert not list(tmp_path.iterdir())


def test_one_mover_at_a_time(tmp_path: Path) -> None:
    moves, _ = make_files(tmp_path / "photos", 1)
    (tmp_path / "trash").mkdir()
    with (tmp_path / "trash" / JOURNAL).open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(DistillHashError, match="another process"):
            move(moves, tmp_path / "trash", None)
        with pytest.raises(DistillHashError, match="another process"):
            undo(tmp_path / "trash")
    assert len(move(moves, tmp_path / "trash", None).done) == 1
