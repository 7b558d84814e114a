"""Progress on stderr: how much is done, how fast, how long it will take."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self, TextIO

REDRAW_SECONDS = 0.2
LINE_SECONDS = 10.0


class Progress:
    """A line on stderr that follows a job; a context manager.

    On a terminal the line is redrawn at most five times a second. Elsewhere (a log file, CI) a line is printed every ten seconds at
    most, and one at the end. Only the thread that drives the job calls it.
    """

    def __init__(
        self, label: str, total: int, *, unit: str = "images", quiet: bool = False, stream: TextIO | None = None
    ) -> None:
        """Start the clock.

        Args:
            label: What is going on.
            total: How many units there are.
            unit: What is counted.
            quiet: Print nothing.
            stream: Where to print; None is stderr.
        """
        self.label, self.total, self.unit, self.quiet = label, total, unit, quiet
        self.done = 0
        self._stream = sys.stderr if stream is None else stream
        self._redraws = self._stream.isatty()
        self._started = self._shown = time.monotonic()

    def advance(self, count: int) -> None:
        """Count ``count`` more units as done."""
        self.done += count
        now = time.monotonic()
        if now - self._shown >= (REDRAW_SECONDS if self._redraws else LINE_SECONDS):
            self._shown = now
            self._show(now, end="" if self._redraws else "\n")

    def line(self, now: float) -> str:
        """The text at a moment of the monotonic clock."""
        seconds = max(now - self._started, 1e-9)
        rate = self.done / seconds
        parts = [f"{self.label}: {self.done:,} of {self.total:,} {self.unit}", f"{rate:,.0f}/s"]
        if self.done < self.total:
            parts.append(f"{_duration((self.total - self.done) / rate)} left" if rate else "starting")
        else:
            parts.append(f"{_duration(seconds)} in all")
        return ", ".join(parts)

    def _show(self, now: float, end: str) -> None:
        if not self.quiet:
            start = "\r\x1b[2K" if self._redraws else ""
            self._stream.write(start + self.line(now) + end)
            self._stream.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._show(time.monotonic(), end="\n")


def _duration(seconds: float) -> str:
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
