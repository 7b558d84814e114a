"""What is printed: progress on stderr, and text from files and requests, made safe to show on a terminal, in a log, and in a table.

A file name may hold escape sequences, line ends and characters that reverse the direction of writing. Whatever prints a name that
somebody else chose escapes it here.
"""

import re
import sys
import unicodedata
from typing import Any, Self, TextIO

_HIDDEN = {
    "Cc",
    "Cf",
    "Cs",
    "Zl",
    "Zp",
    "Co",
}  # control, format (bidi), surrogates, line and paragraph separators, private use
_JOINERS = {"\u200c", "\u200d"}  # needed to write Persian, Indic scripts and emoji
_PLAIN = re.compile(r"[ -~]*")
_FORMULA = ("=", "+", "-", "@")


def escaped(text: str) -> str:
    r"""``text`` on one line: control and format characters become ``\xNN``, ``\uNNNN`` or ``\UNNNNNNNN``, as Python writes them.

    Bytes of a file name that are not UTF-8 (surrogates in Python) become ``\xNN``. Letters of all scripts stay as they are.
    """
    if _PLAIN.fullmatch(text):
        return text
    return "".join(_escaped_character(character) for character in text)


def csv_cell(text: str) -> str:
    """``text`` for a cell of a table: escaped, and a leading ``'`` where a spreadsheet would run it as a formula."""
    text = escaped(text)
    return f"'{text}" if text.startswith(_FORMULA) else text


def _escaped_character(character: str) -> str:
    if unicodedata.category(character) not in _HIDDEN or character in _JOINERS:
        return character
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:
        code -= 0xDC00  # a byte of a name that is not UTF-8
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


_REDRAW_SECONDS, _LINE_SECONDS = 0.2, 10.0


class Progress:
    """A progress bar for a job of ``total`` units; a context manager. Only the thread that drives the job calls it.

    Nothing is shown of a job of no units. On a terminal the bar is redrawn at most five times a second. Elsewhere (a log file, CI) a line
    is printed at the start, every ten seconds at most, and at the end.
    """

    def __init__(self, label: str, total: int, *, unit: str = "images", quiet: bool = False) -> None:
        self._bar: Any = None
        if quiet or not total:
            return
        from tqdm import tqdm  # here, because most processes show nothing

        class Bar(tqdm):  # type: ignore[misc]  # tqdm has no types
            monitor_interval = 0  # no thread that redraws

        terminal = sys.stderr.isatty()
        self._bar = Bar(
            total=total,
            desc=label,
            unit=f" {unit}",
            file=sys.stderr if terminal else _Lines(sys.stderr),
            mininterval=_REDRAW_SECONDS if terminal else _LINE_SECONDS,
            miniters=1,
            dynamic_ncols=terminal,
            bar_format=None if terminal else "{desc}: {n_fmt} of {total_fmt}{unit}, {rate_fmt}, {elapsed}<{remaining}",
        )

    def advance(self, count: int) -> None:
        """Count ``count`` more units as done."""
        if self._bar is not None:
            self._bar.update(count)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()


class _Lines:
    """A stream that takes what tqdm draws and prints lines."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        if text.strip():
            self._stream.write(text.strip() + "\n")

    def flush(self) -> None:
        self._stream.flush()
