"""Names for the arrays of the searches, and how codes become planes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillhash.codes import Codes

Planes = NDArray[Any]  # (n_planes, n) uint16, uint32 or uint64
Ints = NDArray[np.int64]
Distances = NDArray[np.int32]


def plane_dtype(n_bits: int) -> np.dtype[Any]:
    """The word of codes of ``n_bits``: uint16 up to 16 bits, uint32 up to 64 (two of them beyond 32), uint64 beyond.

    A lone query is as fast as memory, and where there are two words and more, half of them mostly say enough.
    """
    return np.dtype(np.uint16 if n_bits <= 16 else np.uint32 if n_bits <= 64 else np.uint64)


def planes_of(codes: Codes) -> Planes:
    """Codes laid out for the searches: one word of all codes after the other.

    Returns:
        ``(n_planes, n)`` in C order, of :func:`plane_dtype`: as many planes as it takes words. Pad bits are zero; the order of bits and
        bytes is the machine's and means nothing to a distance.
    """
    dtype = plane_dtype(codes.n_bits)
    n_words = -(-codes.n_bits // (8 * dtype.itemsize))
    padded = np.zeros((len(codes), n_words * dtype.itemsize), np.uint8)
    padded[:, : codes.packed.shape[1]] = codes.packed
    return np.ascontiguousarray(padded.view(dtype).T)
