"""A short content digest, the key of caches and the first test for exact duplicates."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray


def digest(data: bytes | NDArray[Any]) -> bytes:
    """Digest of an encoded file or of pixels: BLAKE2b of 16 bytes (RFC 7693), the same on every machine.

    Args:
        data: An encoded file, or an array of any shape and dtype; of an array, dtype, shape and content (C order) count.

    Returns:
        16 bytes. Equal content gives equal digests; the same pixels encoded in two files do not.
    """
    hasher = hashlib.blake2b(digest_size=16)
    if isinstance(data, np.ndarray):
        array = np.ascontiguousarray(data.astype(data.dtype.newbyteorder("<"), copy=False))
        hasher.update(f"{array.dtype.str}{data.shape}".encode())
        hasher.update(array.reshape(-1).view(np.uint8).data)
    else:
        hasher.update(data)
    return hasher.digest()
