"""CIFAR-10 in every layout it is kept in.

Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009. https://www.cs.toronto.edu/~kriz/cifar.html

60,000 colour images of 32x32 pixels in 10 classes: five training batches and one test batch of 10,000. The python version is a pickle
of one dictionary per batch, read here by an unpickler that can build dictionaries, strings, numbers and NumPy arrays and nothing else;
the binary version is one label byte and 3,072 pixel bytes (red, green, blue planes) per image.
"""

import io
import pickle
import pickletools
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillhash.errors import DataError, FormatError
from distillhash.files import read_file
from distillhash.sources.base import Source
from distillhash.sources.download import check_file, download
from distillhash.sources.table import open_tables
from distillhash.sources.vectors import PixelImages

CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
PYTHON_MD5 = "c58f30108f718f92721af3b95e74349a"
BINARY_MD5 = "c32a1d4ab5d03f1284b67883e8d87530"
BATCH_ROWS = 10_000
_PYTHON_BATCHES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")
_BINARY_BATCHES = tuple(f"{batch}.bin" for batch in _PYTHON_BATCHES)
_PIXEL_BYTES = 3 * 32 * 32
_MAX_BATCH_BYTES = 64 << 20  # an official batch is 31 MB
_MAX_MEMO = 1 << 20  # objects in a pickle
_MAX_ARCHIVE_BYTES = 1 << 30  # an official archive is 170 MB

_Batch = tuple[NDArray[np.uint8], NDArray[np.int64]]


def open_cifar10(folder: Path, name: str, *, may_download: bool = True) -> Source:
    """CIFAR-10 from ``folder``: training images (keys ``train/0`` ...), then test images (``test/0`` ...); splits ``train``, ``test``.

    Looked for in this order: ``cifar-10-batches-py/``, ``cifar-10-batches-bin/`` (``folder`` may be either itself), ``train.parquet``
    with ``test.parquet``, the python archive, the binary archive. With none of them the python archive is downloaded to ``folder``, or,
    unless ``may_download``, a :class:`DataError` raised. Archives must have the published MD5. The archives and batches take 184 MB of
    memory; the Parquet files are read as needed.
    """
    python, binary = folder / "cifar-10-python.tar.gz", folder / "cifar-10-binary.tar.gz"
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{name}: {folder} is a file; give the folder that holds {python.name}")
    for inner, batches, parse in (
        ("cifar-10-batches-py", _PYTHON_BATCHES, _python_batch),
        ("cifar-10-batches-bin", _BINARY_BATCHES, _binary_batch),
    ):
        for place in (folder / inner, folder):
            if any((place / batch).exists() for batch in batches):
                return _from_batches(partial(_read_batch, place), batches, parse, name)
    tables = [folder / "train.parquet", folder / "test.parquet"]
    if any(table.exists() for table in tables):
        missing = [table for table in tables if not table.is_file()]
        if missing:
            raise FormatError(f"{name}: {missing[0]} is missing beside the other split; both splits are needed")
        source = open_tables(tables, name, label_names=CLASS_NAMES)
        source.keys = _keys(len(source.splits["train"]), len(source.splits["test"]))
        return source
    if binary.exists() and not python.exists():
        return _from_batches(_archive_reader(binary, BINARY_MD5, _BINARY_BATCHES), _BINARY_BATCHES, _binary_batch, name)
    if not python.exists() and not may_download:
        raise DataError(f"{name}: {folder} holds no CIFAR-10 in any of its layouts")
    if not python.exists():
        download(URL, python, algorithm="md5", checksum=PYTHON_MD5)
    return _from_batches(_archive_reader(python, PYTHON_MD5, _PYTHON_BATCHES), _PYTHON_BATCHES, _python_batch, name)


def _keys(n_train: int, n_test: int) -> list[str]:
    return [*(f"train/{row}" for row in range(n_train)), *(f"test/{row}" for row in range(n_test))]


def _from_batches(
    read: Callable[[str], bytes], batches: tuple[str, ...], parse: Callable[[bytes], _Batch], name: str
) -> PixelImages:
    planes, labels = [], []
    for batch in batches:
        try:
            values, classes = parse(read(batch))
        except FormatError as error:
            raise FormatError(f"{name}: the batch {batch} {error}; get the data again from {URL}") from error
        if not (len(values) == len(classes) == BATCH_ROWS) or np.any((classes < 0) | (classes >= len(CLASS_NAMES))):
            raise FormatError(
                f"{name}: the batch {batch} holds {len(values)} images and {len(classes)} labels, expected {BATCH_ROWS} of each, "
                f"labels 0 to 9; get the data again from {URL}"
            )
        planes.append(values)
        labels.append(classes)
    n_train, n_test = 5 * BATCH_ROWS, BATCH_ROWS
    return PixelImages(
        name,
        np.concatenate(planes).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1),
        _keys(n_train, n_test),
        labels=np.concatenate(labels),
        label_names=CLASS_NAMES,
        splits={"train": np.arange(n_train), "test": np.arange(n_train, n_train + n_test)},
    )


def _read_batch(folder: Path, batch: str) -> bytes:
    try:
        return read_file(folder / batch, limit=_MAX_BATCH_BYTES)
    except OSError as error:
        raise FormatError(f"cannot be read from {folder} ({error.strerror})") from error


def _archive_reader(path: Path, md5: str, batches: tuple[str, ...]) -> Callable[[str], bytes]:
    """All batches in one pass over the compressed stream; nothing is extracted to disk."""
    import tarfile

    if not path.is_file() or path.stat().st_size > _MAX_ARCHIVE_BYTES:
        raise FormatError(f"{path} is not an official archive; delete it, and it is downloaded again")
    check_file(path, path, "md5", md5, "delete it, and it is downloaded again")
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                batch = Path(member.name).name
                wanted = member.isfile() and batch in batches and member.size <= _MAX_BATCH_BYTES
                if wanted and (stream := archive.extractfile(member)) is not None:
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
        for operation, argument, _ in pickletools.genops(data):
            if (
                operation.name in ("PUT", "LONG_BINPUT") and int(argument or 0) > _MAX_MEMO
            ):  # the reader makes room for as many
                raise pickle.UnpicklingError(f"it numbers an object {argument}")
        stored = _ArrayUnpickler(io.BytesIO(data), encoding="bytes").load()
        values, classes = stored[b"data"], np.asarray(stored[b"labels"]).astype(np.int64)
    except Exception as error:  # a damaged pickle raises anything
        raise FormatError(f"is not the expected dictionary of arrays ({type(error).__name__}: {error})") from error
    if not isinstance(values, np.ndarray) or values.dtype != np.uint8 or values.shape[1:] != (_PIXEL_BYTES,):
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
        if (module, name) == ("_codecs", "encode"):  # how protocol 2 written by Python 3 spells bytes
            return _latin1_bytes
        if (module, name) not in self._allowed:
            raise pickle.UnpicklingError(f"{module}.{name} has no place in a CIFAR-10 batch")
        return self._allowed[module, name]


def _latin1_bytes(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes encoded as {encoding}")
    return text.encode("latin1")
