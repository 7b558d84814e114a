from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

import image_factory as factory
from distillhash.errors import DataError, ParameterError
from distillhash.sources import EmbeddingSource, ImageSource, Skipped, decode_image, open_source, source_names


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(7):
        (tmp_path / f"{number}.png").write_bytes(factory.make_png(6, 5, number))
    return tmp_path


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        ("#0:3", [0, 1, 2]),
        ("#5:", [5, 6]),
        ("#:2", [0, 1]),
        ("#-2:", [5, 6]),
        ("#5:900", [5, 6]),
        ("#1:6#1:3", [2, 3]),
        ("#:", list(range(7))),
    ],
)
def test_row_selections(folder: Path, selection: str, expected: list[int]) -> None:
    source = open_source(f"{folder}{selection}")
    assert list(source.keys) == [f"{row}.png" for row in expected]
    assert source.name == f"{folder}{selection}"


@pytest.mark.parametrize("selection", ["#train", "#0-3", "#", "#1:2:3", "#-:", "#a:b"])
def test_unknown_selections(folder: Path, selection: str) -> None:
    with pytest.raises(
        ParameterError, match=r"unknown selection '#.*'; it has no named splits, and #start:stop selects rows"
    ):
        open_source(f"{folder}{selection}")


def test_selecting_nothing(folder: Path) -> None:
    with pytest.raises(DataError, match="nothing usable, '#9:12' selects none of the 7 items"):
        open_source(f"{folder}#9:12")


def test_a_path_with_a_hash_is_a_path(tmp_path: Path) -> None:
    odd = tmp_path / "sharp #0:2"
    odd.mkdir()
    for number in range(4):
        (odd / f"{number}#.png").write_bytes(factory.make_png())
    assert len(open_source(odd)) == 4
    assert list(open_source(f"{odd}#1:2").keys) == ["1#.png"]
    assert list(open_source(odd / "1#.png").keys) == ["1#.png"]
    with pytest.raises(DataError, match=r"there is no readable .*/other; give one of FOLDER, .*cifar10:DIR"):
        open_source(f"{tmp_path}/other#1:2")


def test_a_path_wins_over_a_scheme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("digits:").mkdir()
    Path("digits:/a.png").write_bytes(factory.make_png())
    assert list(open_source("digits:").keys) == ["a.png"]
    Path("cifar10:x#1").mkdir()
    Path("cifar10:x#1/b.png").write_bytes(factory.make_png())
    assert list(open_source("cifar10:x#1").keys) == ["b.png"]


@pytest.mark.parametrize("spec", ["foo:bar", "s3://bucket/photos", "CIFAR10:x"])
def test_unknown_schemes(spec: str) -> None:
    with pytest.raises(
        DataError, match=r"unknown scheme '.*'; the schemes are digits:, cifar10:, flickr25k:, nuswide: and everything"
    ):
        open_source(spec)


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ("", ParameterError, "the source is empty"),
        ("digits:x", ParameterError, "takes no folder"),
        ("cifar10:", ParameterError, "write cifar10:DIR"),
        ("nuswide:", ParameterError, "write nuswide:DIR"),
        ("no/such/place", DataError, "there is no readable no/such/place; give one of FOLDER"),
        ("x" * 5000, DataError, "there is no readable"),
        ("~nobody_of_this_name/x", DataError, "there is no readable"),
        (b"bytes", ParameterError, "holds paths, got int"),
        (7, ParameterError, "got int"),
        (None, ParameterError, "got NoneType"),
    ],
)
def test_other_mistakes(spec: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        open_source(spec)  # type: ignore[arg-type]  # the mistakes under test


def test_a_file_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("1,2")
    with pytest.raises(DataError, match=r"files with the suffix '.csv' are not a source; give one of FOLDER"):
        open_source(tmp_path / "a.csv")


def test_home(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    assert len(open_source(f"~/{folder.name}#:2")) == 2


def test_an_open_source_is_returned(folder: Path) -> None:
    source = open_source(folder)
    assert open_source(source) is source


def test_digits() -> None:
    stored = load_digits()
    source = open_source("digits:")
    assert isinstance(source, ImageSource)
    assert len(source) == 1797
    assert source.labels is not None
    np.testing.assert_array_equal(source.labels, stored.target)
    assert source.label_names == [str(i) for i in range(10)]
    for row in (0, 4, 1796):
        pixels = decode_image(source.read(row))
        expected = np.array([[round(v * 255 / 16) for v in line] for line in stored.images[row]])
        np.testing.assert_array_equal(pixels, np.repeat(expected[..., None], 3, axis=2))
    assert source.path(0) is None
    pixels = decode_image(source.read(0))
    pixels[:] = 9  # an item is the reader's own
    assert decode_image(source.read(0)).max() == 255 or decode_image(source.read(0)).min() == 0


def test_digits_splits() -> None:
    train, test = open_source("digits:#train"), open_source("digits:#test")
    assert list(test.keys) == [f"digits/{row}" for row in range(4, 1797, 5)]
    assert len(train) == 1438
    assert set(train.keys).isdisjoint(test.keys)
    assert isinstance(test, ImageSource)
    np.testing.assert_array_equal(decode_image(test.read(1))[..., 0], np.rint(load_digits().images[9] * 15.9375))
    assert list(open_source("digits:#train#3:6").keys) == ["digits/3", "digits/5", "digits/6"]
    with pytest.raises(ParameterError, match=r"unknown selection '#val'; its splits are #train, #test"):
        open_source("digits:#val")
    with pytest.raises(ParameterError, match="no named splits"):
        open_source("digits:#train#test")


def test_arrays() -> None:
    vectors = np.random.default_rng(0).normal(size=(5, 3))
    source = open_source(vectors)
    assert isinstance(source, EmbeddingSource)
    np.testing.assert_array_equal(source.vectors, vectors)
    assert list(source.keys) == ["0", "1", "2", "3", "4"]
    pixels = np.stack([factory.make_pixels(seed=seed) for seed in range(3)])
    shown = open_source(pixels)
    assert isinstance(shown, ImageSource)
    np.testing.assert_array_equal(decode_image(shown.read(2)), pixels[2])
    for wrong in (np.zeros((2, 3, 4, 1), np.uint8), np.zeros((2, 3, 4, 3)), np.zeros((0, 3, 4, 3), np.uint8)):
        with pytest.raises(DataError, match=r"\(n, h, w, 3\) uint8"):
            open_source(wrong)


def test_source_names_are_one_line_each() -> None:
    names = source_names()
    assert {"digits:", "cifar10:DIR", "flickr25k:DIR", "nuswide:DIR"} <= set(names)
    assert all(text and "\n" not in text for text in names.values())


def test_skipped_is_a_plain_record() -> None:
    assert Skipped("a.jpg", "the file is empty") == Skipped(key="a.jpg", reason="the file is empty")


def test_importing_sources_is_light() -> None:
    code = (
        "import sys, distillhash.sources; print({'torch', 'pyarrow', 'numba', 'sklearn', 'tarfile'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert result.stdout.strip() == "set()"
