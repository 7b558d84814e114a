"""Sources that are arrays already: embeddings and images in memory, in ``.npy`` and in ``.npz`` files."""

import errno
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillhash.errors import DataError
from distillhash.files import open_regular
from distillhash.sources.base import (
    EmbeddingSource,
    ImageSource,
    RowKeys,
    Source,
    class_labels,
    fitting_names,
    no_column,
    unique_keys,
)

_logger = logging.getLogger(__name__)
_NPZ_NAMES = ("features", "embeddings", "vectors")
_BLOCK_BYTES = 1 << 24
_UNPACKED_BYTES = 1 << 30  # a file may unpack to this, or to so many times its size
_UNPACKED_RATIO = 100
_SHOWN = 20  # arrays of an archive named in a message
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
    blocks = (vectors[start : start + step] for start in range(0, len(vectors), step))
    sizes = np.concatenate([np.abs(block).max(axis=1).astype(np.float64) for block in blocks])
    bad = np.flatnonzero(~np.isfinite(sizes))
    if bad.size:
        raise DataError(
            f"{name}: {bad.size} of {len(vectors)} rows hold NaN or infinity, the first is row {bad[0]}; remove or repair them"
        )
    large = np.flatnonzero(sizes > LARGEST)
    if large.size:
        raise DataError(
            f"{name}: row {large[0]} holds a number of size {sizes[large[0]]:.3g}, over the limit of {LARGEST:g}; "
            "remove such rows, or divide all of them by one number"
        )


def open_array(array: NDArray[Any], name: str) -> Source:
    """Embeddings ``(n, d)``, or images ``(n, h, w, 3) uint8``; keys are row numbers."""
    if array.ndim == 4:
        return PixelImages(name, array, RowKeys("", range(len(array))))
    return EmbeddingSource(name, usable_vectors(array, name))


def check_unpacked(n_bytes: int, stored: int, allowed: int = _UNPACKED_BYTES) -> None:
    """An :class:`OSError` where a file of ``stored`` bytes unpacks to more than ``allowed`` and to far more than embeddings do."""
    if n_bytes > max(allowed, _UNPACKED_RATIO * stored):
        reason = f"it unpacks to {n_bytes:,} bytes, over {_UNPACKED_RATIO} times the {stored:,} it has; store it uncompressed"
        raise OSError(errno.EFBIG, reason)


@contextmanager
def _readable(path: Path, name: str) -> Iterator[None]:
    """Turn whatever NumPy raises about a damaged file into a :class:`DataError`."""
    try:
        yield
    except Exception as error:  # a header is Python source: SyntaxError, RecursionError, MemoryError, TypeError, ...
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0] or type(error).__name__
        raise DataError(
            f"{name}: {path} is not a readable NumPy file ({reason:.300}); use np.save or np.savez, without objects"
        ) from error


def open_npy(path: Path, name: str) -> Source:
    """A ``.npy`` file, memory-mapped: embeddings ``(n, d)``, or images ``(n, h, w, 3) uint8``."""
    with _readable(path, name):
        with open_regular(path) as file:  # np.load would wait for a pipe
            status = os.fstat(file.fileno())
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        if isinstance(array, np.ndarray) and array.nbytes > _UNPACKED_BYTES and hasattr(status, "st_blocks"):
            check_unpacked(array.nbytes, 512 * status.st_blocks)  # a sparse file has zeros that nobody stored
    if not isinstance(array, np.ndarray):  # an .npz under another name
        array.close()
        raise DataError(f"{name}: {path} holds several arrays; rename it to .npz")
    try:
        return open_array(array, name)
    except MemoryError as error:
        raise DataError(f"{name}: {array.dtype} of shape {array.shape} does not fit into memory") from error


class Archive:
    """The arrays of an ``.npz`` file, each read when it is asked for, and none that unpacks to far more than the file has."""

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name = path, name
        with self._open() as stored:
            self.names: list[str] = list(dict.fromkeys(stored.files))

    @contextmanager
    def _open(self) -> Iterator[Any]:
        with (
            _readable(self.path, self.name),
            open_regular(self.path) as file,
            np.load(file, allow_pickle=False) as stored,
        ):
            if isinstance(stored, np.ndarray):
                raise DataError("it holds one array; rename it to .npy")
            yield stored

    def __contains__(self, key: str) -> bool:
        return key in self.names

    def __getitem__(self, key: str) -> NDArray[Any]:
        """The array ``key``; a :class:`DataError` where it cannot be read."""
        with self._open() as stored:
            places = [key, f"{key}.npy"]
            sizes = [member.file_size for member in stored.zip.infolist() if member.filename in places]
            check_unpacked(max(sizes, default=0), self.path.stat().st_size)
            array = stored[key]
            if not isinstance(array, np.ndarray):
                raise DataError(f"its member {key!r:.100} is no array")
            return array

    def contents(self) -> str:
        """What the file holds, for messages."""
        held = [self._described(key) for key in self.names[:_SHOWN]]
        return ", ".join([*held, *(["..."] if len(self.names) > _SHOWN else [])]) or "nothing"

    def _described(self, key: str) -> str:
        try:
            array = self[key]
        except DataError:
            return f"{key} (unreadable)"
        return f"{key} {array.dtype} {array.shape}"


def labelled_vectors(
    name: str, vectors: NDArray[Any], arrays: Archive, what: str, *, label_column: str | None = None
) -> EmbeddingSource:
    """A source of ``vectors`` with the ``labels``, ``label_names`` and ``keys`` that ``arrays`` hold; ``what`` is for messages.

    Labels that cannot be used are ignored with a logged warning, unless they were asked for as ``label_column``.
    """
    n, labels, keys = len(vectors), None, None
    label_names: Sequence[str] | None = None
    column = label_column or "labels"
    if label_column is not None and label_column not in arrays:
        raise no_column("--label-column", label_column, name, arrays.contents())
    if column in arrays:
        try:
            labels, label_names = class_labels(arrays[column], n, f"{name}: the array {column!r}")
        except DataError as error:
            if label_column is not None:
                raise
            _logger.warning("%s; the labels are ignored", error)
    if labels is not None and "label_names" in arrays and arrays["label_names"].ndim == 1:
        label_names = fitting_names([str(label) for label in arrays["label_names"]], labels)
    if "keys" in arrays:
        stored = arrays["keys"]
        if stored.shape != (n,):
            raise DataError(f"{name}: the array 'keys' has shape {stored.shape}; {n} {what} need {n} keys")
        keys = unique_keys(map(str, stored))
    return EmbeddingSource(name, vectors, keys, labels=labels, label_names=label_names)


def open_npz(
    path: Path, name: str, *, embedding_column: str | None = None, label_column: str | None = None
) -> EmbeddingSource:
    """An ``.npz`` file of embeddings: ``features``, ``embeddings`` or ``vectors``, or else its only 2-d float array.

    Optional arrays: ``labels`` (classes or 0/1 indicators), ``label_names`` and ``keys`` (strings). Read into memory, unlike ``.npy``.
    The columns are the names of other arrays to take.
    """
    arrays = Archive(path, name)
    if embedding_column is not None and embedding_column not in arrays:
        raise no_column("--embedding-column", embedding_column, name, arrays.contents())
    wanted = [embedding_column] if embedding_column is not None else [key for key in _NPZ_NAMES if key in arrays][:1]
    wanted = wanted or [key for key in arrays.names if arrays[key].ndim == 2 and arrays[key].dtype.kind == "f"]
    if len(wanted) != 1:
        raise DataError(
            f"{name}: {path} has {len(wanted)} candidate arrays of embeddings; name one 'features', or choose one with "
            f"--embedding-column (it holds: {arrays.contents()})"
        )
    vectors = usable_vectors(arrays[wanted[0]], name)
    return labelled_vectors(name, vectors, arrays, "embeddings", label_column=label_column)
