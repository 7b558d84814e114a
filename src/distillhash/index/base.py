"""What every index offers, whatever engine is behind it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from distillhash.codes import Codes
from distillhash.errors import DataError, ParameterError


@dataclass(frozen=True)
class SearchResult:
    """The k nearest items of every query.

    Attributes:
        ids: ``(q, k) int64``, nearest first, equal distances by ascending id; -1 where the index holds fewer than k items.
        distances: ``(q, k) int32`` in bits; -1 in the same places.
    """

    ids: NDArray[np.int64]
    distances: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, query: int) -> list[tuple[int, int]]:
        """(id, distance) pairs of one query, nearest first, without the padding."""
        pairs = zip(self.ids[query].tolist(), self.distances[query].tolist(), strict=True)
        return [(item, distance) for item, distance in pairs if distance >= 0]

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return (self[query] for query in range(len(self)))


@dataclass(frozen=True)
class RangeResult:
    """All items within a radius of every query.

    Attributes:
        limits: ``(q + 1,) int64``: query i owns places ``limits[i]:limits[i + 1]`` of the other two.
        ids: Ids, by (distance, id) within a query.
        distances: Distances in bits.
    """

    limits: NDArray[np.int64]
    ids: NDArray[np.int64]
    distances: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.limits) - 1

    def __getitem__(self, query: int) -> list[tuple[int, int]]:
        """(id, distance) pairs of one query, nearest first."""
        if not -len(self) <= query < len(self):
            raise IndexError(f"query {query} is out of range for {len(self)} queries")
        places = slice(self.limits[query % len(self)], self.limits[query % len(self) + 1])
        return list(zip(self.ids[places].tolist(), self.distances[places].tolist(), strict=True))

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return (self[query] for query in range(len(self)))


@dataclass(frozen=True)
class Item:
    """One stored item: its id, code, and what was stored with it."""

    id: int
    code: Codes
    key: str | None
    digest: bytes | None
    metadata: dict[str, Any] | None


class Index(ABC):
    """Codes with ids, searched exactly by Hamming distance; a context manager.

    Attributes:
        n_bits: Code length.
        model_fingerprint: The model the codes come from, None where that was not said.
    """

    n_bits: int
    model_fingerprint: str | None

    @abstractmethod
    def add(
        self,
        codes: Codes,
        ids: NDArray[np.int64] | Sequence[int] | None = None,
        metadata: Sequence[dict[str, Any] | None] | None = None,
        *,
        keys: Sequence[str] | None = None,
        digests: Sequence[bytes] | None = None,
        upsert: bool = False,
    ) -> NDArray[np.int64]:
        """Store codes in one transaction; when this returns they are stored.

        Args:
            codes: ``m`` codes of the index's length.
            ids: ``m`` distinct ids in 0..2^63 - 1; None assigns ascending ones that were never used.
            metadata: ``m`` JSON-able dictionaries (None for none).
            keys: ``m`` distinct names, unique in the index.
            digests: ``m`` content digests, to see later whether an item changed.
            upsert: Replace whole items whose id or key is there already; a known key keeps its id.

        Returns:
            ``(m,)`` ids.

        Raises:
            DataError: another code length, counts that differ, repeated ids or keys, or known ones without ``upsert``.
        """

    @abstractmethod
    def remove(self, ids: Sequence[int] | NDArray[np.int64] = (), *, keys: Sequence[str] = ()) -> int:
        """Remove items by id, by key, or both, in one transaction; returns how many.

        Raises:
            DataError: an id or key is not there, or an id comes twice; nothing is removed then.
        """

    @abstractmethod
    def search(self, codes: Codes, k: int = 10, *, where: str | None = None) -> SearchResult:
        """The ``k`` nearest items of every code; fewer where the index holds fewer.

        Args:
            codes: ``q`` codes of the index's length.
            k: How many.
            where: Search only items for which this condition over ``id``, ``key`` and ``metadata`` holds, in the engine's own
                words: SQL as in ``metadata->>'label' = 'cat'``, on Milvus ``metadata["label"] == "cat"``.

        Raises:
            ParameterError: ``k`` is not a positive integer, or the engine does not understand the condition.
            DataError: another code length.
        """

    @abstractmethod
    def range_search(self, codes: Codes, radius: int = 3, *, where: str | None = None) -> RangeResult:
        """All items within ``radius`` bits of every code; memory grows with the number of answers. ``where`` as in :meth:`search`.

        Raises:
            ParameterError: ``radius`` is not an integer of at least 0, or the engine does not understand the condition.
            DataError: another code length.
        """

    @abstractmethod
    def get(self, ids: Sequence[int]) -> list[Item]:
        """The items with these ids, in this order.

        Raises:
            DataError: an id is not there.
        """

    @abstractmethod
    def known(self, keys: Sequence[str]) -> dict[str, tuple[int, bytes | None]]:
        """Id and content digest of those keys that are there."""

    @abstractmethod
    def ids(self) -> NDArray[np.int64]:
        """``(n,)``: the ids of all items, ascending."""

    @abstractmethod
    def present(self, ids: Sequence[int]) -> set[int]:
        """Those of the ids that are there."""

    def prepare(self) -> None:  # noqa: B027  # an engine that has nothing to do says nothing
        """Do now what the next search would have to do first, such as reading the codes; it changes no answer."""

    def compact(self) -> None:  # noqa: B027
        """Give back the space of what was removed or replaced, where the engine does not do so by itself."""

    def state(self) -> Hashable | None:
        """A value that is another one after every change, whichever process made it; None where the engine cannot say cheaply."""
        return None

    @abstractmethod
    def __len__(self) -> int:
        """Number of items."""

    @abstractmethod
    def close(self) -> None:
        """Release files and memory; the index cannot be used after that."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check_codes(self, codes: Codes) -> None:
        if codes.n_bits != self.n_bits:
            raise DataError(
                f"the index holds codes of {self.n_bits} bits, got {codes.n_bits}; encode with the index's model"
            )


def check_k(k: int) -> None:
    """Raise :class:`ParameterError` unless k is a positive integer."""
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
        raise ParameterError(f"k must be a positive integer, got {k!r}")


def check_radius(radius: int) -> None:
    """Raise :class:`ParameterError` unless the radius is an integer of at least 0."""
    if isinstance(radius, bool) or not isinstance(radius, int | np.integer) or radius < 0:
        raise ParameterError(f"the radius must be an integer of at least 0 bits, got {radius!r}")
