"""Where an index is: a folder, or a URI ``scheme://place?option=value&...`` of an engine; and what the engines on servers share.

Unknown options are refused by name, so that a mistyped one is noticed. Messages show an address by :func:`shown`, without passwords.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar
from urllib.parse import parse_qsl, quote, urlencode

from distillhash.errors import ParameterError

T = TypeVar("T")
FIRST_PAUSE = 0.05
LONGEST_PAUSE = 2.0
_ODD = re.compile("[\x00-\x1f\x7f\ud800-\udfff]|\\\\(?=u[0-9a-f]{4})")
_ESCAPE = re.compile(r"\\u([0-9a-f]{4})")
_SECRET = re.compile(
    "pass|pwd|token|secret|cred", re.IGNORECASE
)  # in the name of an option, or in its value by mistake
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]*\]|[^:\[\]@]*)(:[0-9]*)?")
_ONE_SLASH = re.compile("(postgres|postgresql|milvus):(?!//)", re.IGNORECASE)


def check_address(place: str | Path) -> None:
    """Raise :class:`ParameterError` where a password may stand in a place that messages show, ours or a client library's.

    That is so where the parts of a URI cannot be told apart, because a password has a character of a separator.
    """
    scheme, text = scheme_of(place), str(place)
    if _ONE_SLASH.match(text):
        raise ParameterError(
            f"an address of a server is written {text.partition(':')[0].lower()}://HOST/...; write two slashes"
        )
    if not scheme:
        return
    userinfo, _, hosts = re.split("[/?]", text.partition("://")[2], maxsplit=1)[0].rpartition("@")
    is_odd = ("@" in userinfo and scheme != "milvus") or not all(map(_HOST.fullmatch, hosts.split(",")))
    if is_odd or re.search("%(?![0-9A-Fa-f]{2})", text):
        raise ParameterError(
            f"the {scheme}:// address cannot be read: between its // and the next / must be USER:PASSWORD@HOST:PORT; write the characters "
            "/ ? # @ : % of a password as %2F %3F %23 %40 %3A %25"
        )


def scheme_of(place: str | Path) -> str:
    """The scheme of a URI, in lower case; empty for a folder."""
    scheme, separator, _ = str(place).partition("://")
    return scheme.lower() if separator else ""


def folder_of(place: str | Path) -> Path | None:
    """The folder of an index that is one, None for a URI."""
    return None if scheme_of(place) else Path(place)


def split_options(uri: str, known: Sequence[str]) -> tuple[str, dict[str, str]]:
    """A URI without the options in ``known``, and their values; other options stay in the URI."""
    rest, _, query = uri.partition("?")
    pairs = parse_qsl(query, keep_blank_values=True)
    taken: dict[str, str] = {}
    for name, value in pairs:
        if name in known:
            if name in taken:
                raise ParameterError(f"the option {name!r} comes twice in {shown(uri)}; give it once")
            taken[name] = value
    left = urlencode([pair for pair in pairs if pair[0] not in known], quote_via=quote)
    return rest + ("?" + left if left else ""), taken


def refuse_options(uri: str, known: Sequence[str]) -> None:
    """Raise :class:`ParameterError` if the URI has an option at all; the engine takes those in ``known``."""
    if query := uri.partition("?")[2]:
        unknown = query.partition("=")[0]
        raise ParameterError(f"{shown(uri)} has the unknown option {unknown!r}; choose from {', '.join(known)}")


def number(value: str, name: str, *, least: int, most: int) -> int:
    """An option's value as an integer; raises :class:`ParameterError` unless it lies in ``least..most``."""
    if not value.isascii() or not value.isdigit() or not least <= int(value) <= most:
        raise ParameterError(f"the option {name} must be an integer in {least}..{most}, got {value!r}")
    return int(value)


def shown(place: str | Path) -> str:
    """The address for messages and logs: without a password."""
    if not scheme_of(place):
        return str(place)
    scheme, _, rest = str(place).partition("://")
    rest, question, query = rest.partition("?")
    host, slash, path = rest.partition("/")
    user, at, host = host.rpartition("@")
    pairs = [pair for pair in parse_qsl(query, keep_blank_values=True) if not _SECRET.search(" ".join(pair))]
    options = urlencode(pairs, safe="/:", quote_via=quote)
    return f"{scheme}://{user.partition(':')[0]}{at}{host}{slash}{path}{question if options else ''}{options}"


def with_patience(work: Callable[[], T], is_transient: Callable[[Exception], bool], patience: float) -> T:
    """The result of ``work``, which is called again while it fails with a transient error.

    ``work`` must be safe to repeat. ``patience`` is in seconds: how long after the first call another one may start; 0 is one call.
    Pauses double from 0.05 s to 2 s. Each is shortened by up to a half at random, so that many clients do not come back together.
    """
    give_up = time.monotonic() + patience
    pause = FIRST_PAUSE
    while True:
        try:
            return work()
        except Exception as error:
            left = give_up - time.monotonic()
            if left <= 0 or not is_transient(error):
                raise
        time.sleep(min(left, pause * random.uniform(0.5, 1)))
        pause = min(2 * pause, LONGEST_PAUSE)


def to_plain(text: str) -> str:
    r"""Any text as text that every database and JSON reader takes; :func:`from_plain` gives it back.

    A file name that is not valid UTF-8 holds lone surrogates, and a name may hold control characters. Postgres refuses NUL, Milvus
    lone surrogates, and JSON readers differ. These characters are written as ``\uXXXX``, and a backslash before ``uXXXX`` as
    ``\u005c``. All other text, such as a Windows path, stays the same.
    """
    return _ODD.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def from_plain(text: str) -> str:
    """The text that :func:`to_plain` took."""
    return _ESCAPE.sub(lambda found: chr(int(found[1], 16)), text)
