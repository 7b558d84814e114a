"""`distillhash serve` as a process of its own, for the tests of every part of it."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import torch

from distillhash import load_model
from distillhash.index import open_index
from distillhash.search import Searcher
from distillhash.serve.run import bind, make_server, url_of
from distillhash.serve.service import Service
from distillhash.serve.settings import Settings

N_PHOTOS = 60
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@dataclass
class Running:
    """A server process."""

    url: str
    index: Path
    photos: Path
    process: subprocess.Popen[str]

    @property
    def port(self) -> int:
        return int(self.url.rstrip("/").rpartition(":")[2])

    def rss_mb(self) -> float:
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@contextlib.contextmanager
def in_thread(index: Path, **settings: Any) -> Iterator[str]:
    """A server in this process, for settings that the command line does not offer; gives its URL."""
    model = load_model(index / "model") if (index / "model").exists() else None
    settings = {"encoders": 0} | settings  # processes of their own start with every `running` server
    service = Service(Searcher(open_index(index), model), index, Settings(**settings))
    n_threads = torch.get_num_threads()  # a server sets it, for the whole process
    listener = bind("127.0.0.1", 0)
    server = make_server(service)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        wait_until_ready(url_of(listener))
        yield url_of(listener)
    finally:
        server.should_exit = True
        thread.join(30)
        torch.set_num_threads(n_threads)
        assert not thread.is_alive()


def wait_until_ready(url: str) -> None:
    for _ in range(600):
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(url + "readyz").status_code == 200:
                return
        time.sleep(0.1)
    raise AssertionError("the server did not get ready")


@contextlib.contextmanager
def running(index: Path, photos: Path, *words: str, token: str | None = None) -> Iterator[Running]:
    """`distillhash serve` on a free port, ready; stopped by SIGTERM, which must end it with exit status 0."""
    with starting(index, *words, token=token) as server:
        server.photos = photos
        wait_until_ready(server.url)
        yield server


@contextlib.contextmanager
def starting(index: Path, *words: str, token: str | None = None, stopped: bool = True) -> Iterator[Running]:
    """The same, not waited for; ``stopped`` in the end, unless it is killed before."""
    environment = dict(os.environ) | ({"DISTILLHASH_TOKEN": token} if token else {})
    command = [sys.executable, "-m", "distillhash", "serve", "--index", str(index), "--port", "0", *words]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if line.startswith("serving at "):
            break
    else:
        raise AssertionError(f"the server did not start: {''.join(lines)}")
    server = Running(lines[-1].split()[2], index, index, process)
    try:
        yield server
        if not stopped:
            return
        process.send_signal(signal.SIGTERM)
        rest = process.stderr.read()
        assert process.wait(30) == 0, rest
        assert "Traceback" not in rest, rest
    finally:
        process.kill()
        process.wait()


def encoders_of(pid: int) -> list[int]:
    """The processes of a server that encode and that have not ended; none where there is no /proc to look in."""
    threads = Path(f"/proc/{pid}/task").glob("*/children")
    children = [int(child) for thread in threads for child in thread.read_text().split()]
    return [child for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]


def is_running(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


def pairs(answer: httpx.Response) -> list[tuple[int, int]]:
    assert answer.status_code == 200, answer.text
    return [(row["id"], row["distance"]) for row in answer.json()["results"]]


def problem(answer: httpx.Response, status: int) -> str:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    document = answer.json()
    assert document["status"] == status and document["title"] and document["type"] == "about:blank"
    assert document["request_id"] == answer.headers["x-request-id"]
    return str(document["detail"])


def raw(port: int, *parts: bytes, pause: float = 0.0, timeout: float = 30.0) -> bytes:
    """Send bytes as they are; everything the server sends until it closes or the answer is whole."""
    with socket.create_connection(("127.0.0.1", port), timeout=timeout) as connection:
        received = b""
        try:
            for part in parts:
                connection.sendall(part)
                time.sleep(pause)
        except OSError:
            pass
        try:
            while chunk := connection.recv(65536):
                received += chunk
                answer = received.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n")
                head, separator, body = answer.partition(b"\r\n\r\n")
                lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
                if separator and lengths and len(body) >= int(lengths[0].split(b":")[1]):
                    break
        except ConnectionResetError:
            pass
        return received


def status_of(answer: bytes) -> int:
    head, _, body = answer.partition(b"\r\n\r\n")
    status = int(head.split()[1])
    if status >= 400:
        assert b"application/problem+json" in head, answer
        assert json.loads(body)["status"] == status
    return status
