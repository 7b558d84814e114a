"""Keys and row numbers: what every source needs to name its items and to hand out a part of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from distillhash.errors import ParameterError


class RowKeys(Sequence[str]):
    """Keys ``prefix + row number``, made when asked for: a billion of them cost no more than their row numbers."""

    def __init__(self, prefix: str, rows: range | NDArray[np.intp]) -> None:
        """Keys of ``rows``, in that order; ``RowKeys("train/", range(3))[2]`` is ``"train/2"``."""
        self._prefix = prefix
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> RowKeys: ...
    def __getitem__(self, index: int | slice) -> str | RowKeys:
        """One key, or the keys of a slice."""
        if isinstance(index, slice):
            return RowKeys(self._prefix, self._rows[index])
        return f"{self._prefix}{self._rows[index]}"

    def __iter__(self) -> Iterator[str]:
        """The keys in order."""
        for row in self._rows:
            yield f"{self._prefix}{row}"

    def take(self, rows: NDArray[np.intp]) -> RowKeys:
        """The keys at ``rows``, in that order."""
        if isinstance(self._rows, range):
            return RowKeys(self._prefix, self._rows.start + self._rows.step * rows)
        return RowKeys(self._prefix, self._rows[rows])

    def __repr__(self) -> str:
        return f"RowKeys({self._prefix!r}, {self._rows!r})"


def take_keys(keys: Sequence[str], rows: NDArray[np.intp]) -> Sequence[str]:
    """The keys at ``rows``, in that order."""
    if isinstance(keys, RowKeys):
        return keys.take(rows)
    return [keys[row] for row in rows.tolist()]


def take_labels(labels: NDArray[Any] | None, rows: NDArray[np.intp]) -> NDArray[Any] | None:
    """The labels at ``rows``, or None where there are none."""
    return None if labels is None else labels[rows]


def check_rows(rows: NDArray[np.intp], n: int) -> NDArray[np.intp]:
    """``rows`` as a 1-d integer array, every one of them in ``[0, n)``.

    Raises:
        ParameterError: not integers, not 1-d, or out of range.
    """
    array = np.asarray(rows)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise ParameterError(
            f"rows must be a 1-d integer array, got {array.ndim}-d {array.dtype}; np.flatnonzero turns a mask into rows"
        )
    if array.size and (int(array.min()) < 0 or int(array.max()) >= n):
        raise ParameterError(f"rows run from {array.min()} to {array.max()} but the source holds items 0 to {n - 1}")
    return array.astype(np.intp, copy=False)


def contiguous(rows: NDArray[np.intp]) -> slice | None:
    """The slice equal to ``rows`` where they are consecutive and rising, else None: a slice keeps a memory map a memory map."""
    if rows.size == 0 or int(rows[-1]) - int(rows[0]) != rows.size - 1 or np.any(np.diff(rows) != 1):
        return None
    return slice(int(rows[0]), int(rows[-1]) + 1)


def unique_keys(names: Iterable[str]) -> list[str]:
    r"""``names`` made into keys: unique, and writable as UTF-8.

    The second occurrence of a name gets ``#2``, the third ``#3``, as long as that is not taken; a file name that is not valid UTF-8
    shows its odd bytes as ``\xNN``. Names that are fine already stay as they are.
    """
    keys = [printable(name) for name in names]
    if len(set(keys)) == len(keys):
        return keys
    taken = set(keys)
    seen: dict[str, int] = {}
    for row, key in enumerate(keys):
        seen[key] = seen.get(key, 0) + 1
        if seen[key] == 1:
            continue
        while (candidate := f"{key}#{seen[key]}") in taken:
            seen[key] += 1
        taken.add(candidate)
        keys[row] = candidate
    return keys


def printable(name: str) -> str:
    r"""``name`` writable as UTF-8: the odd bytes of a file name that is not (surrogates in Python) become ``\xNN``."""
    if name.isascii():
        return name
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
