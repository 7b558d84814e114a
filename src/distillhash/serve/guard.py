"""What every request passes before and after the application: limits, access, request ids, headers, measurements.

Plain ASGI around the whole application, so that nothing is parsed before it is allowed.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
import traceback
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request

from distillhash.serve.metrics import Metrics
from distillhash.serve.problems import MEDIA_TYPE, Problem, problem_from
from distillhash.serve.settings import Settings

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Direct = Callable[[Request], Awaitable[bytes] | None]

_PUBLIC = {"/", "/healthz", "/readyz", "/session"}
_PUBLIC_FOLDER = "/static/"
_LOCAL_NAMES = {"localhost", "127.0.0.1", "[::1]"}
_READING = {"GET", "HEAD", "OPTIONS"}
_CLOSE = {"connection": "close"}
_DRAIN_SECONDS = 10.0
_GONE = 499  # what servers write down where a client left before its answer
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


class Guard:
    """The outermost application."""

    def __init__(self, app: App, settings: Settings, metrics: Metrics, direct: Direct) -> None:
        """Wrap ``app``.

        Args:
            app: The application.
            settings: Limits and access.
            metrics: Where requests are counted.
            direct: Answers the commonest requests without the application's routing, or returns None where it is another one.
        """
        self._app, self._settings, self._metrics, self._direct = app, settings, metrics, direct
        self._names = _LOCAL_NAMES | {settings.host}
        self._active = 0
        self._held = _Held(settings.max_held)

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
        body = _Body(receive, self._settings, self._held, expected=_has_body(headers))

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                given = list(message.get("headers", ()))
                if not any(name == b"cache-control" for name, _ in given):
                    given.append((b"cache-control", b"no-store"))
                message = {**message, "headers": [*given, *_HEADERS, (b"x-request-id", request_id)]}
            elif status >= 400 and not body.complete and not message.get("more_body"):
                # A client that is still sending reads no answer: closing now would reset the connection under it.
                await send({**message, "more_body": True})
                await body.drain()
                message = {"type": "http.response.body", "body": b""}
            await send(message)

        self._active += 1
        try:
            self._check(scope, headers)
            found = self._direct(Request(scope, body.receive))
            if found is None:
                await self._app(scope, body.receive, answer)
            else:
                await respond(answer, 200, await found, b"application/json")
        except ClientDisconnect:
            status = status or _GONE
        except Exception as error:
            problem = problem_from(error)
            if problem is None:
                log.exception("request %s failed", request_id.decode())
                problem = Problem(500, "something went wrong in the server; its log has this request id")
            # The problem, its traceback and this frame hold each other: what was read would stay until garbage is collected.
            traceback.clear_frames(error.__traceback__)
            if not status:
                await respond_problem(answer, problem, request_id.decode())
        finally:
            self._active -= 1
            body.forget()
            route = str(getattr(scope.get("route"), "path", "/search" if scope["path"] == "/search" else "other"))
            self._metrics.count(scope["method"], route, status, time.perf_counter() - started)

    def _check(self, scope: Scope, headers: dict[bytes, bytes]) -> None:
        """Raise a problem unless the request may go on."""
        if self._active > self._settings.max_requests:
            raise Problem(503, f"{self._active} requests are being answered; try again", {"retry-after": "1"})
        length = headers.get(b"content-length", b"0")
        if not length.isdigit():
            raise Problem(400, "the content-length is not a number", {"connection": "close"})
        if int(length) > self._settings.max_upload:
            raise too_large(self._settings.max_upload, f"{int(length)} bytes")
        host = headers.get(b"host", b"").decode("latin-1").lower()
        if self._settings.is_local and self._settings.token is None and re.sub(r":\d+$", "", host) not in self._names:
            raise Problem(421, "this server answers to localhost only; open it under the address it printed")
        if scope["method"] not in _READING and _is_cross_site(headers, host):
            raise Problem(403, "requests that change or upload something are taken from this server's own page only")
        if (
            self._settings.token is not None
            and not _is_public(scope["path"])
            and not self._settings.admits(Headers(scope=scope))
        ):
            raise Problem(
                401, "a token is needed: send it as `Authorization: Bearer TOKEN`", {"www-authenticate": "Bearer"}
            )


class _Held:
    """Bytes of all bodies that are in memory, and how many there may be."""

    def __init__(self, most: int) -> None:
        self.most, self.now = most, 0


class _Body:
    """A request's body, counted and timed as it arrives."""

    def __init__(self, receive: Receive, settings: Settings, held: _Held, *, expected: bool) -> None:
        self._receive, self._settings, self._held = receive, settings, held
        self._counted = 0  # of this body, in what is held
        self._received = 0
        self._deadline: float | None = None
        self.complete = not expected

    async def receive(self) -> Message:
        """The next part.

        Raises:
            Problem: 413 or 408.
        """
        if self.complete:
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
            raise too_large(self._settings.max_upload, "more")
        size = len(message.get("body", b""))
        if self._held.now + size > self._held.most:
            raise Problem(503, "too many uploads are being worked on; try again", {"retry-after": "1", **_CLOSE})
        self._held.now += size
        self._counted += size
        return message

    def forget(self) -> None:
        """The request is answered."""
        self._held.now -= self._counted
        self._counted = 0

    async def drain(self) -> None:
        """Throw away what still comes, within limits; call it when the answer is on its way."""
        try:
            async with asyncio.timeout(_DRAIN_SECONDS):
                while not self.complete and self._received <= 4 * self._settings.max_upload:
                    await self._part()
        except TimeoutError:
            self.complete = True

    async def _part(self) -> Message:
        message = await self._receive()
        self._received += len(message.get("body", b""))
        self.complete = not message.get("more_body", False)
        return message


def too_large(most: int, got: str) -> Problem:
    """The answer to a body over the limit."""
    return Problem(413, f"the body may have {most} bytes at most, got {got}; send a smaller picture", _CLOSE)


async def respond(
    send: Send, status: int, body: bytes, media_type: bytes, headers: dict[str, str] | None = None
) -> None:
    """Send a whole answer."""
    given = [(name.encode(), value.encode("latin-1")) for name, value in (headers or {}).items()]
    fields = [(b"content-type", media_type), (b"content-length", str(len(body)).encode()), *given]
    await send({"type": "http.response.start", "status": status, "headers": fields})
    await send({"type": "http.response.body", "body": body})


async def respond_problem(send: Send, problem: Problem, request_id: str) -> None:
    """Send a problem document."""
    await respond(send, problem.status, problem.body(request_id), MEDIA_TYPE.encode(), problem.headers)


def _is_public(path: str) -> bool:
    return path in _PUBLIC or (path.startswith(_PUBLIC_FOLDER) and ".." not in path)


def _has_body(headers: dict[bytes, bytes]) -> bool:
    """Whether a body follows; one that waits for `100 Continue` does not until it is asked for."""
    announced = headers.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in headers
    return announced and b"expect" not in headers


def _is_cross_site(headers: dict[bytes, bytes], host: str) -> bool:
    """Whether a browser says that another site's page sends this; programs say nothing."""
    if headers.get(b"sec-fetch-site", b"none") not in (b"none", b"same-origin"):
        return True
    origin = headers.get(b"origin")
    return origin is not None and urlsplit(origin.decode("latin-1")).netloc.lower() != host
