"""Progress on stderr: how much is done, how fast, how long it will take."""

import sys
from typing import Any, Self, TextIO

_REDRAW_SECONDS, _LINE_SECONDS = 0.2, 10.0


class Progress:
    """A progress bar for a job of ``total`` units; a context manager. Only the thread that drives the job calls it.

    On a terminal the bar is redrawn at most five times a second. Elsewhere (a log file, CI) a line is printed at the start, every ten
    seconds at most, and at the end.
    """

    def __init__(self, label: str, total: int, *, unit: str = "images", quiet: bool = False) -> None:
        self._bar: Any = None
        if quiet:
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
