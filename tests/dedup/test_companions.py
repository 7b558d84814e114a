"""Sidecars, RAW files and clips go with their image or not at all; hard links take the place of identical files."""

from pathlib import Path

import pytest

from distillhash.dedup.journal import Move
from distillhash.dedup.trash import companion_moves, link, move, undo
from trash_factory import content, write


def moved(keeper: Path, path: Path) -> Move:
    return Move(str(path), content(path.read_bytes()), str(keeper), 0)


def make(root: Path, *names: str) -> None:
    for name in names:
        write(root / name, name.rpartition("/")[2].encode())


def files(root: Path) -> set[str]:
    return {
        str(path.relative_to(root)) for path in root.rglob("*") if path.is_file() and ".distillhash" not in str(path)
    }


def apply(root: Path, *names: str, keeper: str = "keep/IMG_1.jpg") -> dict[str, str]:
    """Move images with what belongs to them; the reasons of those that stay."""
    moves = [moved(root / keeper, root / name) for name in names]
    together, stay = companion_moves(moves)
    left = dict(stay)
    outcome = move([one for one in moves if one.path not in left], root / ".distillhash-trash", root, together=together)
    return {str(Path(path).relative_to(root)): reason for path, reason in [*stay, *outcome.left]}


def test_sidecars_go_with_their_image_and_come_back(tmp_path: Path) -> None:
    make(
        tmp_path,
        "keep/IMG_1.jpg",
        "a/IMG_1.jpg",
        "a/IMG_1.xmp",
        "a/IMG_1.jpg.supplemental-metadata.json",
        "a/IMG_10.xmp",
    )
    before = files(tmp_path)
    assert apply(tmp_path, "a/IMG_1.jpg") == {}
    assert files(tmp_path) == {"keep/IMG_1.jpg", "a/IMG_10.xmp"}
    undo(tmp_path / ".distillhash-trash", tmp_path)
    assert files(tmp_path) == before


@pytest.mark.parametrize("beside", ["IMG_1.CR2", "IMG_1.MOV"])
def test_raw_files_and_clips_go_only_where_the_keeper_has_them(tmp_path: Path, beside: str) -> None:
    make(tmp_path, "keep/IMG_1.jpg", "a/IMG_1.jpg", f"a/{beside}")
    before = files(tmp_path)
    assert "no copy of that" in apply(tmp_path, "a/IMG_1.jpg")["a/IMG_1.jpg"] and files(tmp_path) == before
    make(tmp_path, f"keep/{beside}")
    assert apply(tmp_path, "a/IMG_1.jpg") == {}
    assert files(tmp_path) == {"keep/IMG_1.jpg", f"keep/{beside}"}


def test_what_two_images_share_stays_and_they_do(tmp_path: Path) -> None:
    make(tmp_path, "keep/IMG_1.jpg", "a/IMG_1.jpg", "a/IMG_1.heic", "a/IMG_1.xmp")
    before = files(tmp_path)
    assert "IMG_1.heic as well" in apply(tmp_path, "a/IMG_1.jpg")["a/IMG_1.jpg"]
    assert files(tmp_path) == before


def test_all_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The image cannot be taken after its sidecar was."""
    make(tmp_path, "keep/IMG_1.jpg", "a/IMG_1.jpg", "a/IMG_1.xmp")
    before = files(tmp_path)
    moves = [Move(str(tmp_path / "a/IMG_1.jpg"), "0" * 32, str(tmp_path / "keep/IMG_1.jpg"), 0)]
    together, _ = companion_moves(moves)
    outcome = move(moves, tmp_path / ".distillhash-trash", tmp_path, together=together)
    assert not outcome.done and "it changed" in outcome.left[0][1] and files(tmp_path) == before


def test_hard_links(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for name in ("keep.jpg", "a/copy.jpg", "a/other.jpg"):
        (tmp_path / name).write_bytes(b"other" if "other" in name else b"same")
    (tmp_path / "a/link.jpg").symlink_to(tmp_path / "keep.jpg")
    keeper = tmp_path / "keep.jpg"
    moves = [moved(keeper, tmp_path / name) for name in ("a/copy.jpg", "a/other.jpg", "a/link.jpg")]
    moves.append(Move(str(tmp_path / "a/gone.jpg"), content(b"same"), str(keeper), 0))
    outcome = link(moves, tmp_path)
    assert outcome.done == [str(tmp_path / "a/copy.jpg")] and len(outcome.left) == 3
    assert keeper.samefile(tmp_path / "a/copy.jpg")
    assert (tmp_path / "a/other.jpg").read_bytes() == b"other" and (tmp_path / "a/link.jpg").is_symlink()
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["copy.jpg", "link.jpg", "other.jpg"]
    assert link(moves[:1], tmp_path).done == outcome.done  # again
    outside = link(moves[:1], tmp_path / "elsewhere")
    assert not outside.done and "lies outside" in outside.left[0][1]
