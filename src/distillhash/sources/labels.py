"""Ground-truth labels of any stored kind as the two kinds the package knows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillhash.errors import DataError


def class_labels(values: NDArray[Any], n: int, where: str) -> tuple[NDArray[Any], list[str] | None]:
    """Labels from an array.

    Args:
        values: ``(n,)`` integers (stored as floats too, when whole) or strings, or ``(n, n_labels)`` holding only 0 and 1.
        n: Number of items.
        where: What to call the labels in an error, e.g. ``x.npz: the array 'labels'``.

    Returns:
        ``(n,) int64`` or ``(n, n_labels) uint8``; and the sorted class names where the values were strings, else None.

    Raises:
        DataError: another shape, another number of rows, or values that are not labels.
    """
    values = np.asarray(values)
    if values.ndim not in (1, 2) or len(values) != n or values.size == 0:
        raise DataError(
            f"{where} has shape {values.shape}; labels are ({n},) classes or ({n}, n_labels) 0/1 indicators"
        )
    if values.ndim == 2:
        if values.dtype.kind not in "biuf" or not np.all((values == 0) | (values == 1)):
            raise DataError(f"{where} is 2-d but not all 0 and 1; multi-label indicators hold nothing else")
        return values.astype(np.uint8), None
    if values.dtype.kind in "US":
        names, numbers = np.unique(values.astype(np.str_), return_inverse=True)
        return numbers.reshape(-1).astype(np.int64), [str(label) for label in names]
    if values.dtype.kind not in "biuf" or not np.all(np.isfinite(values) & (values == np.rint(values))):
        raise DataError(
            f"{where} of dtype {values.dtype} holds values that are not whole numbers; classes are integers or strings"
        )
    return values.astype(np.int64), None


def label_sets(sets: Sequence[Sequence[int]], where: str) -> NDArray[np.uint8]:
    """Indicators from one list of integers per item.

    Lists that all have the same length, two or more, and hold only 0 and 1 are the indicators themselves; any other lists hold the class
    numbers of their item, from 0, in any order (an empty list is an item of no class).

    Returns:
        ``(n, n_labels) uint8``, with n_labels the length of the lists or the highest class number plus one (at least 1).

    Raises:
        DataError: a class number below 0 or above 99,999.
    """
    length = len(sets[0]) if sets else 0
    if length >= 2 and all(len(classes) == length for classes in sets):
        table = np.asarray(sets)
        if np.all((table == 0) | (table == 1)):
            return table.astype(np.uint8)
    rows = np.repeat(np.arange(len(sets)), [len(classes) for classes in sets])
    numbers = np.array([number for classes in sets for number in classes], np.int64)
    low, high = (int(numbers.min()), int(numbers.max())) if numbers.size else (0, 0)
    if low < 0 or high > 99_999:
        raise DataError(f"{where} holds class numbers from {low} to {high}; number the classes from 0 to at most 99999")
    indicators = np.zeros((len(sets), high + 1), np.uint8)
    indicators[rows, numbers] = 1
    return indicators
