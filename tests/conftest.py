"""Shared fixtures: small real data, and no test touches the user's cache or data."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from engine_servers import MilvusServer, StandaloneMilvus, postgres_server
from image_factory import make_jpeg, make_png

# Expected values are those of a CPU. So the tests use no CUDA device unless the user names one.
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

if TYPE_CHECKING:
    import httpx

    from serving import Running


@pytest.fixture(scope="session", autouse=True)
def feature_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Features and data of the whole test session in temporary folders."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DISTILLHASH_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("XDG_DATA_HOME", str(tmp_path_factory.mktemp("data")))
        yield


@pytest.fixture
def data_folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder of the user (verdicts, the key of trashes) for one test, empty."""
    folder = tmp_path_factory.mktemp("data")
    monkeypatch.setenv("XDG_DATA_HOME", str(folder))
    return folder


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 24 small images in two classes."""
    folder = tmp_path_factory.mktemp("photos")
    for number in range(24):
        place = folder / ("cats" if number % 2 else "dogs")
        place.mkdir(exist_ok=True)
        (place / f"{number:02}.png").write_bytes(make_png(20, 16, number))
    return folder


@pytest.fixture(scope="session")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A .npy of 200 embeddings in ten clusters, 16-d."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((10, 16))
    file = tmp_path_factory.mktemp("vectors") / "vectors.npy"
    np.save(file, (centres[np.arange(200) % 10] + 0.6 * rng.standard_normal((200, 16))).astype(np.float32))
    return file


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The URI of a Postgres server with pgvector, shared by all tests."""
    with postgres_server() as uri:
        yield uri


@pytest.fixture(scope="session")
def milvus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MilvusServer]:
    """A Milvus server, shared by all tests; those that kill it start one of their own."""
    if address := os.environ.get("DISTILLHASH_TEST_MILVUS"):
        yield MilvusServer.running(address)
        return
    server = MilvusServer(tmp_path_factory.mktemp("milvus"))
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="session")
def standalone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandaloneMilvus]:
    """A complete Milvus, shared by the tests marked long; one that kills it starts it again."""
    server = StandaloneMilvus(tmp_path_factory.mktemp("standalone"))
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="session")
def photo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 JPEG photographs, of several shapes, in two folders."""
    folder = tmp_path_factory.mktemp("served") / "photos"
    for number in range(60):
        place = folder / ("a" if number % 2 else "b")
        place.mkdir(parents=True, exist_ok=True)
        width, height = ((120, 80), (80, 120), (160, 80), (100, 100))[number % 4]
        (place / f"{number:02}.jpg").write_bytes(make_jpeg(width, height, number))
    return folder


@pytest.fixture(scope="session")
def photo_index(photo_folder: Path) -> Path:
    """The photographs in an index of 64 bits, by the default backbone at 32 pixels."""
    from distillhash.cli import main

    model, index = photo_folder.parent / "model", photo_folder.parent / "index"
    train = ["train", str(photo_folder), "--method", "lsh", "--bits", "64", "--image-size", "32", "--out", str(model)]
    assert main([*train, "--quiet"]) == 0
    assert main(["index", str(photo_folder), "--model", str(model), "--index", str(index), "--quiet"]) == 0
    return index


@pytest.fixture(scope="session")
def server(photo_index: Path, photo_folder: Path) -> "Iterator[Running]":
    """A server that tests must leave as they found it."""
    from serving import running

    with running(photo_index, photo_folder) as started:
        yield started


@pytest.fixture
def own_index(photo_index: Path, tmp_path: Path) -> Path:
    """A copy of the index to change."""
    return Path(shutil.copytree(photo_index, tmp_path / "index"))


@pytest.fixture(scope="session")
def client(server: "Running") -> "Iterator[httpx.Client]":
    import httpx

    with httpx.Client(base_url=server.url, timeout=30) as connected:
        yield connected
