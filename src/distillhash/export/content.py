"""What is exported, in blocks that fit in memory, and files that are whole or absent."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distillhash.codes import Codes, bytes_per_code
from distillhash.errors import DistillHashError, ParameterError
from distillhash.index.text import to_plain

ROWS_AT_ONCE = 65536
_NAME = re.compile(r"[a-z][a-z0-9_]{0,49}")


def check_name(name: str) -> str:
    """The name of a table, collection or index, as all engines take it.

    Raises:
        ParameterError: anything else.
    """
    if not _NAME.fullmatch(name):
        raise ParameterError(
            f"a name is up to 50 lower-case letters, digits and underscores, a letter first, got {name!r}"
        )
    return name


@dataclass(frozen=True)
class Block:
    """Some rows: the first one's id, ``(m, ceil(n_bits / 8)) uint8`` codes, and a key for each, or None."""

    first: int
    packed: NDArray[np.uint8]
    keys: list[str] | None


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

    def blocks(self) -> Iterator[Block]:
        """All rows; keys without control characters and lone surrogates (see :mod:`distillhash.index.text`)."""
        for first in range(0, len(self.codes), ROWS_AT_ONCE):
            rows = slice(first, first + ROWS_AT_ONCE)
            keys = None if self.keys is None else [to_plain(key) for key in self.keys[rows]]
            yield Block(first, self.codes.packed[rows], keys)


@contextmanager
def replacing(out: Path) -> Iterator[Path]:
    """A temporary path beside ``out`` that becomes ``out`` when the block ends well, and vanishes otherwise.

    Raises:
        DistillHashError: the folder cannot be written, or the disk is full.
    """
    temporary = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.replace(out)
    except OSError as error:
        raise DistillHashError(
            f"{out} cannot be written ({error.strerror or error}); choose another place with --out"
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
