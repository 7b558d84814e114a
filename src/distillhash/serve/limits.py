"""What every connection and every request is held to: size, time, number, access; and the answers to those that break a limit.

:class:`Connection` stands before uvicorn's protocol and bounds what arrives before a request is complete enough to reach an
application. :class:`Limits` is ASGI middleware and bounds everything after that. Errors are RFC 9457 problem documents.
"""

import asyncio
import http
import logging
import re
import secrets
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

import httptools
import orjson
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from distillhash.serve.settings import MOST_HEAD_BYTES, MOST_HEADERS, Settings

MEDIA_TYPE = "application/problem+json"
_PUBLIC = {"/", "/healthz", "/readyz", "/session"}
_LOCAL_NAMES = {"localhost", "127.0.0.1", "[::1]"}
_CLOSE = {"connection": "close"}
_DRAIN_SECONDS = 10.0
_GONE = 499  # what servers log when a client left before its answer
_PORT = re.compile(r":\d+$")
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_HEADERS = [
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
        b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), geolocation=(), microphone=()"),
]

log = logging.getLogger("distillhash.serve")


class Problem(Exception):  # noqa: N818  # RFC 9457 calls it a problem
    """An answer that is an error: HTTP status, one sentence of detail, headers, further members."""

    def __init__(self, status: int, detail: str, headers: Mapping[str, str] | None = None, **members: Any) -> None:
        super().__init__(detail)
        self.status, self.detail, self.headers, self.members = status, detail, dict(headers or {}), members

    def body(self, request_id: str) -> bytes:
        """The problem document."""
        title = http.HTTPStatus(self.status).phrase
        document = {"type": "about:blank", "title": title, "status": self.status, "detail": self.detail}
        return orjson.dumps(document | {"request_id": request_id} | self.members)


class Metrics:
    """Counts and times for Prometheus, one registry a server: what ``GET /metrics`` shows."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "distillhash_http_requests", "Requests answered.", ["method", "route", "status"], registry=self.registry
        )
        seconds, sizes = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10), (1, 2, 4, 8, 16, 32, 64)
        self.seconds = Histogram(
            "distillhash_http_request_seconds", "Time to answer.", ["route"], buckets=seconds, registry=self.registry
        )
        self._batches = Histogram(
            "distillhash_batch_size", "Jobs computed together.", ["queue"], buckets=sizes, registry=self.registry
        )
        self._waiting = Gauge("distillhash_waiting", "Jobs not yet answered.", ["queue"], registry=self.registry)
        self.ready = Gauge("distillhash_ready", "1 when warm-up is over.", registry=self.registry)

    def queue(self, name: str, waiting: Callable[[], int]) -> Callable[[int], None]:
        """Show the length of a queue; returns what takes the sizes of its batches."""
        self._waiting.labels(name).set_function(waiting)
        return self._batches.labels(name).observe


class Limits:
    """ASGI middleware around the whole application, so that nothing is parsed before it is allowed."""

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics) -> None:
        self._app, self._settings, self._metrics = app, settings, metrics
        # Without a token only this machine may connect, and a web page must not get in by another name for it.
        self._names = _LOCAL_NAMES | {settings.host} if settings.is_local and settings.token is None else None
        self._active = 0
        self.held = 0  # bytes of all bodies in memory

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        headers = dict(scope["headers"])
        request_id = headers.get(b"x-request-id", b"")
        if not _REQUEST_ID.fullmatch(request_id):
            request_id = secrets.token_hex(8).encode()
        scope.setdefault("state", {})["request_id"] = request_id.decode()
        status = 0
        body = _Body(self, receive, self._settings, headers)

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                given = [*message.get("headers", ()), *_HEADERS, (b"x-request-id", request_id)]
                if not any(name == b"cache-control" for name, _ in given):
                    given.append((b"cache-control", b"no-store"))
                if body.is_unread and (status < 400 or body.waits_for_continue):
                    given.append((b"connection", b"close"))  # nobody will read the rest
                message = {**message, "headers": given}
            elif status >= 400 and body.is_unread and not body.waits_for_continue and not message.get("more_body"):
                # A client that is still sending does not read the answer, and closing now would reset its connection.
                await send({**message, "more_body": True})
                await body.drain()
                message = {"type": "http.response.body", "body": b""}
            await send(message)

        self._active += 1
        try:
            self._check(scope, headers)
            await self._app(scope, body.receive, answer)
        except ClientDisconnect:
            status = status or _GONE
        except Exception as error:
            if isinstance(error, Problem):
                problem = error
            else:
                log.exception("request %s failed", request_id.decode())
                problem = Problem(500, "something went wrong in the server; its log has this request id")
            traceback.clear_frames(error.__traceback__)
            if not status:
                content = problem.body(request_id.decode())
                fields = {"content-type": MEDIA_TYPE, "content-length": str(len(content)), **problem.headers}
                raw = [(name.encode(), value.encode("latin-1")) for name, value in fields.items()]
                await answer({"type": "http.response.start", "status": problem.status, "headers": raw})
                await answer({"type": "http.response.body", "body": content})
        finally:
            self._active -= 1
            self.held -= body.held
            route = str(getattr(scope.get("route"), "path", "other"))
            self._metrics.requests.labels(scope["method"], route, status).inc()
            self._metrics.seconds.labels(route).observe(time.perf_counter() - started)

    def _check(self, scope: Scope, headers: dict[bytes, bytes]) -> None:
        """Raise a problem unless the request may go on."""
        settings, given = self._settings, scope["headers"]
        size = len(scope["raw_path"]) + len(scope["query_string"])
        size += sum([len(name) + len(value) + 4 for name, value in given])
        if len(given) > MOST_HEADERS or size > MOST_HEAD_BYTES:
            limits = f"{MOST_HEADERS} and {MOST_HEAD_BYTES}"
            detail = f"the request has {len(given)} headers in {size} bytes, over the limits of {limits}"
            raise Problem(431, detail, _CLOSE)
        if self._active > settings.max_requests:
            raise Problem(503, f"{self._active} requests are being answered; try again", {"retry-after": "1"})
        length = headers.get(b"content-length", b"0")
        if not length.isdigit():
            raise Problem(400, "the content-length is not a number", _CLOSE)
        if int(length) > settings.max_upload:
            raise _too_large(settings.max_upload, f"{int(length)} bytes")
        host = headers.get(b"host", b"").decode("latin-1").lower()
        if self._names is not None and _PORT.sub("", host) not in self._names:
            raise Problem(421, "this server answers to localhost only; open it under the address it printed")
        if scope["method"] not in ("GET", "HEAD", "OPTIONS"):
            # Browsers tell whose page sends a request; programs tell nothing.
            origin = headers.get(b"origin")
            if headers.get(b"sec-fetch-site", b"none") not in (b"none", b"same-origin") or (
                origin is not None and urlsplit(origin.decode("latin-1")).netloc.lower() != host
            ):
                detail = "requests that change or upload something are taken from this server's own page only"
                raise Problem(403, detail)
        path = scope["path"]
        is_public = path in _PUBLIC or (path.startswith("/static/") and ".." not in path)
        if not is_public and not settings.admits(Headers(scope=scope)):
            detail = "a token is needed: send it as `Authorization: Bearer TOKEN`"
            raise Problem(401, detail, {"www-authenticate": "Bearer"})


class _Body:
    """A request's body, counted and timed as it arrives, whatever its headers announce."""

    def __init__(self, limits: Limits, receive: Receive, settings: Settings, headers: dict[bytes, bytes]) -> None:
        self._limits, self._receive, self._settings = limits, receive, settings
        self.held = 0  # bytes of this body in memory
        self._received = 0
        self._deadline: float | None = None
        self._has_ended = False
        self.is_unread = headers.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in headers
        self.waits_for_continue = b"expect" in headers  # the client sends the body only when it is asked for

    async def receive(self) -> Message:
        """The next part; raises a problem where it is too large or too late."""
        if self._has_ended:
            return await self._receive()
        seconds = self._settings.body_seconds
        if self._deadline is None:
            self._deadline = asyncio.get_running_loop().time() + seconds
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._part()
        except TimeoutError:
            raise Problem(408, f"the body did not arrive within {seconds:g} s", _CLOSE) from None
        if self._received > self._settings.max_upload:
            raise _too_large(self._settings.max_upload, "more")
        size = len(message.get("body", b""))
        if self._limits.held + size > self._settings.max_held:
            raise Problem(503, "too many uploads are being worked on; try again", {"retry-after": "1", **_CLOSE})
        self._limits.held += size
        self.held += size
        return message

    async def drain(self) -> None:
        """Throw away what still arrives, within limits; call it when the answer is sent."""
        try:
            async with asyncio.timeout(_DRAIN_SECONDS):
                while not self._has_ended and self._received <= 4 * self._settings.max_upload:
                    await self._part()
        except TimeoutError:
            self._has_ended, self.is_unread = True, False

    async def _part(self) -> Message:
        self.waits_for_continue = False
        message = await self._receive()
        self._received += len(message.get("body", b""))
        if not message.get("more_body", False):
            self._has_ended, self.is_unread = True, False
        return message


class Connection(asyncio.Protocol):
    """One connection: bounds the time and size of a request's head, and the time a client takes to read an answer.

    All bytes go on to the server's protocol unchanged. A parser beside it only tells heads from bodies. What breaks a limit, and what is
    not HTTP, is answered with a problem document, and the connection is closed.
    """

    def __init__(self, server: asyncio.Protocol, settings: Settings, connections: set["Connection"]) -> None:
        self._server, self._settings, self._connections = server, settings, connections
        self._parser = httptools.HttpRequestParser(self)
        self._parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
        self._in_head, self._head_bytes, self._url = True, 0, b""
        self._head_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as TCP servers call it
        """Begin to wait for a request's head."""
        self._transport = transport
        self._connections.add(self)
        self._server.connection_made(transport)
        most = self._settings.max_connections
        if len(self._connections) > most:
            self._refuse(503, f"more than {most} connections are open; try again in a moment")
        else:
            self._start_head_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clocks."""
        self._connections.discard(self)
        for timer in (self._head_timer, self._write_timer):
            if timer is not None:
                timer.cancel()
        self._server.connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Pass data on while it keeps the limits: the server's parser would keep a head of any size."""
        if self._transport.is_closing():
            return
        was_in_head = self._in_head
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass  # the server answers as if no upgrade had been asked for
        except httptools.HttpParserError:
            self._refuse(400, "this is not an HTTP/1.1 request")
            return
        if self._in_head and was_in_head:  # a head that begins in this data may follow the body of the request before
            self._head_bytes += len(data)
            if self._head_bytes > MOST_HEAD_BYTES:
                self._refuse(431, f"the request's head is over {MOST_HEAD_BYTES} bytes; send fewer or shorter headers")
                return
        self._server.data_received(data)

    def eof_received(self) -> bool | None:
        """The client sends no more."""
        return self._server.eof_received()

    def pause_writing(self) -> None:
        """The client does not read its answers; it is given some time."""
        self._server.pause_writing()
        loop = asyncio.get_running_loop()
        self._write_timer = loop.call_later(self._settings.write_seconds, self._transport.abort)

    def resume_writing(self) -> None:
        """The client reads again."""
        if self._write_timer is not None:
            self._write_timer.cancel()
        self._server.resume_writing()

    def on_message_begin(self) -> None:
        """The parser: a request begins."""
        self._in_head, self._head_bytes, self._url = True, 0, b""
        if self._head_timer is None:
            self._start_head_timer()

    def on_url(self, url: bytes) -> None:
        """The parser: a part of the URL."""
        self._url += url

    def on_headers_complete(self) -> None:
        """The parser: the head is complete. An error here makes it an error of the parser."""
        httptools.parse_url(self._url).path.decode("ascii")
        self._in_head = False
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _start_head_timer(self) -> None:
        seconds = self._settings.head_seconds
        self._head_timer = asyncio.get_running_loop().call_later(
            seconds, self._refuse, 408, f"the request's head did not arrive within {seconds:g} s"
        )

    def _refuse(self, status: int, detail: str) -> None:
        if self._transport.is_closing():
            return
        request_id = secrets.token_hex(8)
        body = Problem(status, detail).body(request_id)
        head = (
            f"HTTP/1.1 {status} {http.HTTPStatus(status).phrase}\r\ncontent-type: {MEDIA_TYPE}\r\ncontent-length: {len(body)}\r\n"
            f"x-request-id: {request_id}\r\nx-content-type-options: nosniff\r\nconnection: close\r\n\r\n"
        )
        self._transport.write(head.encode("ascii") + body)
        self._transport.close()


def _too_large(most: int, got: str) -> Problem:
    return Problem(413, f"the body may have {most} bytes at most, got {got}; send a smaller picture", _CLOSE)
