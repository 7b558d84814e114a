"""Patience with servers, and text that every database takes."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distillhash.index.address import from_plain, to_plain, with_patience


def test_patience() -> None:
    calls: list[float] = []

    def fail_twice() -> str:
        calls.append(time.monotonic())
        if len(calls) < 3:
            raise ConnectionError(f"number {len(calls)}")
        return "done"

    assert with_patience(fail_twice, lambda error: isinstance(error, ConnectionError), 30) == "done"
    assert len(calls) == 3 and calls[1] - calls[0] >= 0.025 and calls[2] - calls[1] >= 0.05
    calls.clear()
    with pytest.raises(ConnectionError, match="number 1"):
        with_patience(fail_twice, lambda error: True, 0)  # no patience: one call
    with pytest.raises(ConnectionError, match="number 2"):
        with_patience(fail_twice, lambda error: False, 30)  # an error that does not pass
    assert len(calls) == 2


@given(
    st.text(alphabet=st.characters(categories=None), max_size=12)
    | st.text(alphabet="\\u0041dce9\x00\ud800", max_size=14)
)
def test_any_text_comes_back_from_plain_text(text: str) -> None:
    plain = to_plain(text)
    assert from_plain(plain) == text
    plain.encode()  # no lone surrogate
    assert all(character >= " " and character != "\x7f" for character in plain)


def test_plain_text_leaves_ordinary_names_alone() -> None:
    for name in ("cat.jpg", "C:\\photos\\cat.jpg", "C:\\users\\me", "ä/日本\U0001f408", "\\U0041"):
        assert to_plain(name) == name
    assert to_plain("a\x00\udce9\\u0041") == "a\\u0000\\udce9\\u005cu0041"
