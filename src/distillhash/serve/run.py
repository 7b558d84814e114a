"""One server process: its socket, its signals, its end."""

import signal
import socket
from collections.abc import Callable
from typing import Any

import uvicorn

from distillhash.errors import DistillHashError, ParameterError
from distillhash.serve.app import create_app
from distillhash.serve.limits import Connection
from distillhash.serve.service import Service

_STOP_SECONDS = 15


def bind(host: str, port: int) -> socket.socket:
    """A listening place; port 0 takes a free one."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
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


def make_server(service: Service) -> uvicorn.Server:
    """A server of the service's application, with every limit in place."""
    application = create_app(service, on_failure=lambda: setattr(server, "should_exit", True))
    config = uvicorn.Config(
        application,
        http="httptools",
        ws="none",
        lifespan="on",
        access_log=False,
        log_level="error",
        server_header=False,
        timeout_keep_alive=20,
        timeout_graceful_shutdown=_STOP_SECONDS,
    )
    config.load()
    protocol, connections = config.http_protocol_class, set[Connection]()

    def connect(**options: Any) -> Connection:
        return Connection(protocol(**options), service.settings, connections)

    config.http_protocol_class = connect  # type: ignore[assignment]  # uvicorn calls it, once a connection
    server = uvicorn.Server(config)
    return server


def serve(service: Service, listener: socket.socket, *, say: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM; requests under way are finished first."""
    server = make_server(service)
    # uvicorn stops gracefully at a signal, then raises it again for whoever handled it before: nobody needs it then.
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        say(f"serving at {url_of(listener)}  (Ctrl-C stops)")
        server.run(sockets=[listener])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        listener.close()
    if service.failure is not None:
        if isinstance(service.failure, DistillHashError):
            raise service.failure
        raise DistillHashError(f"the server could not warm up: {service.failure}") from service.failure
