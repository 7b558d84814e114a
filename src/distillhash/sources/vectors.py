"""Embeddings somebody already has: arrays, ``.npy`` and ``.npz`` files."""

from __future__ import annotations

import logging
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillhash.errors import DataError
from distillhash.sources.base import (
    EmbeddingSource,
    RowKeys,
    Source,
    check_rows,
    class_labels,
    contiguous,
    take_keys,
    take_labels,
    unique_keys,
)
from distillhash.sources.decode import PixelImages

_logger = logging.getLogger(__name__)

_VECTOR_NAMES = ("features", "embeddings", "vectors")
_BLOCK_BYTES = 1 << 24


class Vectors(EmbeddingSource):
    """Vectors in memory or in a memory map; a run of consecutive rows stays a view of it, any other selection copies its rows."""

    def __init__(
        self,
        name: str,
        vectors: NDArray[Any],
        *,
        keys: Sequence[str],
        labels: NDArray[Any] | None = None,
        label_names: Sequence[str] | None = None,
        splits: Mapping[str, NDArray[np.intp]] | None = None,
    ) -> None:
        """Wrap ``vectors`` ``(n, d)``; see :func:`usable_vectors` for what may come in."""
        self.name = name
        self.keys = keys
        self.labels = labels
        self.label_names = label_names
        self.splits = splits or {}
        self.vectors = vectors

    def select(self, rows: NDArray[np.intp]) -> Vectors:
        """The vectors of ``rows``."""
        rows = check_rows(rows, len(self))
        run = contiguous(rows)
        return Vectors(
            self.name,
            self.vectors[rows if run is None else run],
            keys=take_keys(self.keys, rows),
            labels=take_labels(self.labels, rows),
            label_names=self.label_names,
        )


def usable_vectors(array: NDArray[Any], name: str) -> NDArray[Any]:
    """``array`` as ``(n, d)`` floats of the machine's byte order: float16, float32 and float64 as they are, integers cast to float32.

    A memory map stays one unless it must be cast. Values are not looked at; see :func:`check_finite`.

    Raises:
        DataError: not 2-d, no rows or no columns, or another dtype.
    """
    if array.ndim != 2:
        raise DataError(
            f"{name}: embeddings must be a 2-d array (n, d), got shape {array.shape}; reshape it to one row per item"
        )
    if array.shape[0] == 0:
        raise DataError(f"{name}: nothing usable, the embeddings have no rows (shape {array.shape}); give at least one")
    if array.shape[1] == 0:
        raise DataError(f"{name}: the embeddings have no columns (shape {array.shape}); give at least one dimension")
    if array.dtype.kind in "iu":
        _logger.warning("%s: embeddings of dtype %s are cast to float32", name, array.dtype)
        return array.astype(np.float32)
    if array.dtype.kind != "f" or array.dtype.itemsize > 8:
        raise DataError(
            f"{name}: embeddings must be float16, float32 or float64, got {array.dtype}; convert them first"
        )
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def check_finite(vectors: NDArray[Any], name: str) -> None:
    """Look at every value, 16 MiB at a time.

    Raises:
        DataError: a NaN or an infinity; names the first such row and how many rows have one.
    """
    step = max(1, _BLOCK_BYTES // (vectors.shape[1] * vectors.itemsize))
    first, count = -1, 0
    for start in range(0, len(vectors), step):
        bad = np.flatnonzero(~np.isfinite(vectors[start : start + step]).all(axis=1))
        if bad.size:
            first = start + int(bad[0]) if count == 0 else first
            count += bad.size
    if count:
        raise DataError(
            f"{name}: {count} of {len(vectors)} rows hold NaN or infinity, the first is row {first}; remove or repair them"
        )


def open_array(array: NDArray[Any], name: str) -> Source:
    """Embeddings ``(n, d)``, or images ``(n, h, w, 3) uint8``; keys are row numbers."""
    if array.ndim == 4:
        return PixelImages(name, array, keys=RowKeys("", range(len(array))))
    vectors = usable_vectors(array, name)
    return Vectors(name, vectors, keys=RowKeys("", range(len(vectors))))


def open_npy(path: Path, name: str) -> Source:
    """A ``.npy`` file, memory-mapped: embeddings ``(n, d)``, or images ``(n, h, w, 3) uint8``.

    Raises:
        DataError: damaged, truncated, pickled, or of another shape or dtype.
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise _unreadable(path, name, error) from error
    if not isinstance(array, np.ndarray):  # an .npz under another name
        array.close()
        raise DataError(f"{name}: {path} holds several arrays; rename it to .npz")
    return open_array(array, name)


def open_npz(path: Path, name: str) -> Vectors:
    """An ``.npz`` file of embeddings: ``features``, ``embeddings`` or ``vectors``, or else its only 2-d float array.

    Optional arrays: ``labels`` (classes or 0/1 indicators), ``label_names`` and ``keys`` (strings). Read into memory, unlike ``.npy``.

    Raises:
        DataError: damaged, pickled, no such array or several, or arrays of different lengths.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {key: stored[key] for key in stored.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, TypeError) as error:  # TypeError: it is an .npy
        raise _unreadable(path, name, error) from error
    wanted = [key for key in _VECTOR_NAMES if key in arrays][:1]
    wanted = wanted or [key for key, array in arrays.items() if array.ndim == 2 and array.dtype.kind == "f"]
    if len(wanted) != 1:
        held = ", ".join(f"{key} {array.dtype} {array.shape}" for key, array in arrays.items()) or "nothing"
        raise DataError(
            f"{name}: {path} has {len(wanted)} candidate arrays of embeddings; name one 'features' (it holds: {held})"
        )
    vectors = usable_vectors(arrays[wanted[0]], name)
    n = len(vectors)
    labels, label_names, keys = None, None, None
    if "labels" in arrays and wanted[0] != "labels":
        labels, label_names = class_labels(arrays["labels"], n, f"{name}: the array 'labels'")
    if "label_names" in arrays and arrays["label_names"].ndim == 1:
        label_names = [str(label) for label in arrays["label_names"]]
    if "keys" in arrays:
        if arrays["keys"].shape != (n,):
            raise DataError(f"{name}: the array 'keys' has shape {arrays['keys'].shape}; {n} embeddings need {n} keys")
        keys = unique_keys(str(key) for key in arrays["keys"])
    return Vectors(name, vectors, keys=keys or RowKeys("", range(n)), labels=labels, label_names=label_names)


def _unreadable(path: Path, name: str, error: Exception) -> DataError:
    return DataError(
        f"{name}: {path} is not a readable NumPy file ({error}); write it with np.save or np.savez, without objects"
    )
