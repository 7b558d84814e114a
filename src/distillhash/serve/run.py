"""One server process: its socket, its signals, its end."""

import contextlib
import logging
import multiprocessing
import os
import signal
import socket
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import uvicorn

from distillhash.errors import DistillHashError, ParameterError
from distillhash.serve.app import create_app
from distillhash.serve.limits import Connection, ServerProtocol
from distillhash.serve.service import Service

_STOP_SECONDS = 5  # for requests under way
_END_SECONDS = 8.0  # for everything else; then the process ends however much hangs


class _Server(uvicorn.Server):
    """uvicorn's server, which ends after a signal, whatever happens."""

    last: threading.Timer | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop gracefully; at a second Ctrl-C, or when that takes too long, at once."""
        if self.last is not None and sig == signal.SIGINT:
            _end()
        if self.last is None:
            self.last = threading.Timer(_END_SECONDS, _end)
            self.last.daemon = True
            self.last.start()
        super().handle_exit(sig, frame)


def _end() -> None:
    """End the process and its children, without waiting for its threads."""
    for child in multiprocessing.active_children():
        child.kill()
    with contextlib.suppress(OSError):  # whoever reads stderr may hang as well
        os.set_blocking(2, False)
        os.write(2, b"distillhash: ended while work was still under way\n")
    os._exit(1)


def bind(host: str, port: int) -> socket.socket:
    """A listening place; port 0 takes a free one."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(1024)  # now, so that whoever reads the address can connect to it
    except (OSError, OverflowError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        text = f"cannot listen on {host} port {port} ({reason}); choose another --port or --host"
        raise ParameterError(text) from error
    return listener


def url_of(listener: socket.socket) -> str:
    """The address to open."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


def make_server(service: Service) -> _Server:
    """A server of the service's application, with every limit in place."""
    application = create_app(service, on_failure=lambda: setattr(server, "should_exit", True))
    config = uvicorn.Config(
        application,
        http=ServerProtocol,
        ws="none",
        lifespan="on",
        access_log=False,
        log_level="error",
        server_header=False,
        proxy_headers=False,  # anybody can send them
        timeout_keep_alive=20,
        timeout_graceful_shutdown=_STOP_SECONDS,
    )
    config.load()
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # it warns of what strangers send
    connections = set[Connection]()

    def connect(**options: Any) -> Connection:
        return Connection(ServerProtocol(**options), service.settings, connections)

    config.http_protocol_class = connect  # type: ignore[assignment]  # uvicorn calls it, once a connection
    server = _Server(config)
    return server


def serve(service: Service, listener: socket.socket, *, say: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM; requests under way are finished first.

    What is not finished some seconds after the signal is given up: the process ends with status 1.
    """
    server = make_server(service)

    def stop(number: int, frame: FrameType | None) -> None:
        """A signal before uvicorn listens to them; afterwards it raises those that it got again, and nobody needs them then."""
        if not server.started:
            server.handle_exit(number, frame)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        say(f"serving at {url_of(listener)}  (Ctrl-C stops)")
        server.run(sockets=[listener])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        listener.close()
        if server.last is not None and service.is_stopped:  # else threads hang, and the interpreter would wait for them
            server.last.cancel()
    if service.failure is not None:
        if isinstance(service.failure, DistillHashError):
            raise service.failure
        raise DistillHashError(f"the server could not warm up: {service.failure}") from service.failure
