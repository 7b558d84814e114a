"""What the operator of a server may choose, and the limits of requests."""

import hmac
import ipaddress
import re
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
OWN_PATHS = frozenset(
    [
        "items",
        "match",
        "static",
        "duplicates",
        "quality",
        "stats",
        "healthz",
        "readyz",
        "metrics",
        "session",
        "openapi.json",
    ]
)


@dataclass(frozen=True)
class Settings:
    """Limits and access of one server. :class:`ParameterError` refuses what would leave it open or useless."""

    host: str = "127.0.0.1"  # address to listen on; anything but the machine itself needs a token
    token: str | None = field(default=None, repr=False)  # shared secret that requests must carry; None asks for none
    max_upload: int = 20 * 2**20  # largest request body in bytes, counted as it arrives
    max_pixels: int = 64_000_000  # largest image, width x height, checked before a pixel is decoded
    head_seconds: float = 10.0  # longest time a request's line and headers may take to arrive
    body_seconds: float = 30.0  # the same for a request body
    write_seconds: float = 60.0  # longest time a client may take to read an answer
    max_connections: int = 1000  # connections open at one time; more get 503
    max_requests: int = 256  # requests answered at one time; more get 503
    max_held: int = 512 * 2**20  # bytes of all bodies held at one time, from arrival to answer; more get 503
    encoders: int | None = None  # processes that encode images; 0: threads; None: one per core, four at most
    duplicates: Path | None = None  # file that `distillhash dedup --out` wrote, shown on the page
    root_path: str = (
        ""  # path under which a proxy shows the server, as in /photos; one the proxy removes may be left out
    )

    def __post_init__(self) -> None:
        for name in ("max_upload", "max_pixels", "max_requests"):
            if getattr(self, name) < 1:
                raise ParameterError(f"{name} must be at least 1, got {getattr(self, name)}")
        object.__setattr__(self, "root_path", self.root_path.rstrip("/"))
        names = self.root_path.split("/")
        if not re.fullmatch(r"(/[\w.~-]+)*", self.root_path, re.ASCII) or {".", ".."} & set(names):
            raise ParameterError(
                f"the root path must look like /photos or /a/b (letters, digits, '-', '.', '_', '~'), got {self.root_path!r}"
            )
        if names[1:] and len(names) == 2 and names[1] in OWN_PATHS:
            raise ParameterError(f"the root path {self.root_path} is also a path of the server's own; choose another")
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
        if self.token is None:
            return None
        return hmac.new(self.token.encode(), b"distillhash session", "sha256").hexdigest()

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
        try:
            return self.host == "localhost" or ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False
