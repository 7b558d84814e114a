"""CIFAR-10 in every layout it is kept in.

Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009. https://www.cs.toronto.edu/~kriz/cifar.html

60,000 colour images of 32x32 pixels in 10 classes: five training batches and one test batch of 10,000. The python version is a pickle
of one dictionary per batch, read here by an unpickler that can build dictionaries, strings, numbers and NumPy arrays and nothing else;
the binary version is one label byte and 3,072 pixel bytes (red, green, blue planes) per image.
"""

from __future__ import annotations

import io
import pickle
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillhash.errors import DataError, FormatError
from distillhash.sources.base import Source
from distillhash.sources.download import check_file, download
from distillhash.sources.table import open_tables
from distillhash.sources.vectors import PixelImages

CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_PYTHON_ARCHIVE = "cifar-10-python.tar.gz"
_BINARY_ARCHIVE = "cifar-10-binary.tar.gz"
_PYTHON_BATCHES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")
_BINARY_BATCHES = (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin")
_PIXEL_BYTES = 3 * 32 * 32
_MAX_BATCH_BYTES = 64 << 20  # an official batch is 31 MB


@dataclass(frozen=True)
class Release:
    """A published release of the archives: where it comes from and what it must look like."""

    url: str
    python_md5: str
    binary_md5: str
    batch_rows: int


OFFICIAL = Release(
    url="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    python_md5="c58f30108f718f92721af3b95e74349a",
    binary_md5="c32a1d4ab5d03f1284b67883e8d87530",
    batch_rows=10_000,
)

_Batch = tuple[NDArray[np.uint8], NDArray[np.int64]]


def open_cifar10(folder: Path, name: str, release: Release = OFFICIAL) -> Source:
    """CIFAR-10 from ``folder``: training images (keys ``train/0`` ...), then test images (``test/0`` ...); splits ``train``, ``test``.

    Looked for in this order: ``cifar-10-batches-py/``, ``cifar-10-batches-bin/`` (``folder`` may be either itself), ``train.parquet``
    with ``test.parquet``, the python archive, the binary archive. With none of them the python archive is downloaded to ``folder``.
    Archives must have the published MD5. The archives and batches take 184 MB of memory; the Parquet files are read as needed.

    Args:
        folder: Where the data is, or shall be.
        name: The specification, for messages.
        release: What to expect and where to get it.

    Raises:
        DataError: nothing there and no download.
        FormatError: what is there is incomplete or damaged.
    """
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{name}: {folder} is a file; give the folder that holds {_PYTHON_ARCHIVE}")
    for batches in (folder / "cifar-10-batches-py", folder):
        if any((batches / batch).exists() for batch in _PYTHON_BATCHES):
            return _from_batches(_folder_reader(batches), _PYTHON_BATCHES, _python_batch, name, release)
    for batches in (folder / "cifar-10-batches-bin", folder):
        if any((batches / batch).exists() for batch in _BINARY_BATCHES):
            return _from_batches(_folder_reader(batches), _BINARY_BATCHES, _binary_batch, name, release)
    tables = [folder / "train.parquet", folder / "test.parquet"]
    if any(table.exists() for table in tables):
        return _from_tables(tables, name)
    if not (folder / _PYTHON_ARCHIVE).exists() and (folder / _BINARY_ARCHIVE).exists():
        read = _archive_reader(folder / _BINARY_ARCHIVE, release.binary_md5, _BINARY_BATCHES)
        return _from_batches(read, _BINARY_BATCHES, _binary_batch, name, release)
    if not (folder / _PYTHON_ARCHIVE).exists():
        download(release.url, folder / _PYTHON_ARCHIVE, algorithm="md5", checksum=release.python_md5)
    read = _archive_reader(folder / _PYTHON_ARCHIVE, release.python_md5, _PYTHON_BATCHES)
    return _from_batches(read, _PYTHON_BATCHES, _python_batch, name, release)


def _from_tables(tables: list[Path], name: str) -> Source:
    missing = [table for table in tables if not table.exists()]
    if missing:
        raise FormatError(
            f"{name}: {missing[0]} is missing beside the other split; both train.parquet and test.parquet are needed"
        )
    source = open_tables(tables, name, label_names=CLASS_NAMES)
    source.keys = _keys(*(len(source.splits[split]) for split in ("train", "test")))
    return source


def _keys(n_train: int, n_test: int) -> list[str]:
    return [*(f"train/{row}" for row in range(n_train)), *(f"test/{row}" for row in range(n_test))]


def _from_batches(
    read: Callable[[str], bytes],
    batches: tuple[str, ...],
    parse: Callable[[bytes], _Batch],
    name: str,
    release: Release,
) -> PixelImages:
    planes, labels = [], []
    for batch in batches:
        try:
            values, classes = parse(read(batch))
        except FormatError as error:
            raise FormatError(f"{name}: the batch {batch} {error}; get the data again from {release.url}") from error
        if (
            len(values) != release.batch_rows
            or len(classes) != len(values)
            or not np.all((classes >= 0) & (classes < len(CLASS_NAMES)))
        ):
            raise FormatError(
                f"{name}: the batch {batch} holds {len(values)} images and {len(classes)} labels, expected {release.batch_rows} of each, "
                f"labels 0 to 9; get the data again from {release.url}"
            )
        planes.append(values)
        labels.append(classes)
    n_train, n_test = 5 * release.batch_rows, release.batch_rows
    return PixelImages(
        name,
        np.concatenate(planes).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1),
        _keys(n_train, n_test),
        labels=np.concatenate(labels),
        label_names=CLASS_NAMES,
        splits={"train": np.arange(n_train), "test": np.arange(n_train, n_train + n_test)},
    )


def _folder_reader(folder: Path) -> Callable[[str], bytes]:
    def read(batch: str) -> bytes:
        try:
            return (folder / batch).read_bytes()
        except OSError as error:
            raise FormatError(f"cannot be read from {folder} ({error.strerror})") from error

    return read


def _archive_reader(path: Path, md5: str, batches: tuple[str, ...]) -> Callable[[str], bytes]:
    """All batches in one pass over the compressed stream; nothing is extracted to disk."""
    import tarfile

    check_file(path, path, "md5", md5, "delete it, and it is downloaded again")
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                batch = Path(member.name).name
                stream = archive.extractfile(member) if batch in batches and member.size <= _MAX_BATCH_BYTES else None
                if stream is not None:
                    found[batch] = stream.read()
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise FormatError(f"{path} is a damaged archive ({error}); delete it, and it is downloaded again") from error

    def read(batch: str) -> bytes:
        if batch not in found:
            raise FormatError(f"is not in {path}")
        return found.pop(batch)

    return read


def _binary_batch(data: bytes) -> _Batch:
    if len(data) % (1 + _PIXEL_BYTES):
        raise FormatError(f"has {len(data)} bytes, not a multiple of {1 + _PIXEL_BYTES}")
    table = np.frombuffer(data, np.uint8).reshape(-1, 1 + _PIXEL_BYTES)
    return table[:, 1:], table[:, 0].astype(np.int64)


def _python_batch(data: bytes) -> _Batch:
    try:
        stored = _ArrayUnpickler(io.BytesIO(data), encoding="bytes").load()
        values, classes = stored[b"data"], np.asarray(stored[b"labels"]).astype(np.int64)
    except Exception as error:  # a damaged pickle raises anything
        raise FormatError(f"is not the expected dictionary of arrays ({type(error).__name__}: {error})") from error
    if (
        not isinstance(values, np.ndarray)
        or values.dtype != np.uint8
        or values.ndim != 2
        or values.shape[1] != _PIXEL_BYTES
    ):
        raise FormatError(f"has pixels of another kind than (n, {_PIXEL_BYTES}) uint8")
    return values, classes


class _ArrayUnpickler(pickle.Unpickler):
    """Builds plain values and NumPy arrays; refuses every other name a pickle asks for."""

    _allowed = {  # noqa: RUF012  # a constant
        **{(f"numpy.{core}.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0] for core in ("core", "_core")},
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }

    def find_class(self, module: str, name: str) -> Any:
        """The constructor behind ``module.name`` where it is one of the few needed."""
        if (module, name) == ("_codecs", "encode"):  # how protocol 2 written by Python 3 spells bytes
            return _latin1_bytes
        if (module, name) not in self._allowed:
            raise pickle.UnpicklingError(f"{module}.{name} has no place in a CIFAR-10 batch")
        return self._allowed[module, name]


def _latin1_bytes(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes encoded as {encoding}")
    return text.encode("latin1")
