"""The grouping of an index's codes around centres as a file, so that it is found once: see :mod:`distillhash.hamming.clustered`.

It belongs to one cache file of codes, whose generation it names. Like that file it is checked and can be thrown away.
"""

from __future__ import annotations

import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillhash.errors import DataError
from distillhash.hamming import ClusteredCodes
from distillhash.hamming.search import Planes


def write(file: Path, name: str, clusters: ClusteredCodes) -> bool:
    """Replace the file; False where that cannot be done.

    Args:
        file: Where.
        name: Of the generation that the codes are of.
        clusters: What to keep.
    """
    from safetensors.numpy import save_file

    arrays = clusters.arrays()
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        save_file(arrays, temporary, {"name": name, "checksum": str(_checksum(arrays))})
        temporary.replace(file)
    except OSError:
        temporary.unlink(missing_ok=True)
        return False
    return True


def read(file: Path, name: str, planes: Planes) -> ClusteredCodes | None:
    """The grouping of these codes; None where there is no file, or one that is damaged or of other codes."""
    if not file.exists():
        return None
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "numpy") as stored:
            about = stored.metadata() or {}
            if about.get("name") != name:
                return None
            arrays = {key: stored.get_tensor(key) for key in sorted(stored.keys())}  # no dictionary
        if about.get("checksum") != str(_checksum(arrays)):
            return None
        return ClusteredCodes.from_arrays(planes, arrays)
    except (OSError, SafetensorError, KeyError, DataError):
        # A file of a development version may lack arrays, or have other planes.
        return None


def _checksum(arrays: dict[str, NDArray[Any]]) -> int:
    checksum = 0
    for key, array in sorted(arrays.items()):
        checksum = zlib.crc32(f"{key} {array.dtype} {array.shape}".encode(), checksum)
        checksum = zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data, checksum)
    return checksum
