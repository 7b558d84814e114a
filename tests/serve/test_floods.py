"""What arrives beside, before and after bodies is bounded too, and requests that are sent ahead are answered in order."""

import contextlib
import socket
import threading
import time
from pathlib import Path

import httpx
import pytest

from image_factory import make_jpeg
from serving import Running, in_thread, raw, status_of

HOST = b"host: 127.0.0.1\r\n"
GET = b"GET /healthz HTTP/1.1\r\n" + HOST + b"x-request-id: %d\r\n\r\n"
MB = 2**20


def post(*fields: bytes, path: bytes = b"/search", version: bytes = b"1.1") -> bytes:
    fields = (b"content-type: image/jpeg", *fields)
    return b"POST %s HTTP/%s\r\n" % (path, version) + HOST + b"".join(field + b"\r\n" for field in fields) + b"\r\n"


def chunk(size: int, extension: bytes = b"") -> bytes:
    return b"%x" % size + extension + b"\r\n" + b"a" * size + b"\r\n"


CHUNKED, EXPECT = b"transfer-encoding: chunked", b"expect: 100-continue"
FLOODS: dict[str, tuple[int, bytes, bytes]] = {  # status, what is sent first, what is sent again and again
    "chunks after Expect": (413, post(EXPECT, CHUNKED), chunk(65536)),
    "chunks after another Expect": (413, post(b"expect: something", CHUNKED), chunk(65536)),
    "a length that is wrong, after Expect": (413, post(EXPECT, b"content-length: 1500000000"), b"a" * 65536),
    "more than the length": (400, post(b"content-length: 10"), b"a" * 65536),
    "HTTP/1.0 in chunks": (413, post(CHUNKED, version=b"1.0"), chunk(65536)),
    "HTTP/1.0 without a length": (422, post(version=b"1.0"), b"a" * 65536),
    "compressed": (413, post(CHUNKED, b"content-encoding: gzip"), chunk(65536)),
    "gzip as transfer-encoding": (413, post(b"transfer-encoding: gzip, chunked"), chunk(65536)),
    "chunked twice": (400, post(CHUNKED, CHUNKED), chunk(65536)),
    "with an upgrade": (400, post(CHUNKED, b"connection: upgrade", b"upgrade: websocket"), chunk(65536)),
    "with an upgrade to HTTP/2": (400, post(CHUNKED, b"connection: upgrade", b"upgrade: h2c"), chunk(65536)),
    "large trailers": (431, post(CHUNKED) + chunk(1) + b"0\r\n", b"x: " + b"y" * 60_000 + b"\r\n"),
    "small trailers": (431, post(CHUNKED) + chunk(1) + b"0\r\n", b"x: y\r\n" * 10_000),
    "one trailer": (431, post(CHUNKED) + chunk(1) + b"0\r\nx: ", b"y" * 65536),
    "one chunk extension": (431, post(CHUNKED) + b"1;", b"y" * 65536),
    "chunks with extensions": (431, post(CHUNKED), chunk(1, b";" + b"e" * 3000)),
    "a chunk size of many zeros": (431, post(CHUNKED), b"0" * 65536),
    "a body that nobody reads": (404, post(CHUNKED, path=b"/nothing"), chunk(65536)),
    "a body beside an id": (422, post(CHUNKED, path=b"/search?id=1"), chunk(65536)),
    "a multipart body that is none": (400, post(CHUNKED).replace(b"image/jpeg", b"multipart/form-data; boundary=x"), chunk(65536)),
    "JSON": (413, post(CHUNKED, path=b"/encode").replace(b"image/jpeg", b"application/json"), chunk(65536)),
}  # fmt: skip


USUAL = ("chunks after Expect", "small trailers", "one chunk extension", "a body that nobody reads", "with an upgrade")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in USUAL else [pytest.mark.long]) for name in FLOODS]
)
def test_a_flood_is_refused_and_fills_no_memory(server: Running, name: str) -> None:
    """Up to 1.5 GB is sent; the server answers, closes, and grows by less than 100 MB."""
    status, first, again = FLOODS[name]
    before, sent = server.rss_mb(), 0
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        connection.sendall(first)
        most = before
        with pytest.raises(OSError):
            while sent < 1500 * MB:
                connection.sendall(again)
                sent += len(again)
                if sent % (8 * MB) < len(again):
                    most = max(most, server.rss_mb())
            connection.settimeout(3)
            while connection.recv(65536):
                pass
            raise ConnectionError  # closed in order
    assert max(most, server.rss_mb()) - before < 100
    assert sent < 1500 * MB or status in (400, 431)  # what comes after these is thrown away for a second
    n_bytes = 0 if b"content-length: 1500" in first else 24 * MB if status == 413 else 100_000
    answer = raw(server.port, first, again * (n_bytes // len(again))).removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n")
    assert status_of(answer) == status
    assert httpx.get(server.url + "healthz").status_code == 200


def answers(port: int, sent: bytes, *, half_closes: bool = False) -> list[tuple[int, str]]:
    """Status and request id of everything that comes back."""
    received = bytearray()
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:

        def read() -> None:
            while part := connection.recv(1 << 20):
                received.extend(part)

        reader = threading.Thread(target=read)
        reader.start()
        connection.sendall(sent)
        if half_closes:
            connection.shutdown(socket.SHUT_WR)
        reader.join(60)
        assert not reader.is_alive()
    found: list[tuple[int, str]] = []
    rest = bytes(received)
    while rest:
        head, _, rest = rest.partition(b"\r\n\r\n")
        fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
        length = int(fields.get(b"content-length", b"0"))
        found.append((int(head.split()[1]), fields.get(b"x-request-id", b"").decode()))
        assert len(rest) >= length
        rest = rest[length:]
    return found


def numbered(n: int) -> bytes:
    return b"".join(GET % number for number in range(n))


LAST = b"GET /healthz HTTP/1.1\r\n" + HOST + b"x-request-id: last\r\nconnection: close\r\n\r\n"


@pytest.mark.parametrize("n", [3000, pytest.param(20_000, marks=pytest.mark.long)])
def test_requests_sent_ahead_are_answered_in_order(server: Running, n: int) -> None:
    before = server.rss_mb()
    expected = [(200, str(number)) for number in range(n)]
    assert answers(server.port, numbered(n) + LAST) == [*expected, (200, "last")]
    assert server.rss_mb() - before < 50


def test_requests_of_a_client_that_sends_no_more_are_answered(server: Running) -> None:
    assert answers(server.port, numbered(3000), half_closes=True) == [(200, str(number)) for number in range(3000)]
    assert answers(server.port, b"", half_closes=True) == []
    assert answers(server.port, numbered(3) + b"GET /hea", half_closes=True) == [
        (200, str(number)) for number in range(3)
    ]
    assert answers(server.port, numbered(3) + post(b"content-length: 9"), half_closes=True) == [
        (200, str(n)) for n in range(3)
    ]


def test_a_refusal_waits_for_the_answers_before_it(server: Running) -> None:
    """Else the refusal would be taken for the answer to another request."""
    image = make_jpeg(60, 60, seed=3)
    upload = post(b"content-length: %d" % len(image), b"x-request-id: upload") + image
    for bad, status in (
        (b"\x00\x01 no HTTP\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.1\r\nx: " + b"y" * 100_000, 431),
        (post(CHUNKED) + b"zz\r\n", 400),
        (post(CHUNKED, path=b"/encode") + chunk(1) + b"0\r\n" + b"x: y\r\n" * 20_000, 431),
    ):
        found = answers(server.port, upload + numbered(500) + bad)
        expected = [(200, "upload"), *((200, str(number)) for number in range(500))]
        # What lies within 4 KB of the fault may be refused with it, and is not begun then.
        assert len(found) > 500 - 4096 // len(GET) and found[:-1] == expected[: len(found) - 1]
        assert found[-1][0] == status, bad[:20]


def test_requests_after_a_body_that_waited(server: Running) -> None:
    sent = post(EXPECT, b"content-length: 5", b"x-request-id: first") + b"aaaaa" + numbered(2000) + LAST
    found = answers(server.port, sent)
    assert found == [(100, ""), (422, "first"), *((200, str(number)) for number in range(2000)), (200, "last")]


def test_what_is_sent_ahead_on_many_connections_fills_no_memory(server: Running) -> None:
    """Each of 100 connections sends 10,000 requests and reads nothing: they wait as bytes."""
    before = server.rss_mb()
    data = numbered(10_000)
    connections = [socket.create_connection(("127.0.0.1", server.port), timeout=0.05) for _ in range(100)]
    most = before
    for connection in connections:
        with contextlib.suppress(TimeoutError):
            connection.sendall(data)
        most = max(most, server.rss_mb())
    assert httpx.get(server.url + "healthz", timeout=20).status_code == 200
    most = max(most, server.rss_mb())
    for connection in connections:
        connection.close()
    assert most - before < 150
    assert httpx.get(server.url + "healthz", timeout=20).status_code == 200


def test_an_upgrade_is_answered_without_one_and_closed(server: Running) -> None:
    image = make_jpeg(60, 60, seed=3)
    for offer in (b"h2c", b"websocket", b"TLS/1.0"):
        fields = b"connection: Upgrade, HTTP2-Settings\r\nupgrade: " + offer + b"\r\n"
        asked = b"GET /healthz HTTP/1.1\r\n" + HOST + b"x-request-id: g\r\n" + fields + b"\r\n"
        assert answers(server.port, asked + b"a" * 100) == [(200, "g")]
        upload = post(fields.strip(), b"content-length: %d" % len(image), b"x-request-id: u") + image
        assert answers(server.port, upload) == [(400, "u")]


@pytest.mark.long
def test_a_drip_beside_a_body_is_timed(photo_index: Path) -> None:
    """Bytes that are no body, one at a time: of a chunk's size, an extension, a trailer, after an upgrade."""
    with in_thread(photo_index, body_seconds=1.0, head_seconds=1.0) as url:
        port = httpx.URL(url).port
        for first, drip in (
            (post(CHUNKED), b"0"),
            (post(CHUNKED) + b"1;", b"e"),
            (post(CHUNKED) + chunk(1) + b"0\r\nx: ", b"y"),
            (post(EXPECT, CHUNKED), chunk(1)),
            (b"GET /healthz HTTP/1.1\r\n" + HOST + b"connection: upgrade\r\nupgrade: x\r\n\r\n", b"a"),
            (GET % 1 + b"GET /hea", b"l"),
        ):
            started = time.monotonic()
            with socket.create_connection(("127.0.0.1", port), timeout=0.1) as connection, pytest.raises(OSError):
                connection.sendall(first)
                while time.monotonic() - started < 10:
                    connection.sendall(drip)
                    try:
                        if not connection.recv(65536):
                            raise ConnectionError
                    except TimeoutError:
                        pass
            assert time.monotonic() - started < 5, first
