"""SIGTERM and Ctrl-C end the server within seconds, whatever it and its clients are doing."""

import contextlib
import os
import signal
import socket
import sqlite3
import threading
import time
from pathlib import Path

import httpx
import pytest

from image_factory import make_jpeg
from serving import Running, encoders_of, is_running, starting, wait_until_ready

MOST_SECONDS = 12.0  # 8 by design
HOST = b"host: 127.0.0.1\r\n"
pytestmark = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the children in Linux's /proc")


def ended(server: Running, *signals: int) -> tuple[int, str]:
    """Exit status and the rest of stderr, within the time."""
    for number in signals:
        server.process.send_signal(number)
        time.sleep(0.2 * (len(signals) > 1))
    status = server.process.wait(MOST_SECONDS)
    assert server.process.stderr is not None
    return status, server.process.stderr.read()


@pytest.mark.long
def test_clients_that_hang_do_not_keep_it(photo_index: Path) -> None:
    """Clients that wait, stopped in a head or a body, do not read, or have closed their side."""
    with starting(photo_index, "--encoders", "1", stopped=False) as server, contextlib.ExitStack() as stack:
        wait_until_ready(server.url)
        for sent, reads, half in (
            (b"", True, False),
            (b"GET /sta", True, False),
            (b"GET /healthz HTTP/1.1\r\n" + HOST + b"\r\n", True, False),
            (
                b"POST /search HTTP/1.1\r\n" + HOST + b"content-type: image/jpeg\r\ncontent-length: 999\r\n\r\nab",
                True,
                False,
            ),
            (
                b"POST /search HTTP/1.1\r\n" + HOST + b"content-type: image/jpeg\r\ncontent-length: 999\r\n\r\nab",
                True,
                True,
            ),
            (b"POST /encode HTTP/1.1\r\n" + HOST + b"expect: 100-continue\r\ncontent-length: 999\r\n\r\n", True, False),
            ((b"POST /search?id=1&k=60 HTTP/1.1\r\n" + HOST + b"content-length: 0\r\n\r\n") * 3000, False, False),
        ):
            client = stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
            if not reads:
                client.settimeout(0.5)
            with contextlib.suppress(TimeoutError):
                client.sendall(sent)
            if half:
                client.shutdown(socket.SHUT_WR)
        time.sleep(0.5)
        status, said = ended(server, signal.SIGTERM)
    assert status == 0 and "Traceback" not in said, said


@pytest.mark.long
def test_it_can_be_stopped_at_any_time_of_its_start(photo_index: Path) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        with starting(photo_index, "--encoders", "1", stopped=False) as server:
            status, said = ended(server, number)
            assert status == 0 and "Traceback" not in said, said


@pytest.mark.long
def test_an_encoder_that_hangs_does_not_keep_it(photo_index: Path) -> None:
    with starting(photo_index, "--encoders", "1", stopped=False) as server:
        wait_until_ready(server.url)
        [child] = encoders_of(server.process.pid)
        os.kill(child, signal.SIGSTOP)
        answers: list[int] = []

        def ask() -> None:
            with contextlib.suppress(httpx.TransportError):
                answers.append(httpx.post(server.url + "encode", files={"file": make_jpeg()}, timeout=30).status_code)

        asker = threading.Thread(target=ask)
        asker.start()
        time.sleep(0.5)
        status, said = ended(server, signal.SIGTERM)
        asker.join()
        assert (status, answers) == (1, [503])
        assert "work was still under way" in said and "Traceback" not in said
        assert not is_running(child)


@pytest.mark.long
@pytest.mark.parametrize("signals", [(signal.SIGTERM, signal.SIGTERM), (signal.SIGINT, signal.SIGINT)])
def test_an_index_that_hangs_does_not_keep_it(own_index: Path, signals: tuple[int, ...]) -> None:
    """Another process holds the lock of the index, and a request waits for it; a second Ctrl-C does not wait at all."""
    with starting(own_index, "--encoders", "1", stopped=False) as server:
        wait_until_ready(server.url)
        other = sqlite3.connect(own_index / "items.sqlite")
        other.execute("BEGIN EXCLUSIVE")
        try:
            asker = threading.Thread(target=delete, args=[server.url])
            asker.start()
            time.sleep(0.5)
            started = time.monotonic()
            status, said = ended(server, *signals)
            asker.join()
        finally:
            other.close()
        assert status == 1 and "Traceback" not in said, said
        if signals[0] == signal.SIGINT:
            assert time.monotonic() - started < 3


def delete(url: str) -> None:
    with contextlib.suppress(httpx.TransportError):
        httpx.delete(url + "items/1", timeout=30)
