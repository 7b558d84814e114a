r"""Text that every database and JSON reader takes.

A key is any Python text: a file name that is no valid UTF-8 holds lone surrogates, and a name may hold control characters. Postgres
refuses NUL, Milvus lone surrogates, JSON readers differ. So these characters are written as ``\uXXXX``, and a backslash before
``uXXXX`` as ``\u005c``; all other text, Windows paths among it, stays as it is.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

_ODD = re.compile("[\x00-\x1f\x7f\ud800-\udfff]|\\\\(?=u[0-9a-f]{4})")
_ESCAPE = re.compile(r"\\u([0-9a-f]{4})")


def to_plain(text: str) -> str:
    """Any text without control characters and lone surrogates; :func:`from_plain` gives the text back."""
    return _ODD.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def from_plain(text: str) -> str:
    """The text that :func:`to_plain` took."""
    return _ESCAPE.sub(lambda found: chr(int(found[1], 16)), text)


def map_text(value: Any, change: Callable[[str], str]) -> Any:
    """A JSON value with ``change`` applied to every text in it, names of fields included."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {change(name): map_text(entry, change) for name, entry in value.items()}
    if isinstance(value, list):
        return [map_text(entry, change) for entry in value]
    return value
