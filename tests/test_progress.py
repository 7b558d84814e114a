import io

from distillhash.progress import Progress, _duration


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_line_states_rate_and_time_left() -> None:
    progress = Progress("features", 1000, stream=io.StringIO())
    progress._started = 0.0
    progress.done = 250
    assert progress.line(50.0) == "features: 250 of 1,000 images, 5/s, 2 min 30 s left"
    progress.done = 1000
    assert progress.line(200.0) == "features: 1,000 of 1,000 images, 5/s, 3 min 20 s in all"
    progress.done = 0
    assert progress.line(1.0).endswith("0/s, starting")


def test_durations() -> None:
    assert [_duration(s) for s in (0.2, 59, 61, 3661)] == ["0 s", "59 s", "1 min 01 s", "1 h 01 min"]


def test_a_log_gets_one_closing_line() -> None:
    stream = io.StringIO()
    with Progress("x", 100, stream=stream) as progress:
        for _ in range(100):
            progress.advance(1)
    assert stream.getvalue().count("\n") == 1 and "\r" not in stream.getvalue()


def test_a_terminal_is_redrawn_on_one_line() -> None:
    stream = Terminal()
    with Progress("x", 2, stream=stream) as progress:
        progress._shown -= 1
        progress.advance(1)
    assert stream.getvalue().startswith("\r\x1b[2Kx: 1 of 2") and stream.getvalue().count("\n") == 1


def test_quiet_prints_nothing() -> None:
    stream = io.StringIO()
    with Progress("x", 2, quiet=True, stream=stream) as progress:
        progress.advance(2)
    assert stream.getvalue() == ""
