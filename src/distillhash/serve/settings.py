"""What the operator of a server may choose, and the limits of requests."""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from distillhash.errors import ParameterError

COOKIE = "distillhash_session"
MOST_RESULTS = 10_000
MOST_RERANKED = 1000
MOST_HEAD_BYTES = 32 * 1024  # of a request's line and headers
MOST_HEADERS = 100
SHORTEST_TOKEN = 16
MOST_ENCODERS = 256


@dataclass(frozen=True)
class Settings:
    """Limits and access of one server.

    Attributes:
        host: Address to listen on. Anything but the machine itself needs a token.
        token: Shared secret that requests must carry; None asks for none.
        max_upload: Largest request body in bytes, counted as it arrives.
        max_pixels: Largest image, width x height, checked before a pixel is decoded.
        head_seconds: Longest time a request's line and headers may take to arrive.
        body_seconds: Longest time a request body may take to arrive.
        write_seconds: Longest time a client may take to read an answer.
        max_connections: Connections open at one time; more get 503.
        max_requests: Requests answered at one time; more get 503.
        max_held: Bytes of all bodies held at one time, from their arrival to their answer; more get 503.
        encoders: Processes that encode uploaded images on the processor; 0: threads of the server, None: one per core, four at most.
        duplicates: File that ``distillhash dedup --out`` wrote, shown on the page.
    """

    host: str = "127.0.0.1"
    token: str | None = field(default=None, repr=False)
    max_upload: int = 20 * 2**20
    max_pixels: int = 64_000_000
    head_seconds: float = 10.0
    body_seconds: float = 30.0
    write_seconds: float = 60.0
    max_connections: int = 1000
    max_requests: int = 256
    max_held: int = 512 * 2**20
    encoders: int | None = None
    duplicates: Path | None = None

    def __post_init__(self) -> None:
        """Refuse what would leave the server open or useless.

        Raises:
            ParameterError: a limit out of range, a token that is short or not printable ASCII, or none where one is needed.
        """
        for name in ("max_upload", "max_pixels", "max_requests"):
            if getattr(self, name) < 1:
                raise ParameterError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.encoders is not None and not 0 <= self.encoders <= MOST_ENCODERS:
            raise ParameterError(f"encoders must be in 0..{MOST_ENCODERS}, got {self.encoders}")
        if self.token is not None and (
            len(self.token) < SHORTEST_TOKEN or not self.token.isascii() or not self.token.isprintable()
        ):
            raise ParameterError(
                f"the token must be at least {SHORTEST_TOKEN} printable ASCII characters, got {len(self.token)}; "
                "`openssl rand -hex 24` makes one"
            )
        if self.token is None and not self.is_local:
            raise ParameterError(
                f"--host {self.host} lets other machines in, which needs a token; set the environment variable "
                "DISTILLHASH_TOKEN or give --token-file, or leave --host at 127.0.0.1"
            )

    @property
    def session(self) -> str | None:
        """Value of the cookie that stands for the token; pictures in a page cannot carry a header."""
        return (
            None if self.token is None else hmac.new(self.token.encode(), b"distillhash session", "sha256").hexdigest()
        )

    def admits(self, headers: Mapping[str, str]) -> bool:
        """Whether a request's headers hold the token or the cookie; comparing takes as long whatever they hold."""
        if self.token is None or self.session is None:
            return True
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and hmac.compare_digest(token.strip().encode(), self.token.encode()):
            return True
        pairs = (part.strip().partition("=") for part in headers.get("cookie", "").split(";"))
        return any(
            name == COOKIE and hmac.compare_digest(value.encode(), self.session.encode()) for name, _, value in pairs
        )

    @property
    def is_local(self) -> bool:
        """Whether only this machine can connect."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False
