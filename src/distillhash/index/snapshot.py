"""The codes of one committed state: the large part as it was read once, and what changed since."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from distillhash.codes import Codes
from distillhash.index.base import RangeResult, SearchResult
from distillhash.index.code_cache import CachedCodes
from distillhash.index.items import State
from distillhash.index.memory import CodesInMemory
from distillhash.index.merge import merge_nearest, merge_within


@dataclass(frozen=True)
class Snapshot:
    """A base, of which some rows are gone, and fresh codes; no id is in both.

    Attributes:
        generation: Of the state, see :class:`distillhash.index.items.State`.
        last_id: The largest id ever used by then.
        base: Codes as they were in an earlier generation.
        gone: ``(n_base,)``: rows that were replaced or removed since; None if there are none.
        fresh: Codes that are new or were replaced since.
    """

    generation: int
    last_id: int
    base: CodesInMemory
    gone: NDArray[np.bool_] | None
    fresh: CodesInMemory

    @classmethod
    def of_nothing(cls, n_bits: int) -> Snapshot:
        """The state before the first change."""
        return cls(0, -1, CodesInMemory.empty(n_bits), None, CodesInMemory.empty(n_bits))

    @classmethod
    def of_cached(cls, cached: CachedCodes, n_bits: int) -> Snapshot:
        """The state of a cache file."""
        return cls(cached.generation, cached.last_id, cached.codes, None, CodesInMemory.empty(n_bits))

    def after(self, state: State, changed: NDArray[np.int64], codes: Iterable[CodesInMemory]) -> Snapshot:
        """The state ``state``.

        Args:
            state: What is committed now.
            changed: Ids that were replaced or removed since, ascending.
            codes: Those that are new or replaced.
        """
        gone = self.base.holds(changed)
        if self.gone is not None:
            gone |= self.gone
        fresh = CodesInMemory.joined([self.fresh.without(changed), *codes])
        return Snapshot(state.generation, state.last_id, self.base, gone if gone.any() else None, fresh)

    def changes(self) -> int:
        """How many rows are not as in the base."""
        return len(self.fresh.ids) + (0 if self.gone is None else int(self.gone.sum()))

    def folded(self) -> Snapshot:
        """The same state as a base alone."""
        kept = self.base if self.gone is None else self.base.where(~self.gone)
        everything = CodesInMemory.joined([kept, self.fresh])
        nothing = CodesInMemory(self.fresh.ids[:0], self.fresh.planes[:, :0])
        return Snapshot(self.generation, self.last_id, everything, None, nothing)

    def nearest(self, codes: Codes, k: int, among: NDArray[np.int64] | None = None) -> SearchResult:
        """The ``k`` nearest items of every code; ``among`` are the ids that may be found, ascending (None: all)."""
        found = self.base.nearest(codes, k, self._allowed(among))
        if not len(self.fresh.ids):
            return found
        fresh_allowed = None if among is None else self.fresh.holds(among)
        return merge_nearest([found, self.fresh.nearest(codes, k, fresh_allowed)], k)

    def within(self, codes: Codes, radius: int, among: NDArray[np.int64] | None = None) -> RangeResult:
        """All items within ``radius`` bits of every code; ``among`` as in :meth:`nearest`."""
        found = self.base.within(codes, radius, self._allowed(among))
        if not len(self.fresh.ids):
            return found
        fresh_allowed = None if among is None else self.fresh.holds(among)
        return merge_within([found, self.fresh.within(codes, radius, fresh_allowed)])

    def _allowed(self, among: NDArray[np.int64] | None) -> NDArray[np.bool_] | None:
        """Rows of the base that may be found."""
        if among is None:
            return None if self.gone is None else ~self.gone
        wanted = self.base.holds(among)
        return wanted if self.gone is None else wanted & ~self.gone
