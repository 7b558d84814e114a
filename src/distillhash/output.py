"""Text from files and requests, made safe to show: on a terminal, in a log, and in a table.

A file name may hold escape sequences, line ends and characters that reverse the direction of writing. Whatever prints a name that
somebody else chose escapes it here.
"""

import re
import unicodedata

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
