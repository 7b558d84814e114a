"""What the engines on servers share: waiting for a server that is away, and text that every database takes."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
FIRST_PAUSE = 0.05
LONGEST_PAUSE = 2.0
_ODD = re.compile("[\x00-\x1f\x7f\ud800-\udfff]|\\\\(?=u[0-9a-f]{4})")
_ESCAPE = re.compile(r"\\u([0-9a-f]{4})")


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
