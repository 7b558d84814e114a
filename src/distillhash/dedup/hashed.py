"""Perceptual hashes, taken of images as they are read for their features.

Features say what is in a picture, and two scenes of one place share that; a perceptual hash says where it is light and dark, and a caption
or a stronger compression hardly changes it. Together they tell copies from look-alikes far better than either (docs/dedup.md).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from distillhash.sources import MAX_PIXELS, ImageSource, decode_resized, digest

if TYPE_CHECKING:
    from distillhash.backbones import FeatureCache

HASH_BITS = 256
_SIDE, _PIXELS = 16, 64  # the hash has 16 x 16 bits, and its library looks at four times as many pixels a side
_IDENTITY = f"imagehash.phash/{_SIDE}/{_PIXELS}"


class HashedImages(ImageSource):
    """A source that keeps the perceptual hash of every image that was read from it.

    Attributes:
        hashes: ``(n, 32) uint8``, packed like codes; zeros where nothing was read.
    """

    def __init__(self, source: ImageSource, *, cache: FeatureCache | None, max_pixels: int | None = None) -> None:
        """Keep references; nothing is read yet.

        Args:
            source: The images.
            cache: Where hashes are kept by content, or None.
            max_pixels: Images above this are bad items.
        """
        self.name, self.keys, self.labels, self.label_names = source.name, source.keys, None, None
        self.hashes = np.zeros((len(source), HASH_BITS // 8), np.uint8)
        self._source, self._cache = source, cache
        self._max_pixels = MAX_PIXELS if max_pixels is None else max_pixels
        self._store = None if cache is None else cache.store(_IDENTITY, HASH_BITS // 32)

    def select(self, rows: NDArray[np.intp]) -> HashedImages:
        """The images of ``rows``, not yet read."""
        return HashedImages(self._source.select(rows), cache=self._cache, max_pixels=self._max_pixels)

    def path(self, row: int) -> str | None:
        """As in the source."""
        return self._source.path(row)

    def read(self, row: int) -> bytes | NDArray[np.uint8]:
        """The item as the source has it.

        Raises:
            BadItemError: it cannot be read or decoded.
        """
        data = self._source.read(row)
        self.hashes[row] = self._hash(data)
        return data

    def close(self) -> None:
        """Close the cache."""
        if self._store is not None:
            self._store.close()

    def _hash(self, data: bytes | NDArray[Any]) -> NDArray[np.uint8]:
        if self._store is None:
            return perceptual_bits(decode_resized(data, _PIXELS, self._max_pixels))
        key = digest(data)
        kept = self._store.get([key]).get(key)
        if kept is None:  # the store holds floats; the bits of eight of them are the hash
            kept = perceptual_bits(decode_resized(data, _PIXELS, self._max_pixels)).view(np.float32)
            self._store.put([key], kept[None])
        return kept.view(np.uint8)


def perceptual_bits(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """DCT hash of 256 bits by the library imagehash, ``(32,) uint8``, of ``(h, w, 3) uint8`` pixels."""
    import imagehash
    from PIL import Image

    return np.packbits(imagehash.phash(Image.fromarray(pixels), hash_size=_SIDE).hash.ravel())
