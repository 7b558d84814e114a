"""Names that somebody else chose, made safe to show."""

import pytest

from distillhash.output import csv_cell, escaped


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain name.jpg", "plain name.jpg"),
        ("Zoë 写真 فیلم‌ها 😀 👩‍👩‍👧", "Zoë 写真 فیلم‌ها 😀 👩‍👩‍👧"),  # noqa: RUF001  # Arabic script
        ("red\x1b[31m", r"red\x1b[31m"),
        ("two\nlines\r", r"two\x0alines\x0d"),
        ("tab\tand\x7f\x9b", r"tab\x09and\x7f\x9b"),
        ("gpj\u202e.exe", r"gpj\u202e.exe"),
        ("line\u2028end", r"line\u2028end"),
        ("not utf-8 \udce9", r"not utf-8 \xe9"),
        ("lone \ud800", r"lone \ud800"),
        ("tag \U000e0041", r"tag \U000e0041"),
        ("", ""),
    ],
)
def test_what_is_hidden_is_escaped(text: str, shown: str) -> None:
    assert escaped(text) == shown
    assert escaped(text).encode().decode().isprintable() or "\u200c" in text or "\u200d" in text


@pytest.mark.parametrize("start", list("=+-@"))
def test_a_cell_is_never_a_formula(start: str) -> None:
    assert csv_cell(f"{start}HYPERLINK(1)") == f"'{start}HYPERLINK(1)"
    assert csv_cell(f"a{start}") == f"a{start}"
    assert csv_cell("\t=1") == r"\x09=1"
