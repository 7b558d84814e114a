"""Trashes from strangers: nothing outside of the collection is read into it, written, planted or deleted."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distillhash.dedup.journal import JOURNAL
from distillhash.dedup.trash import FOLDER_NAME, Outcome, move, undo
from distillhash.errors import DataError, DistillHashError
from trash_factory import TIME, content, entries, make_files, make_trash, old_line, snapshot, write


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """Files of the user, beside the album."""
    for name in ("thesis.txt", "thesis.txt.part", "keys/id", "log"):
        write(tmp_path / "home" / name, b"precious\nlines\nwithout end")
    return tmp_path / "home"


@pytest.fixture
def album(tmp_path: Path) -> Path:
    """A folder from somebody else."""
    write(tmp_path / "album" / "a.jpg", b"a")
    write(tmp_path / "album" / "b.jpg", b"b")
    return tmp_path / "album"


def new_line(path: str, place: str, data: bytes, **extra: object) -> dict[str, object]:
    return old_line(path, "a.jpg", place, data) | {"root": "/", "up": 1} | extra


def work_through(album: Path, named: bool) -> list[str]:
    """Apply and undo, with and without the name of the collection, on a trash as a stranger left it; what they answer."""
    trash = album / FOLDER_NAME
    said = []
    extra, _ = make_files(album / "new", 1)
    works: list[Callable[[], Outcome]]
    works = [lambda: move(extra, trash, album), lambda: undo(trash, album if named else None)]
    for work in works:
        try:
            outcome = work()
        except DistillHashError as error:
            said.append(str(error))
        else:
            said += [reason for _, reason in outcome.left]
    return said


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def linked_batch(album: Path, mine: Path) -> None:
    data, places = (mine / "thesis.txt").read_bytes(), (mine / "thesis.txt", album / "copy.txt")
    lines = [old_line(path, album / "a.jpg", "0001/thesis.txt", data) for path in places]
    make_trash(album / FOLDER_NAME, *lines)
    (album / FOLDER_NAME / "0001").rmdir()
    (album / FOLDER_NAME / "0001").symlink_to(mine)


def linked_trash(album: Path, mine: Path) -> None:
    (mine / "0001").symlink_to(".")
    (album / FOLDER_NAME).symlink_to(mine)
    line = old_line(album / "c.txt", album / "a.jpg", "0001/thesis.txt", b"precious\nlines\nwithout end")
    (mine / JOURNAL).write_bytes(json.dumps(line).encode() + b"\nrest")


def linked_journal(album: Path, mine: Path) -> None:
    make_trash(album / FOLDER_NAME)
    (album / FOLDER_NAME / JOURNAL).unlink()
    (album / FOLDER_NAME / JOURNAL).symlink_to(mine / "log")


def journal_with_two_names(album: Path, mine: Path) -> None:
    make_trash(album / FOLDER_NAME)
    (album / FOLDER_NAME / JOURNAL).unlink()
    (album / FOLDER_NAME / JOURNAL).hardlink_to(mine / "log")


def journal_that_is_a_pipe(album: Path, mine: Path) -> None:
    make_trash(album / FOLDER_NAME)
    (album / FOLDER_NAME / JOURNAL).unlink()
    os.mkfifo(album / FOLDER_NAME / JOURNAL)


def linked_file(album: Path, mine: Path) -> None:
    data = (mine / "thesis.txt").read_bytes()
    make_trash(album / FOLDER_NAME, old_line(album / "c.jpg", album / "a.jpg", "0001/c.jpg", data))
    (album / FOLDER_NAME / "0001" / "c.jpg").symlink_to(mine / "thesis.txt")


def pipe_and_device(album: Path, mine: Path) -> None:
    lines = [old_line(album / name, album / "a.jpg", f"0001/{name}", b"") for name in ("pipe", "zero")]
    make_trash(album / FOLDER_NAME, *lines)
    os.mkfifo(album / FOLDER_NAME / "0001" / "pipe")
    (album / FOLDER_NAME / "0001" / "zero").symlink_to("/dev/zero")


def fill(trash: Path, lines: list[dict[str, object]]) -> None:
    """A file of its own for every line."""
    make_trash(trash, *(line | {"trash": f"0001/x{number}"} for number, line in enumerate(lines)))
    for number in range(len(lines)):
        write(trash / "0001" / f"x{number}", b"evil")


def planted(album: Path, mine: Path) -> None:
    """Absolute places of all spellings; relative ones of collections that are not this one."""
    x, trash = b"evil", album / FOLDER_NAME
    paths = [
        mine / "keys2",
        mine / "new" / "deep" / "file",
        f"{album}/../home/dots",
        f"/../{mine}/slashes",
        f"/{mine}/two",
    ]
    lines = [old_line(path, path, "", x) for path in paths] + [old_line(mine / "kept", album / "a.jpg", "", x)]
    lines += [
        new_line(path, "", x) for path in ("../home/up", "home/../../home/up", "/etc/distillhash-test", f"{mine}/y")
    ]
    lines += [new_line("home/levels", "", x, up=levels) for levels in (2, 3, 50)]
    lines += [new_line("rooted", "", x, root=str(mine), up=None, seal=seal) for seal in (None, "0" * 64, "")]
    lines += [new_line("b.jpg", "", x), new_line(".distillhash-trash/0001/planted", "", x)]
    fill(trash, lines)


def through_a_link(album: Path, mine: Path) -> None:
    (album / "sub").symlink_to(mine)
    (album / "loop").symlink_to("loop")
    (album / "dangling").symlink_to(mine / "made")
    paths = ["sub/file", "sub/keys/file", "sub/new/file", "loop/file", "dangling/file", "dangling"]
    lines = [new_line(path, "", b"evil") for path in paths]
    fill(album / FOLDER_NAME, lines + [old_line(album / path, "k", "", b"evil") for path in paths])


def two_names_of_one_file(album: Path, mine: Path) -> None:
    """The journal calls a file of the trash its own home: cleaning up would delete the only copy."""
    x, trash = b"only copy", album / FOLDER_NAME
    (album / "way").symlink_to(FOLDER_NAME)
    places = [trash / "0001" / "x", album / "way" / "0001" / "x", f"{trash}/0001/./x", f"{album}/way/0001/../0001/x"]
    lines = [old_line(place, album / "a.jpg", "0001/x", x) for place in places]
    lines += [new_line(f"{FOLDER_NAME}/0001/x", "0001/x", x), new_line("way/0001/x", "0001/x", x)]
    make_trash(trash, *lines, x=x)


@pytest.mark.parametrize(
    "attack",
    [linked_batch, linked_trash, linked_journal, journal_with_two_names, journal_that_is_a_pipe, linked_file, pipe_and_device,
     planted, through_a_link, two_names_of_one_file],
)  # fmt: skip
@pytest.mark.parametrize("relative", [True, False])
@pytest.mark.parametrize("named", [True, False])
def test_nothing_of_mine_changes(
    album: Path,
    mine: Path,
    attack: Callable[[Path, Path], None],
    named: bool,
    relative: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    attack(album, mine)
    before, etc, ours = everything(mine), set(Path("/etc").iterdir()), everything(album)
    n_evil = list(ours.values()).count(b"evil")
    monkeypatch.chdir(album)
    said = work_through(Path() if relative else album, named)
    assert len(said) >= (n_evil if attack is not planted else 1)
    assert everything(mine) == before and set(Path("/etc").iterdir()) == etc
    assert not (mine / "new").exists() and not (mine / "made").exists()
    now = everything(album)
    assert attack is planted or list(now.values()).count(b"evil") == n_evil
    assert {data for name, data in ours.items() if JOURNAL not in name} <= set(now.values())
    inside = [name for name, data in now.items() if data == b"evil" and not name.startswith(FOLDER_NAME)]
    # What was meant for a collection that is not there may come back to this one, which holds its keeper.
    assert set(inside) <= ({"home/levels", "rooted"} if attack is planted and named else set())


def test_a_stranger_cannot_write_a_seal(album: Path, mine: Path) -> None:
    """Of a trash outside of a collection only what this user wrote is believed, and only as it was written."""
    make_files(album / "c", 1)
    moves, _ = make_files(album / "c", 1)
    trash = album / "bin"
    assert move(moves, trash, None).done
    line = entries(trash)[0]
    for change in (
        {"path": str(mine / "planted.jpg")},
        {"digest": content(b"evil")},
        {"seal": None},
        {"seal": "0" * 64},
    ):
        changed = line | change
        write(trash / changed["trash"], b"evil" if "digest" in change else b"copy 0" * 50)
        (trash / JOURNAL).write_text(json.dumps(changed) + "\n")
        outcome = undo(trash)
        assert not outcome.done and "written by you" in outcome.left[0][1]
    assert not (mine / "planted.jpg").exists()
    write(trash / line["trash"], b"copy 0" * 50)
    (trash / JOURNAL).write_text(json.dumps(line) + "\n")
    assert undo(trash).done == [moves[0].path]


def test_anywhere_is_a_decision(album: Path, mine: Path) -> None:
    trash, x = album / FOLDER_NAME, b"evil"
    make_trash(trash, old_line(mine / "x.jpg", mine / "keeper", "0001/x", x), x=x)
    assert "--anywhere" in undo(trash, album).left[0][1] and not (mine / "x.jpg").exists()
    assert undo(trash, album, anywhere=True).done == [str(mine / "x.jpg")]
    make_trash(trash, old_line(mine / "no such" / "x.jpg", mine / "keeper", "0001/x", x), x=x)
    assert "is not there" in undo(trash, album, anywhere=True).left[0][1]  # folders are made in the collection alone


def test_a_trash_behind_a_link_below_the_collection(album: Path, mine: Path) -> None:
    (album / "inner").symlink_to(mine)
    moves, _ = make_files(album / "c", 1)
    before = everything(mine)
    for trash in (album / "inner", album / "inner" / "bin", album / "inner" / "keys" / "bin", album / "a.jpg"):
        with pytest.raises(DistillHashError, match="a link, or no folder"):
            move(moves, trash, album)
    with pytest.raises(DataError, match="the collection itself"):
        move(moves, album, album)
    assert everything(mine) == before


def test_the_folders_of_a_home_do_not_become_links_meanwhile(album: Path, mine: Path) -> None:
    """A folder is replaced by a link after its path was looked at; the open folder is where the file goes."""
    x = b"x"
    (album / "sub").mkdir()
    make_trash(album / FOLDER_NAME, new_line("sub/x.jpg", "0001/x", x), x=x)
    real, swapped = os.link, []

    def link(*arguments: str, **options: Any) -> None:
        (album / "sub").rename(album / "was sub")
        (album / "sub").symlink_to(mine)
        swapped.append(True)
        real(*arguments, **options)

    before = everything(mine)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "link", link)
        undo(album / FOLDER_NAME, album)
    assert swapped and everything(mine) == before and (album / "was sub" / "x.jpg").read_bytes() == x


def test_a_large_journal_needs_little_memory(album: Path) -> None:
    import tracemalloc

    trash = album / FOLDER_NAME
    line = json.dumps(new_line("gone.jpg", "0001/gone.jpg", b"")).encode() + b"\n"
    make_trash(trash, line * 2000, b"y" * 30_000_000 + b"\n")
    tracemalloc.start()
    outcome = undo(trash, album)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6e6 and len(outcome.left) == 1 and outcome.n_gone == 1


def test_the_key_is_for_this_user_alone(album: Path, data_folder: Path) -> None:
    moves, _ = make_files(album / "c", 1)
    move(moves, album / FOLDER_NAME, album)
    key = data_folder / "distillhash" / "trash.key"
    assert not key.exists()  # the default trash needs none
    undo(album / FOLDER_NAME, album)
    move(moves, album.parent / "bin", album)
    assert key.stat().st_mode & 0o777 == 0o600 and key.stat().st_size == 32
    key.unlink()
    assert "SOURCE" in undo(album.parent / "bin").left[0][1]
    assert undo(album.parent / "bin", album).done == [moves[0].path]
    shutil.rmtree(data_folder)
    data_folder.write_text("in the way")
    assert move(moves, album.parent / "bin", album).done  # without a place for a key as well
    assert undo(album.parent / "bin", album).done and snapshot(album)["c/keeper.jpg"] == (b"keeper", TIME)
