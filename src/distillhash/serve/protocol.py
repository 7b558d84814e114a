"""uvicorn's HTTP protocol with the limits it leaves to proxies: size and time of a request's head, idle readers, unread bodies."""

from __future__ import annotations

import asyncio
import secrets
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from distillhash.serve.problems import MEDIA_TYPE, Problem

MOST_HEAD_BYTES = 32 * 1024
MOST_HEADERS = 100
MOST_CONNECTIONS = 1000
HEAD_SECONDS = 10.0
WRITE_SECONDS = 60.0


class BoundedProtocol(HttpToolsProtocol):
    """One connection. What breaks a limit is answered with a problem document where that is still possible, and closed."""

    _in_head = True
    _head_bytes = 0
    _head_timer: asyncio.TimerHandle | None = None
    _write_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        """Begin to wait for a request's head."""
        super().connection_made(transport)
        if len(self.connections) > MOST_CONNECTIONS:
            self._refuse(503, f"more than {MOST_CONNECTIONS} connections are open; try again in a moment")
            return
        self._start_head_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clocks."""
        self._stop_head_timer()
        self._stop_write_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse, and count what belongs to an unfinished head: the parser itself would keep any amount."""
        super().data_received(data)
        if self._in_head and not self.transport.is_closing():
            self._head_bytes += len(data)
            if self._head_bytes > MOST_HEAD_BYTES:
                self._refuse(431, f"the request's head is over {MOST_HEAD_BYTES} bytes; send fewer or shorter headers")

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self._in_head, self._head_bytes = True, 0
        if self._head_timer is None:
            self._start_head_timer()

    def on_headers_complete(self) -> None:
        """The head is there: hand it on if it is within the limits."""
        self._in_head = False
        self._stop_head_timer()
        if self.transport.is_closing():
            return
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if len(self.headers) > MOST_HEADERS or size > MOST_HEAD_BYTES:
            self._refuse(
                431,
                f"the request has {len(self.headers)} headers in {size} bytes, over the limits of {MOST_HEADERS} and {MOST_HEAD_BYTES}",
            )
            return
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A body nobody reads any more ends the connection instead of being thrown away for as long as it comes."""
        if self.cycle is None or self.transport.is_closing():
            return
        if self.cycle.response_complete:
            self.transport.close()
            return
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is complete."""
        if self.cycle is not None:
            super().on_message_complete()

    def pause_writing(self) -> None:
        """The client does not read what it asked for; it gets a minute."""
        super().pause_writing()
        self._write_timer = self.loop.call_later(WRITE_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """It reads again."""
        self._stop_write_timer()
        super().resume_writing()

    def _stop_write_timer(self) -> None:
        """Stop the writer's clock."""
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def send_400_response(self, msg: str) -> None:
        """What cannot be parsed is a problem document too."""
        del msg
        self._refuse(400, "this is not an HTTP/1.1 request")

    def _start_head_timer(self) -> None:
        self._head_timer = self.loop.call_later(HEAD_SECONDS, self._head_is_late)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_is_late(self) -> None:
        self._head_timer = None
        if self._in_head:
            self._refuse(408, f"the request's head did not arrive within {HEAD_SECONDS:g} s")

    def _refuse(self, status: int, detail: str) -> None:
        if self.transport.is_closing():
            return
        self._stop_head_timer()
        request_id = secrets.token_hex(8)
        body = Problem(status, detail).body(request_id)
        fields: dict[str, Any] = {
            "content-type": MEDIA_TYPE,
            "content-length": len(body),
            "x-request-id": request_id,
            "x-content-type-options": "nosniff",
            "connection": "close",
        }
        lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        self.transport.write(STATUS_LINE[status] + lines.encode("ascii") + b"\r\n" + body)
        self.transport.close()
