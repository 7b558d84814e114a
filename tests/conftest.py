"""Shared fixtures: small real data, and no test touches the user's cache."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from engine_servers import MilvusServer, postgres_server
from image_factory import make_png


@pytest.fixture(scope="session", autouse=True)
def feature_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Features of the whole test session in one temporary folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DISTILLHASH_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


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
