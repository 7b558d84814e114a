"""Images that are arrays already: a pixel array, and scikit-learn's digits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillhash.errors import DataError
from distillhash.sources.base import ImageSource
from distillhash.sources.rows import RowKeys, check_rows, take_keys, take_labels


class PixelImages(ImageSource):
    """Images of one size in an array; selecting rows copies no pixels."""

    def __init__(
        self,
        name: str,
        pixels: NDArray[np.uint8],
        *,
        keys: Sequence[str],
        labels: NDArray[Any] | None = None,
        label_names: Sequence[str] | None = None,
        splits: Mapping[str, NDArray[np.intp]] | None = None,
        rows: NDArray[np.intp] | None = None,
    ) -> None:
        """Wrap ``pixels`` ``(N, h, w, 3) uint8``; item i is ``pixels[rows[i]]``, or ``pixels[i]`` without ``rows``.

        Raises:
            DataError: another dtype or shape, or no image.
        """
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[3] != 3 or pixels.size == 0:
            raise DataError(
                f"{name}: images must be a non-empty (n, h, w, 3) uint8 array, got {pixels.dtype} of shape {pixels.shape}"
            )
        self.name = name
        self.keys = keys
        self.labels = labels
        self.label_names = label_names
        self.splits = splits or {}
        self._pixels = pixels
        self._rows = np.arange(len(pixels)) if rows is None else rows

    def select(self, rows: NDArray[np.intp]) -> PixelImages:
        """The images of ``rows``."""
        rows = check_rows(rows, len(self))
        return PixelImages(
            self.name,
            self._pixels,
            keys=take_keys(self.keys, rows),
            labels=take_labels(self.labels, rows),
            label_names=self.label_names,
            rows=self._rows[rows],
        )

    def read(self, row: int) -> NDArray[np.uint8]:
        """A copy of the pixels of image ``row``, ``(h, w, 3) uint8``."""
        return np.array(self._pixels[self._rows[row]], order="C")


def open_digits(name: str) -> PixelImages:
    """The 1,797 handwritten digits of scikit-learn (UCI "Optical Recognition of Handwritten Digits", test part), kept at 8x8 pixels.

    Grey levels 0..16 become 0..255 (times 255/16, rounded). ``#test`` is every fifth image (rows 4, 9, 14, ...), 359 of them;
    ``#train`` the other 1,438.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    grey = np.rint(np.asarray(digits.images) * (255 / 16)).astype(np.uint8)
    rows = np.arange(len(grey))
    return PixelImages(
        name,
        np.repeat(grey[..., None], 3, axis=3),
        keys=RowKeys("digits/", range(len(grey))),
        labels=np.asarray(digits.target).astype(np.int64),
        label_names=[str(digit) for digit in range(10)],
        splits={"train": rows[rows % 5 != 4], "test": rows[rows % 5 == 4]},
    )
