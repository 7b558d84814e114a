"""The handwritten digits that ship with scikit-learn."""

import numpy as np

from distillhash.sources.base import RowKeys
from distillhash.sources.vectors import PixelImages


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
        RowKeys("digits/", range(len(grey))),
        labels=np.asarray(digits.target).astype(np.int64),
        label_names=[str(digit) for digit in range(10)],
        splits={"train": rows[rows % 5 != 4], "test": rows[rows % 5 == 4]},
    )
