from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

import image_factory as factory
from distillhash.errors import DataError, ParameterError, SkippedItemsWarning
from distillhash.sources import BadItemError, ImageSource, decode_image, open_source


def images(spec: object) -> ImageSource:
    source = open_source(spec)  # type: ignore[arg-type]  # the tests pass whatever a caller might
    assert isinstance(source, ImageSource)
    return source


def plant(root: Path, *names: str) -> None:
    for seed, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(factory.make_png(9, 7, seed))


def test_folder(tmp_path: Path) -> None:
    plant(tmp_path, "b/2.PNG", "b/10.jpg", "a.png", "a/x/y.webp", "c.heic", ".hidden.png", ".git/z.png", "b/._10.jpg")
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / "labels.json").write_text("{}")
    source = images(tmp_path)
    assert list(source.keys) == ["a.png", "a/x/y.webp", "b/10.jpg", "b/2.PNG", "c.heic"]
    assert source.labels is None
    assert source.label_names is None
    assert source.path(3) == str(tmp_path / "b/2.PNG")
    assert source.name == str(tmp_path)
    np.testing.assert_array_equal(decode_image(source.read(2)), factory.make_pixels(9, 7, 1))  # a PNG named .jpg


def test_sub_folders_are_classes(tmp_path: Path) -> None:
    plant(tmp_path, "dog/1.png", "cat/deep/1.png", "cat/2.png", "Ant/1.png")
    source = images(str(tmp_path))
    assert list(source.keys) == ["Ant/1.png", "cat/2.png", "cat/deep/1.png", "dog/1.png"]
    assert source.labels is not None
    assert source.labels.dtype == np.int64
    assert source.labels.tolist() == [0, 1, 1, 2]
    assert source.label_names == ["Ant", "cat", "dog"]
    part = source.select(np.array([3, 1]))
    assert list(part.keys) == ["dog/1.png", "cat/2.png"]
    assert part.labels is not None
    assert part.labels.tolist() == [2, 1]
    assert part.path(0) == str(tmp_path / "dog/1.png")
    assert part.label_names == source.label_names


def test_split_folders(tmp_path: Path) -> None:
    plant(tmp_path, "train/dog/1.png", "train/cat/1.png", "test/dog/1.png")
    source = images(tmp_path)
    assert source.label_names == ["cat", "dog"]
    assert source.labels is not None
    assert source.labels.tolist() == [1, 0, 1]
    assert list(images(f"{tmp_path}#train").keys) == ["train/cat/1.png", "train/dog/1.png"]
    assert list(images(f"{tmp_path}#test").keys) == ["test/dog/1.png"]
    plant(tmp_path, "station/1.png")  # now "train" is a class among others
    assert images(tmp_path).label_names == ["station", "test", "train"]


def test_links(tmp_path: Path) -> None:
    plant(tmp_path, "real/1.png")
    (tmp_path / "alias").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "up").symlink_to(tmp_path)
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere")
    (tmp_path / "self.png").symlink_to(tmp_path / "self.png")
    source = images(tmp_path)
    assert list(source.keys) == ["gone.jpg", "real/1.png", "self.png"]
    with pytest.raises(BadItemError, match="cannot be read: No such file"):
        source.read(0)
    with pytest.raises(BadItemError, match="cannot be read: "):
        source.read(2)


def test_bad_files_are_single_errors(tmp_path: Path) -> None:
    plant(tmp_path, "0.png", "5.png")
    (tmp_path / "1.png").write_bytes(b"")
    (tmp_path / "2.jpg").write_bytes(factory.make_truncated())
    os.mkfifo(tmp_path / "3.jpg")
    (tmp_path / "4.jpg").write_text("text")
    source = images(tmp_path)
    outcome: list[object] = []
    for row in range(len(source)):
        try:
            outcome.append(decode_image(source.read(row)).shape)
        except BadItemError as error:
            outcome.append(str(error).partition(":")[2 if "pipe" in str(error) else 0].strip())
    assert outcome == [
        (7, 9, 3),
        "the file is empty",
        "the JPEG data cannot be decoded",
        "it is a pipe, not a regular file",
        "the content is not an image of a known format (JPEG, PNG, WEBP, GIF, BMP, TIFF, PPM, AVIF)",
        (7, 9, 3),
    ]


def test_file_names_that_are_not_utf8(tmp_path: Path) -> None:
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png")
    Path(odd).write_bytes(factory.make_png(9, 7))
    (tmp_path / "\\xff.png").write_bytes(factory.make_png(9, 7, 1))  # what the odd name is shown as
    (tmp_path / "grün.png").write_bytes(factory.make_png(9, 7, 2))
    source = images(tmp_path)
    assert sorted(source.keys) == ["\\xff.png", "\\xff.png#2", "grün.png"]
    assert all(key.encode() for key in source.keys)
    rows = [list(source.keys).index(key) for key in ("\\xff.png", "\\xff.png#2")]
    assert {source.path(row) for row in rows} == {odd, str(tmp_path / "\\xff.png")}
    assert decode_image(source.select(np.array(rows)).read(1)).shape == (7, 9, 3)


def test_a_folder_that_cannot_be_listed(tmp_path: Path) -> None:
    """Root reads everything, so the folder vanishes between the listing of its parent and its own."""
    plant(tmp_path, "a/1.png", "b/1.png")
    original = os.scandir

    def scandir(path: Path) -> object:
        if Path(path).name == "b":
            raise PermissionError(13, "Permission denied")
        return original(path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("distillhash.sources.files.os.scandir", scandir)
        with pytest.warns(
            SkippedItemsWarning, match=r"/b cannot be listed \(Permission denied\); its images are left out"
        ):
            assert list(images(tmp_path).keys) == ["a/1.png"]
        with pytest.raises(DataError, match="cannot be listed"):
            open_source(tmp_path / "b")


def test_nothing_usable(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("1,2")
    with pytest.raises(DataError, match=r"nothing usable, the folder .* holds no images .*give a folder of images"):
        open_source(tmp_path)


def test_list_file(tmp_path: Path) -> None:
    plant(tmp_path, "in/a b.png", "in/c.png", "elsewhere/d.png")
    lines = [
        "a b.png\t3",
        "c.png\t-1",
        f"{tmp_path}/elsewhere/d.png\t7",
        "",
        "c.png\t-1",
        "missing.png\t0",
        "c.png\t-1",
    ]
    (tmp_path / "in" / "list.txt").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    source = images(tmp_path / "in" / "list.txt")
    absolute = str(tmp_path / "elsewhere/d.png")
    assert list(source.keys) == ["a b.png", "c.png", absolute, "c.png#2", "missing.png", "c.png#3"]
    assert source.labels is not None
    assert source.labels.tolist() == [3, -1, 7, -1, 0, -1]
    assert source.path(2) == absolute
    assert source.path(5) == str(tmp_path / "in/c.png")
    assert decode_image(source.read(3)).shape == (7, 9, 3)
    with pytest.raises(BadItemError, match="No such file"):
        source.read(4)


def test_list_file_without_labels(tmp_path: Path) -> None:
    plant(tmp_path, "x.png")
    (tmp_path / "all.lst").write_text("x.png\nbad\0name.png\n" + "y" * 5000 + "\n")
    source = images(tmp_path / "all.lst")
    assert source.labels is None
    for row in (1, 2):
        with pytest.raises(BadItemError, match="cannot be read"):
            source.read(row)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "names no images; write one path per line"),
        (" \n\n", "names no images"),
        ("x.png\t1\nx.png\n", r"line 2 of .* has the label ''; write an integer after the tab on each line"),
        ("x.png\tcat\n", "line 1 of .* has the label 'cat'"),
        (f"x.png\t{10**30}\n", "has the label '1000"),
        ("Dear diary,\ntoday it rained.\n", r"none of the first 2 paths in .* exists \(the first is 'Dear diary,'\)"),
    ],
)
def test_lists_that_are_not(tmp_path: Path, text: str, reason: str) -> None:
    plant(tmp_path, "x.png")
    (tmp_path / "list.txt").write_text(text)
    with pytest.raises(DataError, match=reason):
        open_source(tmp_path / "list.txt")


def test_paths_and_single_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(tmp_path, "a.png", "b.png")
    monkeypatch.chdir(tmp_path)
    source = images(["b.png", tmp_path / "a.png", "b.png"])
    assert list(source.keys) == ["b.png", str(tmp_path / "a.png"), "b.png#2"]
    assert source.path(0) == str(tmp_path / "b.png")
    assert source.name == "3 paths"
    single = images("a.png")
    assert list(single.keys) == ["a.png"]
    np.testing.assert_array_equal(decode_image(single.read(0)), factory.make_pixels(9, 7))
    monkeypatch.chdir("/")
    elsewhere = images(tmp_path / "b.png")
    assert list(elsewhere.keys) == ["b.png"] and elsewhere.path(0) == str(tmp_path / "b.png")
    np.testing.assert_array_equal(decode_image(elsewhere.read(0)), factory.make_pixels(9, 7, 1))
    with pytest.raises(ParameterError, match=r"holds paths, got float; pass embeddings as an array"):
        images([1.0, 2.0])
    with pytest.raises(DataError, match="the list of paths is empty"):
        images([])


def test_rows_are_checked(tmp_path: Path) -> None:
    plant(tmp_path, "a.png", "b.png")
    source = images(tmp_path)
    assert len(source.select(np.array([], np.intp))) == 0
    with pytest.raises(ParameterError, match="rows run from 0 to 2 but the source holds items 0 to 1"):
        source.select(np.array([0, 2]))
    with pytest.raises(ParameterError, match="rows run from -1"):
        source.select(np.array([-1]))
    with pytest.raises(ParameterError, match="flatnonzero"):
        source.select(np.array([True, False]))


def test_opening_reads_no_file(tmp_path: Path) -> None:
    """Names without content: opening reads none of them."""
    for part in range(3):
        folder = tmp_path / f"{part}"
        folder.mkdir()
        for number in range(700):
            (folder / f"{number:05}.jpg").touch()
    source = images(f"{tmp_path}#-5:")
    assert list(source.keys) == [f"2/{number:05}.jpg" for number in range(695, 700)]
