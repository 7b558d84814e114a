"""What every source offers: keys, optional labels, and one item at a time.

A source is a fixed, ordered list of items. Opening one reads names and headers only; pixels and vectors are read when an item is asked
for. Labels are ground truth: evaluation reads them, training never does.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from distillhash.errors import DataError, ParameterError
from distillhash.files import MAX_FILE_SIZE

_INDICATOR_BYTES = 1 << 32  # of a table of labels


def class_labels(values: NDArray[Any], n: int, where: str) -> tuple[NDArray[Any], list[str] | None]:
    """Labels as ``(n,) int64`` or ``(n, n_labels) uint8``, and the sorted class names where the values are strings, else None.

    ``values`` are ``(n,)`` whole numbers or strings, or ``(n, n_labels)`` 0 and 1; ``where`` is what a :class:`DataError` calls them.
    """
    values = np.asarray(values)
    if values.ndim not in (1, 2) or len(values) != n or values.size == 0:
        raise DataError(f"{where} has shape {values.shape}; labels are ({n},) classes or ({n}, n_labels) indicators")
    if values.ndim == 2:
        if values.dtype.kind not in "biuf" or not np.all((values == 0) | (values == 1)):
            raise DataError(f"{where} is 2-d but not all 0 and 1; multi-label indicators hold nothing else")
        return values.astype(np.uint8), None
    if values.dtype.kind in "US":
        names, numbers = np.unique(values.astype(np.str_), return_inverse=True)
        return numbers.reshape(-1).astype(np.int64), [str(label) for label in names]
    if values.dtype.kind == "f":
        values = values.astype(np.float64)
        usable = (values == np.rint(values)) & (np.abs(values) < 2.0**63)
    else:
        usable = values <= np.iinfo(np.int64).max if values.dtype.kind in "biu" else np.False_
    if not np.all(usable):
        raise DataError(
            f"{where} of dtype {values.dtype} holds values that are not whole numbers of 64 bits; classes are integers or strings"
        )
    return values.astype(np.int64), None


def fitting_names(names: Sequence[str] | None, labels: NDArray[Any]) -> Sequence[str] | None:
    """The names of classes, or of indicator columns, if there is one for each; None otherwise."""
    n = labels.shape[1] if labels.ndim == 2 else int(labels.max(initial=-1)) + 1
    return names if names is not None and len(names) >= n else None


@dataclass(frozen=True)
class Columns:
    """The columns of a table (or arrays of an ``.npz``) that the user chose; None where the table decides."""

    image: str | None = None
    embedding: str | None = None
    label: str | None = None
    caption: str | None = None

    def chosen(self) -> dict[str, str]:
        """The choices that were made, by option of the command line."""
        return {f"--{kind}-column": name for kind, name in vars(self).items() if name is not None}


def no_column(option: str, wanted: str, name: str, held: str) -> ParameterError:
    """The error to raise where a chosen column does not exist; ``held`` are those that do."""
    return ParameterError(f"{name}: there is no column {wanted!r:.100} for {option}; it holds {held}")


def label_sets(sets: Sequence[Sequence[int]], where: str) -> NDArray[np.uint8]:
    """Indicators ``(n, n_labels) uint8`` from one list of integers per item.

    Lists of one length, two or more, that hold only 0 and 1 are indicators. Others hold class numbers; an empty one is an item of no class.
    """
    length = len(sets[0]) if sets else 0
    if length >= 2 and all(len(classes) == length for classes in sets):
        table = np.asarray(sets)
        if np.all((table == 0) | (table == 1)):
            return table.astype(np.uint8)
    rows = np.repeat(np.arange(len(sets)), [len(classes) for classes in sets])
    numbers = np.array([number for classes in sets for number in classes], np.int64)
    low, high = int(numbers.min(initial=0)), int(numbers.max(initial=0))
    if low < 0 or high > 99_999 or len(sets) * high > _INDICATOR_BYTES:
        raise DataError(f"{where} holds class numbers from {low} to {high}; number the classes from 0 to at most 99999")
    indicators = np.zeros((len(sets), high + 1), np.uint8)
    indicators[rows, numbers] = 1
    return indicators


class RowKeys(Sequence[str]):
    """Keys ``prefix + row number``, made when asked for, so that a billion of them cost no more than their row numbers."""

    def __init__(self, prefix: str, rows: range | NDArray[np.intp]) -> None:
        self._prefix, self._rows = prefix, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        """One key, or the keys of a slice."""
        if isinstance(index, slice):
            return RowKeys(self._prefix, self._rows[index])
        return f"{self._prefix}{self._rows[index]}"

    def take(self, rows: NDArray[np.intp]) -> "RowKeys":
        """The keys at ``rows``, in that order."""
        if isinstance(self._rows, range):
            return RowKeys(self._prefix, self._rows.start + self._rows.step * rows)
        return RowKeys(self._prefix, self._rows[rows])


def take_keys(keys: Sequence[str], rows: NDArray[np.intp]) -> Sequence[str]:
    """The keys at ``rows``, in that order."""
    return keys.take(rows) if isinstance(keys, RowKeys) else [keys[row] for row in rows.tolist()]


def check_rows(rows: NDArray[np.intp], n: int) -> NDArray[np.intp]:
    """``rows`` as a 1-d integer array; a :class:`ParameterError` unless all of them lie in ``[0, n)``."""
    array = np.asarray(rows)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise ParameterError(
            f"rows must be a 1-d integer array, got {array.ndim}-d {array.dtype}; np.flatnonzero turns a mask into rows"
        )
    if array.size and (int(array.min()) < 0 or int(array.max()) >= n):
        raise ParameterError(f"rows run from {array.min()} to {array.max()} but the source holds items 0 to {n - 1}")
    return array.astype(np.intp, copy=False)


def unique_keys(names: Iterable[str]) -> list[str]:
    """``names`` made into keys: unique and :func:`printable`. The second occurrence of a name gets ``#2``, the third ``#3``."""
    keys = [printable(name) for name in names]
    taken = set(keys)
    if len(taken) == len(keys):
        return keys
    seen: dict[str, int] = {}
    for row, key in enumerate(keys):
        seen[key] = seen.get(key, 0) + 1
        if seen[key] > 1:
            while (candidate := f"{key}#{seen[key]}") in taken:
                seen[key] += 1
            taken.add(candidate)
            keys[row] = candidate
    return keys


def printable(name: str) -> str:
    r"""``name`` writable as UTF-8: bytes of a file name that are not UTF-8 (surrogates in Python) become ``\xNN``."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


@dataclass(frozen=True)
class Skipped:
    """One item that could not be used: its key, and the reason as a short sentence."""

    key: str
    reason: str


class BadItemError(DataError):
    """One item cannot be read or decoded. Jobs skip the item, count it and list it; ``--strict`` makes them fail."""


@contextmanager
def item_memory() -> Iterator[None]:
    """Around the work for one item: memory that there is not is the item's :class:`BadItemError`."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryError) or "can't allocate memory" in str(error):  # torch has no error of its own
            raise BadItemError("it needs more memory than there is") from error
        raise


def nothing_usable(name: str, skipped: Sequence[Skipped]) -> DataError:
    """The error to raise when all items of the source ``name`` were skipped."""
    first = f"; first {skipped[0].key}: {skipped[0].reason}" if skipped else ""
    return DataError(f"nothing usable in {name}: all {len(skipped)} items were skipped{first}")


class Source(ABC):
    """An ordered collection of items."""

    name: str  # the specification it was opened from, e.g. ``cifar10:data#train``
    keys: Sequence[str]  # unique and stable between runs: a path relative to the source, or a row such as ``train/17``
    labels: NDArray[Any] | None  # ``(n,) int64`` classes, or ``(n, n_labels) uint8`` 0/1 multi-label indicators
    label_names: Sequence[str] | None  # one name per class or indicator column
    splits: Mapping[str, NDArray[np.intp]] = MappingProxyType({})  # rows of each named split; none after ``select``

    def __init__(
        self,
        name: str,
        keys: Sequence[str],
        *,
        labels: NDArray[Any] | None = None,
        label_names: Sequence[str] | None = None,
        splits: Mapping[str, NDArray[np.intp]] | None = None,
    ) -> None:
        self.name, self.keys, self.labels, self.label_names, self.splits = name, keys, labels, label_names, splits or {}

    @cached_property
    def damaged(self) -> dict[str, str]:
        """Key and damage of the items read so far that are damaged and were used all the same; selections share it."""
        return {}

    def __len__(self) -> int:
        """Number of items, readable or not."""
        return len(self.keys)

    def select(self, rows: NDArray[np.intp]) -> Self:
        """The same kind of source holding only ``rows`` (``(m,) int``), in that order."""
        rows = check_rows(rows, len(self))
        _ = self.damaged  # made before it is shared
        part = copy(self)
        part.keys = take_keys(self.keys, rows)
        part.labels = None if self.labels is None else self.labels[rows]
        part.splits = {}
        part._take(rows)
        return part

    def _take(self, rows: NDArray[np.intp]) -> None:
        """Keep only ``rows`` of what a subclass holds beside keys and labels."""
        raise NotImplementedError

    def path(self, row: int) -> str | None:  # noqa: ARG002  # an interface; sources of files use it
        """Absolute path of the file behind item ``row``, or None where the item is not a separate file."""
        return None


class ImageSource(Source):
    """A source of images. Items of more than ``max_file_size`` encoded bytes are not read."""

    max_file_size = MAX_FILE_SIZE

    @abstractmethod
    def read(self, row: int) -> bytes | NDArray[np.uint8]:
        """Item ``row`` as stored: an encoded file (bytes), or pixels ``(h, w, 3) uint8``. Safe to call from several threads.

        A :class:`BadItemError` where the item cannot be read (absent, unreadable, empty).
        """


class EmbeddingSource(Source):
    """A source of ready vectors: ``vectors`` is ``(n, d)`` floats in memory or in a memory map; the keys default to row numbers."""

    def __init__(self, name: str, vectors: NDArray[Any], keys: Sequence[str] | None = None, **labelling: Any) -> None:
        super().__init__(name, RowKeys("", range(len(vectors))) if keys is None else keys, **labelling)
        self.vectors = vectors

    def _take(self, rows: NDArray[np.intp]) -> None:
        consecutive = rows.size and int(rows[-1]) - int(rows[0]) == rows.size - 1 and np.all(np.diff(rows) == 1)
        # A slice stays a view of the memory map; any other selection copies its rows.
        self.vectors = self.vectors[slice(int(rows[0]), int(rows[-1]) + 1) if consecutive else rows]
