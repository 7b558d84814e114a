"""What every source offers: keys, optional labels, and one item at a time.

A source is a fixed, ordered list of items. Opening one reads names and headers only; pixels and vectors are read when
an item is asked for, so a folder of a million images costs its list of paths and nothing more.

Labels are ground truth. Only evaluation reads them; nothing that trains ever does.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillhash.errors import DataError


@dataclass(frozen=True)
class Skipped:
    """One item that could not be used: its key, and the reason as a short sentence."""

    key: str
    reason: str


class BadItemError(DataError):
    """One item cannot be read or decoded. Jobs skip the item, count it and list it; ``--strict`` makes them fail."""


class Source(ABC):
    """An ordered collection of items.

    Attributes:
        name: The specification the source was opened from, e.g. ``cifar10:data#train``.
        keys: ``len(self)`` unique strings, stable between runs: a path relative to the source, or a row such as ``train/17``.
        labels: None, or ``(n,) int64`` classes, or ``(n, n_labels) uint8`` 0/1 multi-label indicators.
        label_names: None, or one name per class or indicator column.
        splits: Rows of each named split (``{"train": rows, "test": rows}``); empty where the source has none, and after :meth:`select`.
    """

    name: str
    keys: Sequence[str]
    labels: NDArray[Any] | None
    label_names: Sequence[str] | None
    splits: Mapping[str, NDArray[np.intp]] = MappingProxyType({})

    def __len__(self) -> int:
        """Number of items, readable or not."""
        return len(self.keys)

    @abstractmethod
    def select(self, rows: NDArray[np.intp]) -> Source:
        """The same kind of source holding only ``rows`` (``(m,) int``), in that order."""

    def path(self, row: int) -> str | None:  # noqa: ARG002  # an interface; sources of files use it
        """Absolute path of the file behind item ``row``, or None where the item is not a file of its own."""
        return None


class ImageSource(Source):
    """A source of images."""

    @abstractmethod
    def select(self, rows: NDArray[np.intp]) -> ImageSource:
        """The images of ``rows`` (``(m,) int``), in that order."""

    @abstractmethod
    def read(self, row: int) -> bytes | NDArray[np.uint8]:
        """Item ``row`` as stored: an encoded file (bytes), or pixels ``(h, w, 3) uint8``. Safe to call from several threads.

        Raises:
            BadItemError: the item cannot be read (absent, unreadable, empty).
        """


class EmbeddingSource(Source):
    """A source of ready vectors.

    Attributes:
        vectors: ``(n, d)`` float array, possibly a memory map; finite unless :func:`distillhash.sources.open_source` said otherwise.
    """

    vectors: NDArray[Any]

    @abstractmethod
    def select(self, rows: NDArray[np.intp]) -> EmbeddingSource:
        """The vectors of ``rows`` (``(m,) int``), in that order."""
