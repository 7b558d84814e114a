"""Progress on a terminal, in a log, and not at all."""

import io
import sys
import threading

import pytest

from distillhash.output import Progress


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def run(monkeypatch: pytest.MonkeyPatch, stream: io.StringIO, **options: bool) -> list[str]:
    """The lines that a job of 100 steps writes."""
    monkeypatch.setattr(sys, "stderr", stream)
    with Progress("features", 1000, unit="rows", **options) as progress:
        for _ in range(100):
            progress.advance(10)
    return stream.getvalue().split("\n")


def test_a_log_gets_a_line_at_the_start_and_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = run(monkeypatch, io.StringIO())
    assert lines[0].startswith("features: 0 of 1000 rows")
    assert lines[-2].startswith("features: 1000 of 1000 rows, ")
    assert lines[-1] == "" and len(lines) == 3 and not any("\r" in line for line in lines)


def test_a_log_gets_lines_in_between(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distillhash.output._LINE_SECONDS", 0)
    lines = run(monkeypatch, io.StringIO())
    assert len(lines) > 100
    assert lines[50].startswith("features: 500 of 1000 rows, ") and lines[50].split(", ")[1].endswith(" rows/s")


def test_a_terminal_is_redrawn_on_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal()
    lines = run(monkeypatch, stream)
    assert len(lines) == 2 and lines[1] == ""
    assert lines[0].startswith("\rfeatures:   0%") and "1000/1000" in lines[0]


def test_quiet_prints_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, Terminal(), quiet=True) == [""]


def test_no_thread_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    before = threading.active_count()
    run(monkeypatch, Terminal())
    assert threading.active_count() == before


def test_nothing_to_do_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with Progress("comparing pictures", 0):
        pass
    assert stream.getvalue() == ""
