"""Folders that link to each other: the walk ends, and names each file once."""

from __future__ import annotations

import os
import random
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distillhash.errors import SkippedItemsWarning
from distillhash.sources.files import find_images


def plant(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def reachable(folder: str, seen: set[tuple[int, int]], files: set[tuple[int, int]]) -> set[tuple[int, int]]:
    """Device and inode of every image below a folder, links followed: a plain recursion, to compare with."""
    status = Path(folder).stat()
    if (status.st_dev, status.st_ino) in seen:
        return files
    seen.add((status.st_dev, status.st_ino))
    for path in Path(folder).iterdir():
        if path.is_dir():
            reachable(str(path), seen, files)
        elif path.suffix == ".png" and path.exists():
            files.add((path.stat().st_dev, path.stat().st_ino))
    return files


def test_folders_that_link_to_all_others(tmp_path: Path) -> None:
    for i in range(12):
        plant(tmp_path, f"d{i:02}/p.png")
    for i in range(12):
        for j in range(12):
            (tmp_path / f"d{i:02}" / f"to{j}").symlink_to(tmp_path / f"d{j:02}")
    started = time.perf_counter()
    assert find_images(tmp_path) == [f"d{i:02}/p.png" for i in range(12)]
    assert time.perf_counter() - started < 5


def test_loops(tmp_path: Path) -> None:
    plant(tmp_path, "photos/a/1.png", "photos/b/2.png", "beside/3.png")
    (tmp_path / "photos/a/self").symlink_to(".")
    (tmp_path / "photos/a/up").symlink_to("..")
    (tmp_path / "photos/b/root").symlink_to(tmp_path / "photos")
    (tmp_path / "photos/x").symlink_to("y")
    (tmp_path / "photos/y").symlink_to("x")
    assert find_images(tmp_path / "photos") == ["a/1.png", "b/2.png"]
    (tmp_path / "photos/out").symlink_to(
        ".."
    )  # above the folder: what lies beside it is listed, the folder itself is not again
    assert find_images(tmp_path / "photos") == ["a/1.png", "b/2.png", "out/beside/3.png"]


def test_real_names_come_before_links(tmp_path: Path) -> None:
    plant(tmp_path, "z/1.png", "z/deep/2.png", ".store/blob", ".store/3.png")
    (tmp_path / "a").symlink_to("z")
    (tmp_path / "a.png").symlink_to("z/1.png")
    (tmp_path / "b.png").symlink_to("a.png")  # a chain
    (tmp_path / "c").symlink_to("z/deep")
    (tmp_path / "d.png").symlink_to(".store/blob")  # no name of its own that counts
    (tmp_path / "e.png").symlink_to(".store/blob")
    (tmp_path / "f").symlink_to(".store")
    assert find_images(tmp_path) == ["d.png", "f/3.png", "z/1.png", "z/deep/2.png"]
    (tmp_path / "whole").symlink_to(tmp_path)
    assert find_images(tmp_path / "whole") == ["d.png", "f/3.png", "z/1.png", "z/deep/2.png"]


def test_hard_links(tmp_path: Path) -> None:
    plant(tmp_path, "z/1.png", "b/other.png")
    os.link(tmp_path / "z/1.png", tmp_path / "b/1.png")
    (tmp_path / "a.png").symlink_to("z/1.png")
    assert find_images(tmp_path) == ["b/1.png", "b/other.png"]
    outside = tmp_path / "b"
    (outside / "linked.png").symlink_to("../z/1.png")  # the same file as b/1.png, by a name that is not listed
    assert find_images(outside) == ["1.png", "other.png"]


def test_inodes_that_mean_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """File systems that make inodes up must not make files vanish."""
    plant(tmp_path, "a/1.png", "a/2.png", "b/1.png", "b/c/1.png")
    (tmp_path / "l").symlink_to("b")
    (tmp_path / "b/up").symlink_to("..")
    real = os.stat
    for inode in (0, 1, 0xFFFFFFFF):

        def stat(path: str, inode: int = inode) -> os.stat_result:
            values = list(real(path))
            values[1] = inode
            return os.stat_result(values)

        monkeypatch.setattr("distillhash.sources.files.os.stat", stat)
        assert find_images(tmp_path) == ["a/1.png", "a/2.png", "b/1.png", "b/c/1.png"]


def test_the_order_of_the_file_system_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(tmp_path, "out/x/1.png", "out/y/2.png", "in/3.png")
    for link, target in {"in/m": "../out/x", "in/a": "../out", "in/z": "../out/y", "in/b": ".", "in/k": "a"}.items():
        (tmp_path / link).symlink_to(target)
    expected = find_images(tmp_path / "in")
    original = os.scandir

    class Shuffled(list):  # type: ignore[type-arg]
        def __enter__(self) -> Shuffled:
            return self

        def __exit__(self, *_: object) -> None:
            return None

    for seed in range(20):

        def scandir(path: str, seed: int = seed) -> Shuffled:
            with original(path) as entries:
                found = Shuffled(entries)
            random.Random(seed).shuffle(found)
            return found

        monkeypatch.setattr("distillhash.sources.files.os.scandir", scandir)
        assert find_images(tmp_path / "in") == expected
    assert len(expected) == 3


names = st.sampled_from(["a", "b", "c", "d"])
paths = st.lists(names, min_size=1, max_size=3).map("/".join)


@settings(max_examples=60, deadline=None)
@given(
    folders=st.lists(paths, max_size=6),
    files=st.lists(st.tuples(paths, st.sampled_from(["1.png", "2.png", "3.txt"])), max_size=6),
    links=st.lists(st.tuples(paths, paths, st.booleans()), max_size=8),
    hard=st.lists(st.tuples(st.integers(0, 5), paths), max_size=3),
)
def test_any_web_of_links(
    folders: list[str], files: list[tuple[str, str]], links: list[tuple[str, str, bool]], hard: list[tuple[int, str]]
) -> None:
    with tempfile.TemporaryDirectory() as place:
        root = Path(place) / "root"
        root.mkdir()
        for folder in folders:
            (root / folder).mkdir(parents=True, exist_ok=True)
        made = []
        for folder, name in files:
            (root / folder).mkdir(parents=True, exist_ok=True)
            (root / folder / name).touch()
            made.append(root / folder / name)
        for number, folder in hard:
            target = root / folder / f"h{number}.png"
            if number < len(made) and target.parent.is_dir() and not os.path.lexists(target):
                os.link(made[number], target)
        for link, target_name, is_file in links:
            source = root / f"{link}-link{'.png' if is_file else ''}"
            if source.parent.is_dir() and not os.path.lexists(source):
                source.symlink_to(root / target_name / ("1.png" if is_file else ""))
        found = find_images(root)
        inodes = [(path.stat().st_dev, path.stat().st_ino) for path in map(root.joinpath, found) if path.exists()]
        assert len(inodes) == len(set(inodes))
        assert set(inodes) == reachable(str(root), set(), set())


def test_deep_and_odd_names(tmp_path: Path) -> None:
    handle = os.open(tmp_path, os.O_RDONLY)
    for _ in range(30):  # 30 x 200 bytes: over PATH_MAX
        os.mkdir("x" * 199, dir_fd=handle)
        below = os.open("x" * 199, os.O_RDONLY, dir_fd=handle)
        os.close(handle)
        handle = below
    os.close(os.open("1.png", os.O_CREAT, dir_fd=handle))
    os.close(handle)
    shallow = tmp_path.joinpath(*["d"] * 500)
    shallow.mkdir(parents=True)
    plant(shallow, "deep.png")
    plant(tmp_path, "new\nline.png", "\udcff.png", "tab\t.png")
    with pytest.warns(SkippedItemsWarning, match="File name too long"):
        found = find_images(tmp_path)
    assert found == sorted(["d/" * 500 + "deep.png", "new\nline.png", "\udcff.png", "tab\t.png"])


@pytest.mark.long
def test_a_hundred_thousand_files_are_listed_quickly(tmp_path: Path) -> None:
    for folder in range(100):
        (tmp_path / f"{folder}").mkdir()
        for number in range(1000):
            (tmp_path / f"{folder}" / f"{number}.jpg").touch()
    started = time.perf_counter()
    assert len(find_images(tmp_path)) == 100_000
    assert time.perf_counter() - started < 3
