"""Sources that are arrays already: embeddings and images in memory, in ``.npy`` and in ``.npz`` files."""

import logging
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillhash.errors import DataError
from distillhash.sources.base import EmbeddingSource, ImageSource, RowKeys, Source, class_labels, unique_keys

_logger = logging.getLogger(__name__)
_NPZ_NAMES = ("features", "embeddings", "vectors")
_BLOCK_BYTES = 1 << 24
LARGEST = 1e12
"""No feature is larger, so that squares and their sums fit a float32."""


class PixelImages(ImageSource):
    """Images of one size in an array ``(n, h, w, 3) uint8``; selecting rows copies no pixels."""

    def __init__(self, name: str, pixels: NDArray[np.uint8], keys: Sequence[str], **labelling: Any) -> None:
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[3] != 3 or pixels.size == 0:
            raise DataError(
                f"{name}: images must be a non-empty (n, h, w, 3) uint8 array, got {pixels.dtype} of shape {pixels.shape}"
            )
        super().__init__(name, keys, **labelling)
        self._pixels, self._rows = pixels, np.arange(len(pixels))

    def _take(self, rows: NDArray[np.intp]) -> None:
        self._rows = self._rows[rows]

    def read(self, row: int) -> NDArray[np.uint8]:
        """A copy of the pixels of image ``row``, ``(h, w, 3) uint8``."""
        return np.array(self._pixels[self._rows[row]], order="C")


def usable_vectors(array: NDArray[Any], name: str) -> NDArray[Any]:
    """``array`` as ``(n, d)`` floats of the machine's byte order: float16, float32 and float64 as they are, integers cast to float32.

    A memory map stays one unless it must be cast. Values are not checked, see :func:`check_finite`; other arrays are a :class:`DataError`.
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
        raise DataError(f"{name}: embeddings must be float16, float32 or float64, got {array.dtype}; convert them")
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def check_finite(vectors: NDArray[Any], name: str) -> None:
    """Raise a :class:`DataError` where a value is NaN, infinite or above ``LARGEST``; reads 16 MiB at a time."""
    step = max(1, _BLOCK_BYTES // (vectors.shape[1] * vectors.itemsize))
    starts = range(0, len(vectors), step)
    bad = [start + np.flatnonzero(~np.isfinite(vectors[start : start + step]).all(axis=1)) for start in starts]
    rows = np.concatenate(bad)
    if rows.size:
        raise DataError(
            f"{name}: {rows.size} of {len(vectors)} rows hold NaN or infinity, the first is row {rows[0]}; remove or repair them"
        )
    for start in starts:
        sizes = np.abs(vectors[start : start + step].astype(np.float64)).max(axis=1)
        if (sizes > LARGEST).any():
            row = int(np.argmax(sizes > LARGEST))
            raise DataError(
                f"{name}: row {start + row} holds a number of size {sizes[row]:.3g}, over the limit of {LARGEST:g}; "
                "remove such rows, or divide all of them by one number"
            )


def open_array(array: NDArray[Any], name: str) -> Source:
    """Embeddings ``(n, d)``, or images ``(n, h, w, 3) uint8``; keys are row numbers."""
    if array.ndim == 4:
        return PixelImages(name, array, RowKeys("", range(len(array))))
    return EmbeddingSource(name, usable_vectors(array, name))


def open_npy(path: Path, name: str) -> Source:
    """A ``.npy`` file, memory-mapped: embeddings ``(n, d)``, or images ``(n, h, w, 3) uint8``."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise _unreadable(path, name, error) from error
    if not isinstance(array, np.ndarray):  # an .npz under another name
        array.close()
        raise DataError(f"{name}: {path} holds several arrays; rename it to .npz")
    return open_array(array, name)


def read_npz(path: Path, name: str) -> dict[str, NDArray[Any]]:
    """All arrays of an ``.npz`` file."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            return {key: stored[key] for key in stored.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, TypeError) as error:  # TypeError: it is an .npy
        raise _unreadable(path, name, error) from error


def labelled_vectors(name: str, vectors: NDArray[Any], arrays: dict[str, NDArray[Any]], what: str) -> EmbeddingSource:
    """A source of ``vectors`` with the ``labels``, ``label_names`` and ``keys`` that ``arrays`` hold; ``what`` is for messages."""
    n, labels, label_names, keys = len(vectors), None, None, None
    if "labels" in arrays:
        labels, label_names = class_labels(arrays["labels"], n, f"{name}: the array 'labels'")
    if "label_names" in arrays and arrays["label_names"].ndim == 1:
        label_names = [str(label) for label in arrays["label_names"]]
    if "keys" in arrays:
        if arrays["keys"].shape != (n,):
            raise DataError(f"{name}: the array 'keys' has shape {arrays['keys'].shape}; {n} {what} need {n} keys")
        keys = unique_keys(map(str, arrays["keys"]))
    return EmbeddingSource(name, vectors, keys, labels=labels, label_names=label_names)


def open_npz(path: Path, name: str) -> EmbeddingSource:
    """An ``.npz`` file of embeddings: ``features``, ``embeddings`` or ``vectors``, or else its only 2-d float array.

    Optional arrays: ``labels`` (classes or 0/1 indicators), ``label_names`` and ``keys`` (strings). Read into memory, unlike ``.npy``.
    """
    arrays = read_npz(path, name)
    wanted = [key for key in _NPZ_NAMES if key in arrays][:1]
    wanted = wanted or [key for key, array in arrays.items() if array.ndim == 2 and array.dtype.kind == "f"]
    if len(wanted) != 1:
        held = ", ".join(f"{key} {array.dtype} {array.shape}" for key, array in arrays.items()) or "nothing"
        raise DataError(
            f"{name}: {path} has {len(wanted)} candidate arrays of embeddings; name one 'features' (it holds: {held})"
        )
    return labelled_vectors(name, usable_vectors(arrays.pop(wanted[0]), name), arrays, "embeddings")


def _unreadable(path: Path, name: str, error: Exception) -> DataError:
    return DataError(f"{name}: {path} is not a readable NumPy file ({error}); use np.save or np.savez, without objects")
