"""A FAISS ``IndexBinaryFlat``, written byte by byte: no FAISS is needed to make it, ``faiss.read_index_binary`` reads it.

Little-endian: ``IBxF``, the number of bits and of bytes of a code (int32 each), the number of codes (int64), 1 for "trained" (one
byte), the metric 1 (int32; FAISS writes its default here and always computes Hamming distance), the number of bytes that follow
(uint64), the packed codes. FAISS takes whole bytes only: other lengths are zero padded, which changes no distance.
"""

from __future__ import annotations

import struct
from pathlib import Path

from distillhash.export.base import Content, replacing

_METRIC_L2 = 1


def write(content: Content, out: Path) -> list[Path]:
    """Write ``out``."""
    n, n_bytes = len(content.codes), content.n_bytes
    with replacing(out) as temporary, temporary.open("wb") as stream:
        stream.write(struct.pack("<4siiqBiQ", b"IBxF", 8 * n_bytes, n_bytes, n, 1, _METRIC_L2, n * n_bytes))
        for _, packed, _ in content.blocks():
            stream.write(packed.tobytes())
    return [out]
