"""Requests that nobody sends by accident: each gets the right answer, and the server goes on."""

import asyncio
import json
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from distillhash.index import open_index
from distillhash.serve.limits import Limits, Metrics, Problem
from distillhash.serve.settings import Settings
from image_factory import make_bomb, make_jpeg, make_png, make_truncated
from serving import Running, in_thread, raw, status_of

HOST = b"host: 127.0.0.1\r\n"
MULTIPART = {"content-type": "multipart/form-data; boundary=x"}


def post(path: str, *fields: str, body: bytes = b"") -> bytes:
    lines = "".join(f"{field}\r\n" for field in fields)
    return f"POST {path} HTTP/1.1\r\n".encode() + HOST + lines.encode("latin-1") + b"\r\n" + body


def chunks(n: int, size: int) -> Iterator[bytes]:
    for _ in range(n):
        yield b"%x\r\n" % size + b"a" * size + b"\r\n"


def upload(client: httpx.Client, content: bytes, path: str = "/search") -> httpx.Response:
    return client.post(path, files={"file": ("x.jpg", content)})


def multipart(*parts: bytes, end: bytes = b"--x--\r\n") -> bytes:
    return b"".join(b"--x\r\n" + part + b"\r\n" for part in parts) + end


FILE = b'content-disposition: form-data; name="file"; filename="a"\r\n\r\n'
TEXT_FILE = b'content-disposition: form-data; name="file"\r\n\r\ntext'
OTHER = b'content-disposition: form-data; name="other"; filename="b"\r\n\r\nx'
POLYGLOT_SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'
GIF_SCRIPT = b"GIF89a/*\x00\x00\x00\x00*/=1;alert(1)//"

CASES: dict[str, tuple[int, Callable[[httpx.Client], httpx.Response]]] = {
    "not an image": (422, lambda c: upload(c, b"hello, I am text")),
    "empty file": (422, lambda c: upload(c, b"")),
    "truncated image": (422, lambda c: upload(c, make_truncated())),
    "decompression bomb": (422, lambda c: upload(c, make_bomb())),
    "bomb of 4 billion pixels, added": (422, lambda c: upload(c, make_bomb(65_500, 65_500), "/items")),
    "polyglot: SVG that reads a file": (422, lambda c: upload(c, POLYGLOT_SVG)),
    "polyglot: a GIF that is a script": (422, lambda c: upload(c, GIF_SCRIPT)),
    "wrong type: id": (422, lambda c: c.post("/search?id=abc")),
    "wrong type: k": (422, lambda c: c.post("/search?id=1&k=ten")),
    "huge k": (422, lambda c: c.post("/search?id=1&k=1000000000")),
    "k of 5,000 digits": (422, lambda c: c.post(f"/search?id=1&k={'9' * 5000}")),
    "negative k": (422, lambda c: c.post("/search?id=1&k=-1")),
    "negative radius": (422, lambda c: c.post("/search?id=1&radius=-1")),
    "id beyond 64 bits": (422, lambda c: c.get(f"/items/{2**64}")),
    "id that is not there": (404, lambda c: c.get("/items/123456")),
    "traversal in an id": (404, lambda c: c.get("/items/..%2f..%2f..%2fetc%2fpasswd/image")),
    "traversal with backslashes": (422, lambda c: c.get("/items/..%5c..%5cetc%5cpasswd")),
    "traversal in a static file": (404, lambda c: c.get("/static/..%2f..%2fapp.py")),
    "NUL in a path": (422, lambda c: c.get("/items/1%00")),
    "unknown route": (404, lambda c: c.get("/admin")),
    "unknown method on a route": (405, lambda c: c.put("/search?id=1")),
    "nothing to search": (422, lambda c: c.post("/search")),
    "two things to search": (422, lambda c: c.post("/search?id=1&code=00")),
    "an image and an id": (422, lambda c: c.post("/search?id=1", files={"file": make_png()})),
    "code of another length": (422, lambda c: c.post("/search?code=ff")),
    "code that is not hexadecimal": (422, lambda c: c.post("/search?code=zzzzzzzzzzzzzzzz")),
    "embedding for a model of images": (422, lambda c: c.post("/encode", json={"embedding": [0.5]})),
    "NaN embedding": (
        400,
        lambda c: c.post("/encode", content='{"embedding": [NaN]}', headers={"content-type": "application/json"}),
    ),
    "JSON nested 100,000 deep": (
        400,
        lambda c: c.post("/encode", content="[" * 100_000, headers={"content-type": "application/json"}),
    ),
    "JSON of 2 MB": (
        413,
        lambda c: c.post("/encode", content="[" + "1," * 2**20 + "1]", headers={"content-type": "application/json"}),
    ),
    "unknown content type": (
        415,
        lambda c: c.post("/encode", content="a: 1", headers={"content-type": "application/yaml"}),
    ),
    "URL to fetch": (
        415,
        lambda c: c.post("/search", data={"url": "http://169.254.169.254/latest/meta-data"}),
    ),
    "multipart without a boundary": (
        400,
        lambda c: c.post("/encode", content=b"x", headers={"content-type": "multipart/form-data"}),
    ),
    "multipart cut off in its head": (
        422,
        lambda c: c.post("/encode", content=b"--x\r\nconten", headers=MULTIPART),
    ),
    "multipart cut off in its file": (
        422,
        lambda c: c.post("/encode", content=multipart(FILE + make_png(), end=b""), headers=MULTIPART),
    ),
    "file field that is text": (422, lambda c: c.post("/encode", content=multipart(TEXT_FILE), headers=MULTIPART)),
    "two files": (400, lambda c: c.post("/encode", content=multipart(OTHER, FILE + make_png()), headers=MULTIPART)),
    "1,000 fields": (
        400,
        lambda c: c.post("/encode", content=multipart(*[TEXT_FILE.replace(b"file", b"f")] * 1000), headers=MULTIPART),
    ),
    "oversized, announced": (413, lambda c: upload(c, b"\xff\xd8\xff" + bytes(21 * 2**20))),
    "page of another site": (403, lambda c: c.post("/search?id=1", headers={"origin": "https://evil.example"})),
    "page of another site, by fetch metadata": (
        403,
        lambda c: c.delete("/items/1", headers={"sec-fetch-site": "cross-site"}),
    ),
    "another host's name (DNS rebinding)": (421, lambda c: c.get("/stats", headers={"host": "evil.example"})),
    "header of 40 KB": (431, lambda c: c.get("/stats", headers={"x-large": "a" * 40_000})),
    "150 headers": (431, lambda c: c.get("/stats", headers={f"x-{i}": "a" for i in range(150)})),
}

BODIES = [b"a" * 65536] * 400

RAW: dict[str, tuple[int, list[bytes]]] = {
    "not HTTP": (400, [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 hello\r\n\r\n"]),
    "no host": (421, [b"GET /stats HTTP/1.1\r\n\r\n"]),
    "two hosts": (400, [b"GET /stats HTTP/1.1\r\nhost: evil\r\nhost: localhost\r\n\r\n"]),
    "content-length that is no number": (400, [post("/search", "content-length: ten")]),
    "negative content-length": (400, [post("/search", "content-length: -5")]),
    "two content-lengths": (400, [post("/search", "content-length: 5", "content-length: 6", body=b"abcde")]),
    "length and chunks (smuggling)": (
        400,
        [post("/search", "content-length: 5", "transfer-encoding: chunked", body=b"0\r\n\r\n")],
    ),
    "oversized, in chunks without a length": (
        413,
        [post("/search", "transfer-encoding: chunked", "content-type: image/jpeg"), *chunks(400, 65536), b"0\r\n\r\n"],
    ),
    "oversized, announced, still sending": (
        413,
        [post("/search", f"content-length: {400 * 65536}", "content-type: image/jpeg"), *BODIES],
    ),
    "a terabyte, announced": (413, [post("/search", "content-length: 1099511627776")]),
    "chunk of a size that is no number": (
        400,
        [post("/search", "transfer-encoding: chunked", "content-type: image/jpeg", body=b"zz\r\nabc\r\n")],
    ),
    "header flood": (431, [b"GET /stats HTTP/1.1\r\n" + HOST, *[b"x: " + b"y" * 1000 + b"\r\n"] * 200]),
    "endless header": (431, [b"GET /stats HTTP/1.1\r\nx: ", *[b"y" * 4096] * 100]),
    "endless request line": (431, [b"GET /", *[b"y" * 4096] * 100]),
    "URL without an end": (400, [b"GET http://[ HTTP/1.1\r\n" + HOST + b"\r\n"]),
    "path of other bytes": (400, [b"GET /\xff\xfe HTTP/1.1\r\n" + HOST + b"\r\n"]),
    "100 Continue, then a terabyte": (413, [post("/search", "expect: 100-continue", "content-length: 1099511627776")]),
}


@pytest.fixture(autouse=True)
def _goes_on(request: pytest.FixtureRequest) -> Iterator[None]:
    """After every request of this file the server still answers, exactly."""
    yield
    if "client" in request.fixturenames:
        answer = request.getfixturevalue("client").post("/search?id=3&k=2")
        assert answer.status_code == 200 and answer.json()["results"][0] | {"id": 3, "distance": 0}


@pytest.mark.parametrize("name", CASES)
def test_hostile_request(client: httpx.Client, name: str) -> None:
    status, send = CASES[name]
    answer = send(client)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    document = answer.json()
    assert document["status"] == status and document["detail"]
    assert "Traceback" not in answer.text and "/src/" not in answer.text


@pytest.mark.parametrize("name", RAW)
def test_hostile_bytes(server: Running, client: httpx.Client, name: str) -> None:
    status, parts = RAW[name]
    assert status_of(raw(server.port, *parts)) == status


def test_memory_does_not_follow_what_is_sent(server: Running, client: httpx.Client) -> None:
    endless = [post("/search", "transfer-encoding: chunked", "content-type: image/jpeg"), *chunks(1600, 65536)]
    raw(server.port, *endless)
    before = server.rss_mb()
    for _ in range(5):
        assert status_of(raw(server.port, *endless)) == 413  # 100 MB each
    assert server.rss_mb() - before < 60


def test_a_body_after_the_answer_ends_the_connection(server: Running, client: httpx.Client) -> None:
    """Nobody reads the body of a GET; the server answers, then hangs up on whoever keeps sending one."""
    head = b"GET /healthz HTTP/1.1\r\n" + HOST + b"transfer-encoding: chunked\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(head)
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        with pytest.raises(OSError):
            for chunk in chunks(2000, 65536):
                connection.sendall(chunk)


def test_bodies_that_wait_for_continue_are_counted_and_timed(photo_index: Path) -> None:
    with in_thread(photo_index, body_seconds=1.0, max_upload=1_000_000) as url:
        port = int(url.rstrip("/").rpartition(":")[2])
        head = post("/search", "expect: 100-continue", "transfer-encoding: chunked", "content-type: image/jpeg")
        for parts, pause, status in ((chunks(400, 65536), 0.0, 413), (chunks(12, 1), 0.2, 408)):
            go_on, _, answer = raw(port, head, *parts, pause=pause).partition(b"\r\n\r\n")
            assert go_on == b"HTTP/1.1 100 Continue" and status_of(answer) == status
        started = time.monotonic()
        refused = post("/search?k=0", "expect: 100-continue", "content-length: 5000", "content-type: image/jpeg")
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            connection.sendall(refused)
            answer = b""
            while chunk := connection.recv(65536):  # until it is closed: nobody knows whether the body will come
                answer += chunk
        assert status_of(answer) == 422 and time.monotonic() - started < 3


def test_connections_are_counted(photo_index: Path) -> None:
    with in_thread(photo_index, max_connections=3) as url:
        port = int(url.rstrip("/").rpartition(":")[2])
        time.sleep(0.3)  # for the connection that found the server ready to end
        idle = [socket.create_connection(("127.0.0.1", port)) for _ in range(3)]
        time.sleep(0.3)
        assert status_of(raw(port)) == 503
        for connection in idle:
            connection.close()
        time.sleep(0.3)
        assert httpx.get(url + "healthz").status_code == 200


@pytest.mark.long
def test_slow_clients_are_dropped(photo_index: Path) -> None:
    with in_thread(photo_index, head_seconds=1.0, body_seconds=1.0) as url:
        port = int(url.rstrip("/").rpartition(":")[2])
        started = time.monotonic()
        assert status_of(raw(port, b"GET /sta")) == 408
        assert status_of(raw(port, *[b"GET /stats HTTP/1.1\r\n", *[b"x: y\r\n"] * 8], pause=0.3)) == 408
        assert raw(port, pause=0.1) == b"" or status_of(raw(port)) == 408  # a connection without a request
        slow = [post("/search", "content-length: 5000", "content-type: image/jpeg"), *[b"a"] * 12]
        assert status_of(raw(port, *slow, pause=0.2)) == 408
        assert time.monotonic() - started < 20
        assert httpx.post(url + "search?id=1").status_code == 200


def test_a_client_that_does_not_read_is_dropped(own_index: Path) -> None:
    with in_thread(own_index, write_seconds=1.0) as url:
        port = int(url.rstrip("/").rpartition(":")[2])
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(("127.0.0.1", port))
            connection.settimeout(20)
            connection.sendall(post("/search?id=1&k=60") * 500)  # pipelined: megabytes of answers
            time.sleep(3)
            received = 0
            with pytest.raises(ConnectionError):
                while chunk := connection.recv(65536):
                    received += len(chunk)
                raise ConnectionError  # closed in order is as good
            assert received < 4_000_000


def test_too_many_at_once_get_503(photo_index: Path) -> None:
    with in_thread(photo_index, max_requests=2) as url:
        port = int(url.rstrip("/").rpartition(":")[2])
        slow = [socket.create_connection(("127.0.0.1", port)) for _ in range(2)]
        for connection in slow:
            connection.sendall(post("/search", "content-length: 5000", "content-type: image/jpeg"))
        time.sleep(0.3)
        answer = httpx.get(url + "stats")
        assert answer.status_code == 503 and answer.headers["retry-after"]
        assert answer.headers["content-type"] == "application/problem+json"
        for connection in slow:
            connection.close()
        time.sleep(0.3)
        assert httpx.get(url + "stats").status_code == 200


def test_bodies_have_a_common_limit(photo_index: Path) -> None:
    with in_thread(photo_index, max_held=300_000) as url:
        port = int(url.rstrip("/").rpartition(":")[2])
        head = post("/search", "content-length: 250000", "content-type: image/jpeg")
        with socket.create_connection(("127.0.0.1", port)) as slow:
            slow.sendall(head + b"\xff" * 200_000)
            time.sleep(0.3)
            answer = httpx.post(url + "encode", files={"file": make_jpeg() + bytes(150_000)})
            assert answer.status_code == 503 and answer.headers["retry-after"]
            assert httpx.post(url + "encode", files={"file": make_jpeg()}).status_code == 200
        time.sleep(0.3)
        assert httpx.post(url + "encode", files={"file": make_jpeg() + bytes(150_000)}).status_code == 200


def test_uploads_need_no_temporary_files(photo_index: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    content = make_jpeg() + bytes(5_000_000)
    with in_thread(photo_index) as url:
        answer = httpx.post(url + "encode", files={"file": content})
        assert answer.status_code == 200
        assert answer.json() == httpx.post(url + "encode", files={"file": make_jpeg()}).json()


def test_pictures_are_shown_as_pictures_only(server: Running, client: httpx.Client) -> None:
    """A file that is a JPEG and something else too comes as a JPEG that runs nothing."""
    headers = client.get("/items/1/image").headers
    assert headers["content-type"] == "image/jpeg" and headers["x-content-type-options"] == "nosniff"
    assert any("sandbox" in value for name, value in headers.multi_items() if name == "content-security-policy")
    both = make_jpeg(60, 60, seed=9) + b"<script>alert(1)</script>"
    assert upload(client, both).status_code == 200


def test_k_and_candidates_are_cut_to_what_there_is(server: Running, client: httpx.Client, photo_index: Path) -> None:
    """The whole index, as brute force orders it, however much more is asked for."""
    content = make_jpeg(70, 50, seed=12)
    code = client.post("/encode", files={"file": content}).json()["code"]
    with open_index(photo_index) as index:
        items = index.get(index.ids().tolist())
    wanted = int(code, 16)
    order = sorted(((int(item.code.packed.tobytes().hex(), 16) ^ wanted).bit_count(), item.id) for item in items)
    for options in ("k=10000", "k=61", "k=10000&radius=65536", "k=60"):
        found = client.post(f"/search?{options}", files={"file": content}).json()
        assert [(row["distance"], row["id"]) for row in found["results"]] == order and not found["truncated"]
    for options in ("k=1000&rerank=projection", "k=1000&rerank=projection&candidates=10000"):
        found = client.post(f"/search?{options}", files={"file": content}).json()
        assert sorted((row["distance"], row["id"]) for row in found["results"]) == order
    for options in (
        "k=10001",
        f"k={2**63}",
        "radius=65537",
        f"radius={10**30}",
        "k=5&rerank=projection&candidates=10001",
    ):
        assert client.post(f"/search?{options}", files={"file": content}).status_code == 422


def test_logs_and_problems_are_escaped(caplog: pytest.LogCaptureFixture) -> None:
    """An error whose text holds a line and an escape sequence of somebody else's, through the middleware."""
    text = "no such file\nrequest 0 failed: forged\x1b[31m\u202e"

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        raise OSError(text) if scope["path"] == "/log" else Problem(422, text)

    limits = Limits(application, Settings(), Metrics())
    for path in ("/log", "/problem"):
        sent: list[Any] = []

        async def send(message: Any, sent: list[Any] = sent) -> None:
            sent.append(message)

        async def receive() -> Any:
            return {"type": "http.request"}

        scope = {
            "type": "http",
            "method": "GET",
            "path": path,
            "raw_path": b"",
            "query_string": b"",
            "headers": [(b"host", b"localhost")],
        }
        asyncio.run(limits(scope, receive, send))
        problem = json.loads(sent[-1]["body"])
        assert problem["status"] == {"/log": 500, "/problem": 422}[path]
        assert problem["detail"].isprintable()
    [record] = caplog.records
    said = record.getMessage()
    assert said.replace("\n", "").isprintable()
    assert all(line.startswith("  | ") for line in said.split("\n")[1:]) and "forged" in said
