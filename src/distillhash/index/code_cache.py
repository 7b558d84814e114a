"""The codes of an index as a file that is mapped into memory: a copy of the rows that can be thrown away and made again.

The file says of which generation of the rows the codes are, and carries checksums of its head and of them. One that is cut short or
damaged is not used, nor one of a generation that the database does not know. It is replaced as a whole; who has the old one mapped keeps
that.
"""

from __future__ import annotations

import json
import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillhash.index.memory import CodesInMemory

_MAGIC = b"distillhash codes 1\n"
_HEADER_BYTES = 4096  # one page, so that the arrays begin on a page
_ID = np.dtype("<i8")


@dataclass(frozen=True)
class CachedCodes:
    """All codes of a state, see :class:`distillhash.index.items.State` for the other attributes."""

    codes: CodesInMemory
    generation: int
    name: str
    last_id: int


def write(file: Path, held: CachedCodes) -> bool:
    """Replace the file; False where that cannot be done (a folder that is not ours, a full disk), which costs time later, not answers."""
    ids, planes = held.codes.ids.astype(_ID, copy=False), held.codes.planes
    planes = planes.astype(planes.dtype.newbyteorder("<"), copy=False)
    fields = {
        "generation": held.generation,
        "name": held.name,
        "last_id": held.last_id,
        "shape": list(planes.shape),
        "checksum": _checksum(ids, planes),
    }
    text = json.dumps(fields).encode()
    header = _MAGIC + b"%08x %08x\n" % (len(text), zlib.crc32(text)) + text
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as stream:
            stream.write(header.ljust(_HEADER_BYTES, b"\0"))
            ids.tofile(stream)
            planes.tofile(stream)
        temporary.replace(file)
    except OSError:
        temporary.unlink(missing_ok=True)
        return False
    return True


def read(file: Path, n_bits: int) -> CachedCodes | None:
    """The codes in the file, mapped; None where there is no file, or one that cannot be trusted."""
    try:
        header = file.open("rb").read(_HEADER_BYTES)
        sizes, _, text = header.removeprefix(_MAGIC).partition(b"\n")
        length, checksum = (int(part, 16) for part in sizes.split())
        text = text[:length]
        if not header.startswith(_MAGIC) or zlib.crc32(text) != checksum:
            return None
        fields = json.loads(text)
        n_planes, n = fields["shape"]
        like = CodesInMemory.empty(n_bits).planes
        n_bytes = n * (_ID.itemsize + n_planes * like.itemsize)
        if n_planes != len(like) or file.stat().st_size != _HEADER_BYTES + n_bytes:
            return None
        mapped = np.memmap(file, np.uint8, "r", _HEADER_BYTES) if n else np.zeros(0, np.uint8)
        ids, planes = (
            mapped[: _ID.itemsize * n].view(_ID),
            mapped[_ID.itemsize * n :].view(like.dtype.newbyteorder("<")),
        )
        if _checksum(ids, planes) != fields["checksum"]:
            return None
        codes = CodesInMemory(ids, planes.reshape(n_planes, n))
        return CachedCodes(codes, fields["generation"], fields["name"], fields["last_id"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _checksum(*arrays: NDArray[Any]) -> int:
    checksum = 0
    for array in arrays:
        content = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        checksum = zlib.crc32(content.data, checksum)
    return checksum
