"""Miniatures of the official layouts of MIRFLICKR-25000 and NUS-WIDE."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import image_factory as factory
from distillhash.errors import DataError, FormatError, ParameterError
from distillhash.sources import BadItemError, ImageSource, decode_image, open_source
from distillhash.sources.flickr25k import LABEL_NAMES
from distillhash.sources.nuswide import CONCEPTS


def images(spec: str) -> ImageSource:
    source = open_source(spec)
    assert isinstance(source, ImageSource)
    return source


def flickr(images_at: Path, labels_at: Path) -> None:
    images_at.mkdir(parents=True, exist_ok=True)
    labels_at.mkdir(parents=True, exist_ok=True)
    for number in (1, 2, 7, 25_000):
        (images_at / f"im{number}.jpg").write_bytes(factory.make_jpeg(seed=number))
    for column, label in enumerate(LABEL_NAMES):
        (labels_at / f"{label}.txt").write_text("".join(f"{number}\r\n" for number in (1 + column, 25_000)))
        (labels_at / f"{label}_r1.txt").write_text("3\n")
    (labels_at / "README.txt").write_text("MIRFLICKR-25000 annotations")


@pytest.mark.parametrize(
    ("images_at", "labels_at", "opened"),
    [
        ("mirflickr", "mirflickr25k_annotations_v080", "."),
        ("mirflickr", "mirflickr/mirflickr25k_annotations_v080", "."),
        ("mirflickr", ".", "."),
        ("mirflickr", "mirflickr25k_annotations_v080", "mirflickr"),
        (".", ".", "."),
    ],
)
def test_flickr25k(tmp_path: Path, images_at: str, labels_at: str, opened: str) -> None:
    flickr(tmp_path / images_at, tmp_path / labels_at)
    source = images(f"flickr25k:{tmp_path / opened}")
    assert len(source) == 25_000
    assert source.keys[6] == "im7.jpg"
    assert source.path(6) == str(tmp_path / images_at / "im7.jpg")
    assert source.labels is not None
    assert source.labels.shape == (25_000, 24)
    assert source.labels.dtype == np.uint8
    expected = np.zeros((25_000, 24))
    expected[np.arange(24), np.arange(24)] = 1
    expected[24_999] = 1
    np.testing.assert_array_equal(source.labels, expected)
    assert source.label_names is not None
    assert source.label_names[18] == "sky"
    assert decode_image(source.read(24_999)).shape == (23, 37, 3)
    with pytest.raises(BadItemError, match="No such file"):
        source.read(2)


def test_flickr25k_selections(tmp_path: Path) -> None:
    flickr(tmp_path / "mirflickr", tmp_path)
    assert list(images(f"flickr25k:{tmp_path}#6:8").keys) == ["im7.jpg", "im8.jpg"]
    with pytest.raises(ParameterError, match="it has no named splits"):
        images(f"flickr25k:{tmp_path}#train")


def test_flickr25k_missing_files(tmp_path: Path) -> None:
    with pytest.raises(
        DataError,
        match=r"mirflickr/im1.jpg and the other images are missing; unpack mirflickr25k.zip from https://press",
    ):
        images(f"flickr25k:{tmp_path}")
    flickr(tmp_path / "mirflickr", tmp_path / "mirflickr25k_annotations_v080")
    for label in ("clouds", "sea"):
        (tmp_path / "mirflickr25k_annotations_v080" / f"{label}.txt").unlink()
    with pytest.raises(
        DataError, match=r"annotations_v080/clouds.txt is missing \(2 of the 24 annotation files are\); unpack"
    ):
        images(f"flickr25k:{tmp_path}")


@pytest.mark.parametrize(
    ("text", "message"), [("1\n25001\n", "lists image 25001"), ("0", "run from 1 to 25000"), ("im1", "not a list of")]
)
def test_flickr25k_damaged(tmp_path: Path, text: str, message: str) -> None:
    flickr(tmp_path / "mirflickr", tmp_path)
    (tmp_path / "sky.txt").write_text(text)
    with pytest.raises(FormatError, match=message):
        images(f"flickr25k:{tmp_path}")


N = 40


def nuswide(
    root: Path, folder: str = "Flickr", newline: str = "\r\n"
) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    """The layout with N images; returns the (N, 81) truth."""
    names = [f"{'actor' if i % 2 else 'zoo'}\\{i:04}_{i * 7}.jpg" for i in range(N)]
    (root / "ImageList").mkdir(parents=True)
    (root / "ImageList" / "Imagelist.txt").write_text(newline.join(names) + newline, newline="")
    (root / "Groundtruth" / "AllLabels").mkdir(parents=True)
    rng = np.random.default_rng(0)
    truth = (rng.random((N, 81)) < rng.random(81) * 0.3).astype(np.int64)
    truth[::9] = 0
    for column, concept in enumerate(CONCEPTS):
        text = "".join(f"{value}{newline}" for value in truth[:, column])
        (root / "Groundtruth" / "AllLabels" / f"Labels_{concept}.txt").write_text(text, newline="")
    for name in names[:20]:
        path = root / folder / name.replace("\\", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(factory.make_jpeg(9, 9))
    return truth


@pytest.mark.parametrize("folder", ["Flickr", "images"])
@pytest.mark.parametrize("newline", ["\r\n", "\n"])
def test_nuswide(tmp_path: Path, folder: str, newline: str) -> None:
    truth = nuswide(tmp_path, folder, newline)
    counts = {concept: int(truth[:, column].sum()) for column, concept in enumerate(CONCEPTS)}
    expected_names = sorted(counts, key=lambda concept: (-counts[concept], concept))[:10]
    assert len({counts[name] for name in expected_names}) < 10  # ties occur
    columns = [CONCEPTS.index(name) for name in expected_names]
    kept = [row for row in range(N) if any(truth[row, column] for column in columns)]
    assert 0 < len(kept) < N
    source = images(f"nuswide:{tmp_path}")
    assert source.label_names == expected_names
    assert list(source.keys) == [f"{'actor' if i % 2 else 'zoo'}/{i:04}_{i * 7}.jpg" for i in kept]
    assert source.labels is not None
    assert source.labels.dtype == np.uint8
    np.testing.assert_array_equal(source.labels, truth[np.ix_(kept, columns)])
    assert decode_image(source.read(0)).shape == (9, 9, 3)
    with pytest.raises(BadItemError, match="No such file"):
        source.read(len(source) - 1)
    with pytest.raises(ParameterError, match="no named splits"):
        images(f"nuswide:{tmp_path}#train")


def test_nuswide_official_split(tmp_path: Path) -> None:
    nuswide(tmp_path)
    names = (tmp_path / "ImageList" / "Imagelist.txt").read_text().split()
    (tmp_path / "ImageList" / "TrainImagelist.txt").write_text("\n".join(names[:30]))
    (tmp_path / "ImageList" / "TestImagelist.txt").write_text("\n".join(names[30:]))
    every = list(images(f"nuswide:{tmp_path}").keys)
    train, test = (list(images(f"nuswide:{tmp_path}#{split}").keys) for split in ("train", "test"))
    assert train + test == every
    assert set(test) <= {name.replace("\\", "/") for name in names[30:]}


def test_nuswide_missing_files(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"ImageList/Imagelist.txt is missing \(82 of the 82 .* unpack ImageList.zip from https://lms"
    ):
        images(f"nuswide:{tmp_path}")
    nuswide(tmp_path)
    (tmp_path / "Groundtruth" / "AllLabels" / "Labels_sky.txt").unlink()
    with pytest.raises(DataError, match=r"Labels_sky.txt is missing \(1 of the 82 .* unpack Groundtruth.zip"):
        images(f"nuswide:{tmp_path}")


@pytest.mark.parametrize("text", ["0\n" * (N - 1), "0\n" * (N + 1), "2\n" * N, "-1\n" * (N // 2), "", "x\n" * N])
def test_nuswide_damaged(tmp_path: Path, text: str) -> None:
    nuswide(tmp_path)
    (tmp_path / "Groundtruth" / "AllLabels" / "Labels_sky.txt").write_text(text)
    with pytest.raises(FormatError, match=r"Labels_sky.txt holds .* expected 40 lines of 0 or 1"):
        images(f"nuswide:{tmp_path}")


def test_nuswide_without_images(tmp_path: Path) -> None:
    nuswide(tmp_path / "data")
    (tmp_path / "data" / "Flickr").rename(tmp_path / "away")
    with pytest.raises(DataError, match=r"Flickr is missing; the images are sent on request"):
        images(f"nuswide:{tmp_path / 'data'}")
