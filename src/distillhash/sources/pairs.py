"""Image-text pairs: a source of images, or of vectors, and the texts that belong to each of its items.

An item may have several texts (the five captions of Flickr8k) or none. Nothing is lost silently: an item without a text stays in the
source and is named by :meth:`PairSource.without_text`, a text that is empty is dropped and named in :attr:`PairSource.dropped`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillhash.errors import DataError, ParameterError
from distillhash.sources.base import Skipped, Source
from distillhash.sources.rows import check_rows

Texts = list[str] | NDArray[Any]


class PairSource:
    """Images (or image vectors) and their texts (or text vectors).

    Attributes:
        name: The specification it was opened from.
        images: ``n`` items, in order; their labels serve evaluation only.
        texts: ``t`` texts, or ``(t, e)`` floats, grouped by item in the order of the items.
        owners: ``(t,) intp``, not falling: the item each text belongs to.
        dropped: Texts that cannot be used, by the row of their item (-1: of no item).
    """

    def __init__(
        self,
        name: str,
        images: Source,
        texts: Texts,
        owners: NDArray[np.intp],
        dropped: Sequence[tuple[int, Skipped]] = (),
    ) -> None:
        """Keep references; ``owners`` must not fall. See :func:`group_texts` for texts as people store them.

        Raises:
            DataError: no text at all.
        """
        if not len(owners):
            first = f"; first {dropped[0][1].key}: {dropped[0][1].reason}" if dropped else ""
            raise DataError(f"{name}: none of the {len(images)} items has a usable text{first}")
        self.name, self.images, self.texts, self.owners, self.dropped = name, images, texts, owners, list(dropped)

    def __len__(self) -> int:
        """Number of items, with texts or without."""
        return len(self.images)

    @property
    def keys(self) -> Sequence[str]:
        """Keys of the items."""
        return self.images.keys

    @property
    def labels(self) -> NDArray[Any] | None:
        """Ground truth of the items, or None."""
        return self.images.labels

    @property
    def splits(self) -> Mapping[str, NDArray[np.intp]]:
        """Rows of each named split of the images."""
        return self.images.splits

    def select(self, rows: NDArray[np.intp]) -> PairSource:
        """The pairs of ``rows`` (``(m,) int``), in that order.

        Raises:
            DataError: none of them has a text.
        """
        rows = check_rows(rows, len(self))
        starts = np.searchsorted(self.owners, rows, side="left")
        counts = np.searchsorted(self.owners, rows, side="right") - starts
        owners = np.repeat(np.arange(len(rows)), counts)
        first = np.cumsum(counts) - counts
        places = np.arange(len(owners)) - first[owners] + starts[owners]
        position = {int(row): place for place, row in enumerate(rows)}
        dropped = [(position.get(row, -1), skipped) for row, skipped in self.dropped if row in position or row < 0]
        return PairSource(self.name, self.images.select(rows), take_texts(self.texts, places), owners, dropped)

    def without_text(self) -> NDArray[np.intp]:
        """Rows of the items that have no text, ascending."""
        return np.flatnonzero(np.bincount(self.owners, minlength=len(self)) == 0)

    def unusable(self) -> list[Skipped]:
        """The dropped texts, and the items that have no text left."""
        explained = {row for row, _ in self.dropped}
        bare = [row for row in self.without_text() if int(row) not in explained]
        return [skipped for _, skipped in self.dropped] + [
            Skipped(self.keys[row], "the image has no text") for row in bare
        ]


def take_texts(texts: Texts, places: NDArray[np.intp]) -> Texts:
    """The texts, or text vectors, at ``places``."""
    return texts[places] if isinstance(texts, np.ndarray) else [texts[place] for place in places.tolist()]


def pair_texts(name: str, images: Source, given: Any) -> PairSource:
    """Pairs from a source of images and what goes with each of its items.

    Args:
        name: The specification, for messages.
        images: ``n`` items.
        given: ``n`` texts, ``n`` sequences of texts, or ``(n, e)`` text vectors.

    Raises:
        DataError: another number of texts than of items, or no usable text at all.
        ParameterError: neither texts nor vectors.
    """
    if isinstance(given, str) or not isinstance(given, Sequence | np.ndarray):
        raise ParameterError(f"{name}: texts are a list with an entry an image, or (n, e) vectors; got {given!r:.40}")
    if len(given) != len(images):
        raise DataError(
            f"{name}: {len(images)} images but {len(given)} texts; give every image its entry (an empty list where there is no text)"
        )
    if isinstance(given, np.ndarray) and given.dtype.kind in "fiu":
        return PairSource(name, images, given, np.arange(len(images)))
    texts: list[str] = []
    owners: list[int] = []
    dropped: list[tuple[int, Skipped]] = []
    for row, entry in enumerate(given):
        several = not isinstance(entry, str)
        for number, text in enumerate((entry or []) if several else [entry]):
            reason = _refusal(text)
            if reason is None:
                texts.append(" ".join(text.split()))
                owners.append(row)
            else:
                key = f"{images.keys[row]} text {number + 1}" if several else images.keys[row]
                dropped.append((row, Skipped(key, reason)))
    return PairSource(name, images, texts, np.array(owners, np.intp), dropped)


def _refusal(text: object) -> str | None:
    if text is None:
        return "the text is missing"
    if not isinstance(text, str):
        return f"the text is no string but {type(text).__name__}"
    return None if text.strip() else "the text is empty"
