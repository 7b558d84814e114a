"""The codes of an index in memory, laid out for the search kernels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from distillhash.codes import Codes, bytes_per_code
from distillhash.errors import DataError, FormatError
from distillhash.hamming.planes import Planes, planes_of


@dataclass(frozen=True)
class CodesInMemory:
    """Ids and their codes.

    Attributes:
        ids: ``(n,) int64``, ascending, so that the kernels' order of rows is the order of ids.
        planes: ``(n_planes, n)``, as :func:`~distillhash.hamming.planes_of` gives them.
    """

    ids: NDArray[np.int64]
    planes: Planes

    @classmethod
    def empty(cls, n_bits: int) -> CodesInMemory:
        """No codes."""
        return cls(
            np.zeros(0, np.int64), planes_of(Codes.from_packed(np.zeros((0, bytes_per_code(n_bits)), np.uint8), n_bits))
        )

    @classmethod
    def from_rows(cls, rows: Sequence[tuple[int, bytes]], n_bits: int) -> CodesInMemory:
        """Codes from (id, packed code) rows, ids ascending.

        Raises:
            FormatError: a code has another length.
        """
        if not rows:
            return cls.empty(n_bits)
        ids, codes = zip(*rows, strict=True)
        width = bytes_per_code(n_bits)
        if set(map(len, codes)) != {width}:
            wrong = next(place for place, code in enumerate(codes) if len(code) != width)
            raise FormatError(f"the code of id {ids[wrong]} has {len(codes[wrong])} bytes, not {width}")
        try:
            packed = Codes.from_packed(np.frombuffer(b"".join(codes), np.uint8).reshape(-1, width), n_bits)
        except DataError as error:
            raise FormatError(str(error)) from error
        return cls(np.array(ids, np.int64), planes_of(packed))

    @classmethod
    def joined(cls, parts: Sequence[CodesInMemory]) -> CodesInMemory:
        """All parts in one, ids ascending."""
        ids = np.concatenate([part.ids for part in parts])
        planes = np.concatenate([part.planes for part in parts], axis=1)
        if np.all(ids[1:] > ids[:-1]):
            return cls(ids, planes)
        order = np.argsort(ids, kind="stable")
        return cls(ids[order], planes[:, order])

    def without(self, ids: NDArray[np.int64]) -> CodesInMemory:
        """The codes of all other ids; ids that are not here do not matter."""
        keep = ~np.isin(self.ids, ids)
        return self if keep.all() else CodesInMemory(self.ids[keep], self.planes[:, keep])
