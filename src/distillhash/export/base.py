"""What all exporters share: the codes in blocks that fit in memory, and files that are whole or absent."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distillhash.codes import Codes, bytes_per_code
from distillhash.index.remote import to_plain

_ROWS_AT_ONCE = 65536


@dataclass(frozen=True)
class Content:
    """Codes, their keys, and the name of the table, collection or index they go to."""

    codes: Codes
    keys: Sequence[str] | None
    name: str

    @property
    def n_bytes(self) -> int:
        """Bytes of one code."""
        return bytes_per_code(self.codes.n_bits)

    def blocks(self) -> Iterator[tuple[int, NDArray[np.uint8], list[str] | None]]:
        """The first id, the packed codes and the keys of blocks of rows; keys by :func:`distillhash.index.remote.to_plain`."""
        for first in range(0, len(self.codes), _ROWS_AT_ONCE):
            rows = slice(first, first + _ROWS_AT_ONCE)
            keys = None if self.keys is None else [to_plain(key) for key in self.keys[rows]]
            yield first, self.codes.packed[rows], keys

    def rows(self) -> Iterator[tuple[int, NDArray[np.uint8], str | None]]:
        """Id, packed code and key of every row."""
        for first, packed, keys in self.blocks():
            for place, code in enumerate(packed):
                yield first + place, code, None if keys is None else keys[place]


@dataclass(frozen=True)
class Format:
    """A format of files of codes.

    Attributes:
        endings: What a file's name may end in; the default first.
        write: Writes the file, and returns it and the files beside it. An error leaves the old file.
        has_name: Whether the file names a table, collection or index.
    """

    endings: tuple[str, ...]
    write: Callable[[Content, Path], list[Path]]
    has_name: bool = False


@contextmanager
def replacing(out: Path) -> Iterator[Path]:
    """A temporary path beside ``out`` that replaces ``out`` when the block succeeds, and is removed otherwise."""
    temporary = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.replace(out)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
