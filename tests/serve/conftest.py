"""A small real index and a server on it, shared by the tests that only read it."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from distillhash.cli import main
from image_factory import make_jpeg
from serving import N_PHOTOS, Running, running


@pytest.fixture(scope="session")
def photo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 JPEG photographs, of several shapes, in two folders."""
    folder = tmp_path_factory.mktemp("served") / "photos"
    for number in range(N_PHOTOS):
        place = folder / ("a" if number % 2 else "b")
        place.mkdir(parents=True, exist_ok=True)
        width, height = ((120, 80), (80, 120), (160, 80), (100, 100))[number % 4]
        (place / f"{number:02}.jpg").write_bytes(make_jpeg(width, height, number))
    return folder


@pytest.fixture(scope="session")
def photo_index(photo_folder: Path) -> Path:
    """The photographs in an index of 64 bits, by the default backbone at 32 pixels."""
    model, index = photo_folder.parent / "model", photo_folder.parent / "index"
    train = ["train", str(photo_folder), "--method", "lsh", "--bits", "64", "--image-size", "32", "--out", str(model)]
    assert main([*train, "--quiet"]) == 0
    assert main(["index", str(photo_folder), "--model", str(model), "--index", str(index), "--quiet"]) == 0
    return index


@pytest.fixture(scope="session")
def server(photo_index: Path, photo_folder: Path) -> Iterator[Running]:
    """A server that tests must leave as they found it."""
    with running(photo_index, photo_folder) as started:
        yield started


@pytest.fixture
def own_index(photo_index: Path, tmp_path: Path) -> Path:
    """A copy of the index to change."""
    return Path(shutil.copytree(photo_index, tmp_path / "index"))


@pytest.fixture(scope="session")
def client(server: Running) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=30) as connected:
        yield connected
