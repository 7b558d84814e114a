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
from base64 import b64encode
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import httptools
import orjson
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from distillhash.output import escaped
from distillhash.serve.settings import MOST_HEAD_BYTES, MOST_HEADERS, Settings

PAGE = Path(__file__).parent / "page"
MEDIA_TYPE = "application/problem+json"
_PUBLIC = {"/", "/healthz", "/readyz", "/session"}
_LOCAL_NAMES = {"localhost", "127.0.0.1", "[::1]"}
_CLOSE = {"connection": "close"}
_DRAIN_SECONDS = 10.0
_LINGER_SECONDS = 1.0
_PIECE = 4096  # bytes passed on at one time: a hundred requests at most
_GONE = 499  # what servers log when a client left before its answer
_PORT = re.compile(r":\d+$")
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_INLINE = re.search(rb"<script>(.*?)</script>", (PAGE / "index.html").read_bytes())
_HASH = b64encode(sha256(_INLINE[1] if _INLINE else b"").digest())  # of the page's one script that is not a file
_POLICY = (
    b"default-src 'none'; script-src 'self' 'sha256-%b'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = [
    (b"content-security-policy", _POLICY % _HASH),
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
        document = {"type": "about:blank", "title": title, "status": self.status, "detail": escaped(self.detail)}
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
        # The path as the browser sees it, whether the proxy removed the root path or passed it on.
        root, own_path = self._settings.root_path, scope["path"]
        own_path = own_path.removeprefix(root) if own_path.startswith(root + "/") else own_path
        own_path = "/" + own_path.lstrip("/")  # a proxy that removes too little
        is_root = bool(root) and own_path == root and scope["method"] in ("GET", "HEAD")
        scope["root_path"], scope["path"] = root, root + own_path
        asks_upgrade = b"upgrade" in headers and b"upgrade" in headers.get(b"connection", b"").lower()
        status = 0
        body = _Body(self, receive, self._settings, headers)

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                given = [*message.get("headers", ()), *_HEADERS, (b"x-request-id", request_id)]
                if not any(name == b"cache-control" for name, _ in given):
                    given.append((b"cache-control", b"no-store"))
                if asks_upgrade or body.is_unread:
                    given.append((b"connection", b"close"))  # nobody will read the rest
                message = {**message, "headers": given}
            elif status >= 400 and body.is_awaited and not message.get("more_body"):
                # A client that is still sending does not read the answer, and closing now would reset its connection.
                await send({**message, "more_body": True})
                await body.drain()
                message = {"type": "http.response.body", "body": b""}
            await send(message)

        self._active += 1
        try:
            self._check(scope, headers, own_path)
            if asks_upgrade and body.is_unread:  # the parsers read no further than the head
                raise Problem(400, "a request with a body must not ask for an upgrade (curl: leave out --http2)")
            if is_root:  # the page's addresses are relative to a path that ends in a slash
                query = b"?" + scope["query_string"] if scope["query_string"] else b""
                moved = [(b"location", root.encode() + b"/" + query), (b"content-length", b"0")]
                await answer({"type": "http.response.start", "status": 308, "headers": moved})
                await answer({"type": "http.response.body"})
            else:
                await self._app(scope, body.receive, answer)
        except ClientDisconnect:
            status = status or _GONE
        except (Exception, asyncio.CancelledError) as error:
            if isinstance(error, Problem):
                problem = error
            elif isinstance(error, asyncio.CancelledError):
                problem = Problem(503, "the server is stopping", _CLOSE)
                body.give_up()
            else:
                lines = "".join(traceback.format_exception(error)).splitlines()
                log.error("\n  | ".join(map(escaped, [f"request {request_id.decode()} failed", *lines])))
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

    def _check(self, scope: Scope, headers: dict[bytes, bytes], path: str) -> None:
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
        if sum(name == b"host" for name, _ in given) > 1:  # a proxy may have looked at the other
            raise Problem(400, "the request has more than one host", _CLOSE)
        host = headers.get(b"host", b"").decode("latin-1").lower()
        if self._names is not None and _PORT.sub("", host) not in self._names:
            detail = "this server answers to localhost only; open it under the address it printed, or give it a token"
            raise Problem(421, detail)
        if scope["method"] not in ("GET", "HEAD", "OPTIONS"):
            # Browsers tell whose page sends a request; programs tell nothing. A page cannot set these headers. Browsers send the first
            # over TLS and to this machine only, and it also holds where a proxy changes the host.
            site, origin = headers.get(b"sec-fetch-site", b"none"), headers.get(b"origin")
            if site != b"same-origin" and (
                site != b"none" or (origin is not None and not _is_origin_of(host, origin.decode("latin-1").lower()))
            ):
                detail = "requests that change or upload something are taken from this server's own page only"
                raise Problem(403, detail)
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
        self._has_ended = self._is_late = False
        self.is_unread = headers.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in headers
        # Such a client sends the body only when it is asked for.
        self.waits_for_continue = headers.get(b"expect", b"").lower() == b"100-continue"

    @property
    def is_awaited(self) -> bool:
        """Whether the client is still sending, as far as one can know."""
        return self.is_unread and not self.waits_for_continue and not self._is_late

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
            self._is_late = True
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
            self.give_up()

    def give_up(self) -> None:
        """Wait for nothing more."""
        self._has_ended, self.is_unread = True, False

    async def _part(self) -> Message:
        self.waits_for_continue = False
        message = await self._receive()
        self._received += len(message.get("body", b""))
        if not message.get("more_body", False):
            self._has_ended, self.is_unread = True, False
        return message


class ServerProtocol(HttpToolsProtocol):
    """uvicorn's protocol, which tells when a request is answered."""

    answered: Callable[[], None]

    def on_response_complete(self) -> None:
        """Begin with the next request, or wait for one."""
        super().on_response_complete()
        self.answered()


class _Reader:
    """The transport as uvicorn sees it: whether it wants more is for the connection to know, which may hold data back."""

    def __init__(self, connection: "Connection", transport: asyncio.Transport) -> None:
        self._connection, self._transport = connection, transport

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def pause_reading(self) -> None:
        self._connection.is_wanted = False

    def resume_reading(self) -> None:
        self._connection.is_wanted = True
        asyncio.get_running_loop().call_soon(self._connection.pass_on)


class Connection(asyncio.Protocol):
    """One connection: bounds the time and size of a request's head, what comes beside a body, and the time a client takes to read.

    Bytes go on to the server's protocol unchanged, in small pieces, and only while no request waits there behind another: what a client
    sends ahead stays bytes. A parser beside it tells heads from bodies. What breaks a limit, and what is not HTTP, is answered with a
    problem document once the requests before it are answered, and the connection is closed.
    """

    def __init__(self, server: ServerProtocol, settings: Settings, connections: set["Connection"]) -> None:
        self._server, self._settings, self._connections = server, settings, connections
        server.answered = self.pass_on
        self._parser = httptools.HttpRequestParser(self)
        self._parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
        self.is_wanted = True  # whether the server wants more
        self._rest = bytearray()  # received and not passed on
        self._is_paused = self._has_ended = self._is_deaf = self._is_over = False
        self._refusal: bytes | None = None
        self._n_begun = 0  # requests
        self._in_head, self._in_body, self._url = True, False, b""
        self._awaits_body = False  # whether what was passed on ends within a body
        self._head_bytes = self._body_bytes = self._beside = self._since_body = 0
        self._head_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as TCP servers call it
        """Begin to wait for a request's head."""
        self._transport = transport
        self._connections.add(self)
        self._server.connection_made(_Reader(self, transport))  # type: ignore[arg-type]  # it has what a transport has
        most = self._settings.max_connections
        if len(self._connections) > most:
            self._refuse(503, f"more than {most} connections are open; try again in a moment")
        else:
            self._start_head_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clocks."""
        self._connections.discard(self)
        self._rest.clear()
        for timer in (self._head_timer, self._write_timer):
            if timer is not None:
                timer.cancel()
        self._server.connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Keep data until the server wants it."""
        if self._refusal is None and not self._is_deaf:
            self._rest += data
            self.pass_on()

    def eof_received(self) -> bool:
        """The client sends no more; what it sent is answered."""
        self._has_ended = True
        if self._is_over:
            self._transport.close()
        self.pass_on()
        return not self._transport.is_closing()

    def pass_on(self) -> None:
        """Give the server what it wants of the data that waits; it is called whenever there is more, or a request was answered."""
        if self._transport.is_closing():
            return
        while self._rest and self.is_wanted and not self._server.pipeline and self._refusal is None:
            piece = bytes(self._rest[:_PIECE])
            del self._rest[:_PIECE]
            if self._is_within_limits(piece):
                self._server.data_received(piece)
                self._awaits_body = self._in_body
        if self._refusal is not None or self._is_deaf:
            self._rest.clear()
        if not self._is_answering:
            if self._refusal is not None:
                self._hang_up(self._refusal)
                return
            if not self._rest and (self._has_ended or self._is_deaf):
                self._transport.close()
                return
        if self._is_paused != bool(self._rest or not self.is_wanted):
            self._is_paused = not self._is_paused
            (self._transport.pause_reading if self._is_paused else self._transport.resume_reading)()

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
        self._n_begun += 1
        self._in_head, self._url = True, b""
        self._head_bytes = self._body_bytes = self._beside = self._since_body = 0
        if self._head_timer is None:
            self._start_head_timer()

    def on_url(self, url: bytes) -> None:
        """The parser: a part of the URL."""
        self._url += url

    def on_headers_complete(self) -> None:
        """The parser: the head is complete. An error here makes it an error of the parser."""
        httptools.parse_url(self._url).path.decode("ascii")
        self._in_head, self._in_body = False, True
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def on_body(self, body: bytes) -> None:
        """The parser: a part of the body."""
        self._body_bytes += len(body)

    def on_message_complete(self) -> None:
        """The parser: the request is complete."""
        self._in_body = False

    @property
    def _is_answering(self) -> bool:
        """Whether the server still answers requests, other than one whose body can only be waited for."""
        cycle = self._server.cycle
        if cycle is None or cycle.response_complete:
            return False
        return not self._awaits_body or bool(self._server.pipeline) or cycle.response_started

    def _is_within_limits(self, piece: bytes) -> bool:
        """Look at the next piece of data before the server does, whose parser would keep a head of any size."""
        n_begun, n_body, was_in_head = self._n_begun, self._body_bytes, self._in_head
        try:
            self._parser.feed_data(piece)
        except httptools.HttpParserUpgrade:  # the server answers as if no upgrade had been asked for
            self._is_deaf = True  # and neither parser reads on
        except httptools.HttpParserError:
            self._refuse(400, "this is not an HTTP/1.1 request")
            return False
        if self._n_begun != n_begun:
            return True
        if was_in_head and self._in_head:
            self._head_bytes += len(piece)
            if self._head_bytes > MOST_HEAD_BYTES:
                self._refuse(431, f"the request's head is over {MOST_HEAD_BYTES} bytes; send fewer or shorter headers")
        elif self._in_body and not was_in_head:
            n_new = self._body_bytes - n_body
            self._beside += len(piece) - n_new
            self._since_body = 0 if n_new else self._since_body + len(piece)
            if self._since_body > MOST_HEAD_BYTES or self._beside > MOST_HEAD_BYTES + 8 * self._body_bytes:
                self._refuse(431, f"over {MOST_HEAD_BYTES} bytes of trailers or chunk extensions; send the body alone")
        return self._refusal is None

    def _start_head_timer(self) -> None:
        self._head_timer = asyncio.get_running_loop().call_later(self._settings.head_seconds, self._head_is_late)

    def _head_is_late(self) -> None:
        if self._is_answering:  # and so does not read what is perhaps there
            self._start_head_timer()
        else:
            self._refuse(408, f"the request's head did not arrive within {self._settings.head_seconds:g} s")

    def _refuse(self, status: int, detail: str) -> None:
        """Answer with a problem and close, now or when the requests before are answered."""
        if self._transport.is_closing() or self._refusal is not None:
            return
        request_id = secrets.token_hex(8)
        body = Problem(status, detail).body(request_id)
        head = (
            f"HTTP/1.1 {status} {http.HTTPStatus(status).phrase}\r\ncontent-type: {MEDIA_TYPE}\r\ncontent-length: {len(body)}\r\n"
            f"x-request-id: {request_id}\r\nx-content-type-options: nosniff\r\nconnection: close\r\n\r\n"
        )
        self._refusal = head.encode("ascii") + body
        self.pass_on()

    def _hang_up(self, last: bytes) -> None:
        """Send a last answer; close when the client had time to read it, because closing with data unread resets the connection."""
        if self._is_over:
            return
        self._is_over = True
        self._server.connection_lost(ConnectionAbortedError())  # it has nothing more to say
        self._transport.write(last)
        if self._has_ended or len(self._connections) > self._settings.max_connections:
            self._transport.close()
            return
        if self._is_paused:
            self._transport.resume_reading()
        if self._transport.can_write_eof():
            self._transport.write_eof()
        asyncio.get_running_loop().call_later(_LINGER_SECONDS, self._transport.abort)


def _is_origin_of(host: str, origin: str) -> bool:
    """Whether a page of ``origin`` belongs to ``host``, which may name the port that its scheme has anyway."""
    scheme, _, place = origin.partition("://")
    usual = {"http": ":80", "https": ":443"}.get(scheme, "")
    return bool(usual) and place.removesuffix(usual) == host.removesuffix(usual)


def _too_large(most: int, got: str) -> Problem:
    return Problem(413, f"the body may have {most} bytes at most, got {got}; send a smaller picture", _CLOSE)
