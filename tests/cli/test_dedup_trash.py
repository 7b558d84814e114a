"""``dedup --apply`` and ``--undo`` from the outside: what they answer, and their exit status."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from distillhash.cli import main
from image_factory import make_png
from trash_factory import TIME, make_trash, old_line, snapshot, write

RADIUS = ("--radius", 5)


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Eight pictures, and a copy of two of them."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    for seed in range(8):
        write(tmp_path / "usb1" / f"{seed}.png", make_png(96, 64, seed))
    for seed in range(2):
        write(tmp_path / "usb1" / "more" / f"copy{seed}.png", make_png(96, 64, seed))
    return Path("usb1")


def run(capsys: pytest.CaptureFixture[str], *words: object, exit_code: int = 0) -> dict[str, Any]:
    capsys.readouterr()
    assert main([*map(str, words), "--json", "--quiet"]) == exit_code
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_a_renamed_collection_under_any_spelling(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = snapshot(photos)
    assert run(capsys, "dedup", photos, "--apply", *RADIUS)["n_moved"] == 2
    for number, spelled in enumerate(
        ("{}/", "./{}/../{}", tmp_path / "{}", "link", "{}#:3", "link/.", "{}/more/..", "{}#train")
    ):
        name = f"copy of usb {number}"
        shutil.copytree("usb1", name)
        Path("link").unlink(missing_ok=True)
        Path("link").symlink_to(name)
        found = run(capsys, "dedup", str(spelled).format(name, name), "--undo")
        assert (found["n_restored"], found["left"], found["exit_code"]) == (2, [], 0)
        assert sorted(found["restored"]) == [str(tmp_path / name / "more" / f"copy{n}.png") for n in range(2)]
        assert snapshot(Path(name)) == before
    assert snapshot(photos).keys() == {f"{n}.png" for n in range(8)}


def test_the_answer_says_where_files_went(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dedup", "usb1", "--apply", "--trash", "my bin", *map(str, RADIUS)]) == 0
    assert "`distillhash dedup usb1 --undo --trash 'my bin'` brings them back" in capsys.readouterr().err
    Path("usb1").rename("usb2")
    assert main(["dedup", "--undo", "--trash", "my bin"]) == 1
    assert f"its collection is not at {tmp_path / 'usb1'}" in capsys.readouterr().err
    assert main(["dedup", "usb2", "--undo", "--trash", "my bin"]) == 0
    assert f"2 files brought back from my bin to {tmp_path / 'usb2'}\n" in capsys.readouterr().err
    assert not Path("usb1").exists()


def test_a_part_of_a_folder_has_the_trash_of_the_folder(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = snapshot(photos)
    found = run(capsys, "dedup", "usb1#0:10", "--apply", *RADIUS)
    assert found["n_moved"] == 2 and found["trash"] == "usb1/.distillhash-trash"
    assert run(capsys, "dedup", "--undo", "--trash", "usb1/.distillhash-trash")["n_restored"] == 2
    assert snapshot(photos) == before


def test_less_than_asked_is_1(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = snapshot(photos)
    write(photos / ".distillhash-trash" / "0001", b"a file: the batch is 0002")
    assert run(capsys, "dedup", photos, "--apply", *RADIUS)["n_moved"] == 2
    write(photos / "more" / "copy0.png", b"newer")
    found = run(capsys, "dedup", photos, "--undo", exit_code=1)
    assert found["n_restored"] == 1 and len(found["left"]) == 1
    (photos / "more" / "copy0.png").unlink()
    assert run(capsys, "dedup", photos, "--undo")["n_restored"] == 1
    assert run(capsys, "dedup", photos, "--undo")["n_restored"] == 0
    assert snapshot(photos) == before
    (photos / "more").rename(photos.parent / "outside")  # the copies lie behind a link: they are not of the collection
    (photos / "more").symlink_to("../outside")
    found = run(capsys, "dedup", photos, "--apply", *RADIUS, exit_code=1)
    assert found["n_moved"] == 0 and len(found["left"]) == 2
    (photos / "more").unlink()
    assert run(capsys, "dedup", photos, "--apply", *RADIUS)["exit_code"] == 0  # nothing to move
    for words in (("--undo",), ("--apply",), ("--undo", "--trash", "usb1/.distillhash-trash")):
        assert "there is no gone" in run(capsys, "dedup", "gone", *words, exit_code=1)["error"]
    Path("notes").write_text("x")
    assert "is a link, or no folder" in run(capsys, "dedup", photos, "--undo", "--trash", "notes", exit_code=1)["error"]


def test_what_belongs_to_others(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = snapshot(photos)
    shutil.copytree(photos, "another")
    run(capsys, "dedup", photos, "--apply", "--trash", "bin", *RADIUS)
    found = run(capsys, "dedup", "another", "--undo", "--trash", "bin", exit_code=1)
    assert (found["n_restored"], found["n_other"], found["left"]) == (0, 2, [])
    assert snapshot(Path("another")) == before
    assert run(capsys, "dedup", "--undo", "--trash", "bin")["n_restored"] == 2
    assert snapshot(photos) == before


def test_a_trash_from_a_stranger_stays_in_its_folder(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "home" / "autostart"
    target.parent.mkdir()
    make_trash(photos / ".distillhash-trash", old_line(target, target, "0001/x", b"evil"), x=b"evil")
    assert len(run(capsys, "dedup", photos, "--undo", exit_code=1)["left"]) == 1
    assert len(run(capsys, "dedup", "--undo", "--trash", photos / ".distillhash-trash", exit_code=1)["left"]) == 1
    assert run(capsys, "dedup", photos, "--apply", *RADIUS)["n_moved"] == 2
    assert not target.exists()
    assert run(capsys, "dedup", photos, "--undo", "--anywhere")["n_restored"] == 3 and target.read_bytes() == b"evil"
    assert target.stat().st_mtime_ns == TIME
