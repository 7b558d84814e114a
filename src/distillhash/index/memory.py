"""The codes of an index in memory, laid out for the search kernels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from distillhash.codes import Codes, bytes_per_code
from distillhash.errors import DataError
from distillhash.hamming import ClusteredCodes, nearest, planes_of, within
from distillhash.hamming.search import Planes
from distillhash.index.base import RangeResult, SearchResult


@dataclass(frozen=True)
class CodesInMemory:
    """Ids and their codes.

    Attributes:
        ids: ``(n,) int64``, ascending, so that the kernels' order of rows is the order of ids.
        planes: ``(n_planes, n)``, as :func:`distillhash.hamming.planes_of` lays them out for the kernels.
        clusters: The same planes grouped, where that was done; answers are the same.
    """

    ids: NDArray[np.int64]
    planes: Planes
    clusters: ClusteredCodes | None = None

    @classmethod
    def empty(cls, n_bits: int) -> CodesInMemory:
        """No codes."""
        return cls(np.zeros(0, np.int64), planes_of(Codes(np.zeros((0, bytes_per_code(n_bits)), np.uint8), n_bits)))

    @classmethod
    def from_rows(cls, rows: Sequence[tuple[int, bytes]], n_bits: int) -> CodesInMemory:
        """Codes from (id, packed code) rows, ids ascending.

        Raises:
            DataError: a code has another length, or pad bits that are set.
        """
        if not rows:
            return cls.empty(n_bits)
        ids, codes = zip(*rows, strict=True)
        width = bytes_per_code(n_bits)
        if set(map(len, codes)) != {width}:
            wrong = next(place for place, code in enumerate(codes) if len(code) != width)
            raise DataError(f"the code of id {ids[wrong]} has {len(codes[wrong])} bytes, not {width}")
        packed = Codes.from_packed(np.frombuffer(b"".join(codes), np.uint8).reshape(-1, width), n_bits)
        return cls(np.array(ids, np.int64), planes_of(packed))

    @classmethod
    def joined(cls, parts: Iterable[CodesInMemory], n: int, n_bits: int) -> CodesInMemory:
        """All parts in one, ids ascending.

        Args:
            parts: Taken one after the other, so that they need not be in memory together.
            n: How many codes they have.
            n_bits: Code length.

        Raises:
            DataError: they have more or fewer.
        """
        like = cls.empty(n_bits).planes
        ids, planes = np.empty(n, np.int64), np.empty((len(like), n), like.dtype)
        end = 0
        for part in parts:
            start, end = end, end + len(part.ids)
            if end > n:
                break
            ids[start:end], planes[:, start:end] = part.ids, part.planes
        if end != n:
            raise DataError(f"there are {'more' if end > n else 'fewer'} items than the {n} counted")
        if np.all(ids[1:] > ids[:-1]):
            return cls(ids, planes)
        order = np.argsort(ids, kind="stable")
        return cls(ids[order], planes[:, order])

    def without(self, ids: NDArray[np.int64]) -> CodesInMemory:
        """The codes of all other ids; ids that are not here do not matter."""
        return self.where(~self.holds(ids))

    def where(self, keep: NDArray[np.bool_]) -> CodesInMemory:
        """The rows of a mask."""
        return self if keep.all() else CodesInMemory(self.ids[keep], self.planes[:, keep])

    def holds(self, ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        """``(n,)``: which rows have one of these ids, which are ascending; ids that are not here do not matter."""
        mask = np.zeros(len(self.ids), np.bool_)
        places = np.searchsorted(self.ids, ids)
        inside = places < len(self.ids)
        places, ids = places[inside], ids[inside]
        mask[places[self.ids[places] == ids]] = True
        return mask

    def nearest(self, codes: Codes, k: int, allowed: NDArray[np.bool_] | None = None) -> SearchResult:
        """The ``k`` nearest of the allowed rows (None: of all), see :meth:`distillhash.index.Index.search`."""
        query = planes_of(codes)
        if self.clusters is None:
            rows, distances = nearest(query, self.planes, k, allowed=allowed)
        else:
            rows, distances = self.clusters.nearest(query, k, allowed=allowed)
        if not len(self.ids):
            return SearchResult(rows, distances)  # all -1
        return SearchResult(np.where(rows < 0, -1, self.ids[rows]), distances)

    def within(self, codes: Codes, radius: int, allowed: NDArray[np.bool_] | None = None) -> RangeResult:
        """The allowed rows within ``radius`` bits, see :meth:`distillhash.index.Index.range_search`."""
        query = planes_of(codes)
        if self.clusters is None:
            limits, rows, distances = within(query, self.planes, radius, allowed=allowed)
        else:
            limits, rows, distances = self.clusters.within(query, radius, allowed=allowed)
        return RangeResult(limits, self.ids[rows], distances)
