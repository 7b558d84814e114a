"""The codes of one committed state: the large part as it was read once, and what changed since."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain

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
        generation, name, last_id: Of the state, see :class:`distillhash.index.items.State`.
        base: Codes as they were in an earlier generation.
        gone: ``(n_base,)``: rows that were replaced or removed since; None if there are none.
        fresh: Codes that are new or were replaced since.
    """

    generation: int
    name: str
    last_id: int
    base: CodesInMemory
    gone: NDArray[np.bool_] | None
    fresh: CodesInMemory

    @classmethod
    def of_nothing(cls, n_bits: int) -> Snapshot:
        """The state before the first change."""
        return cls.of_cached(CachedCodes(CodesInMemory.empty(n_bits), 0, "", -1), n_bits)

    @classmethod
    def of_cached(cls, cached: CachedCodes, n_bits: int) -> Snapshot:
        """A state whose codes are all in the base."""
        return cls(cached.generation, cached.name, cached.last_id, cached.codes, None, CodesInMemory.empty(n_bits))

    def after(self, state: State, changed: NDArray[np.int64], codes: Iterable[CodesInMemory], n_bits: int) -> Snapshot:
        """The state ``state``.

        Args:
            state: What is committed now.
            changed: Ids that were replaced or removed since, ascending.
            codes: Those that are new or replaced.
            n_bits: Code length.

        Raises:
            DataError: the codes are not as many as the state says.
        """
        gone = self.base.holds(changed)
        if self.gone is not None:
            gone |= self.gone
        n_fresh = state.items - (len(gone) - int(gone.sum()))
        fresh = CodesInMemory.joined(chain([self.fresh.without(changed)], codes), n_fresh, n_bits)
        gone_if_any = gone if gone.any() else None
        return Snapshot(state.generation, state.name, state.last_id, self.base, gone_if_any, fresh)

    def n_items(self) -> int:
        """Number of items."""
        return len(self.base.ids) + len(self.fresh.ids) - (0 if self.gone is None else int(self.gone.sum()))

    def ids(self) -> NDArray[np.int64]:
        """The ids of all items, ascending."""
        kept = self.base.ids if self.gone is None else self.base.ids[~self.gone]
        return np.sort(np.concatenate([kept, self.fresh.ids]), kind="stable")

    def changes(self) -> int:
        """How many rows are not as in the base."""
        return len(self.fresh.ids) + (0 if self.gone is None else int(self.gone.sum()))

    def folded(self, n_bits: int) -> CachedCodes:
        """All codes of this state in one."""
        kept = self.base if self.gone is None else self.base.where(~self.gone)
        n = len(kept.ids) + len(self.fresh.ids)
        codes = CodesInMemory.joined([kept, self.fresh], n, n_bits) if len(kept.ids) else self.fresh
        return CachedCodes(codes, self.generation, self.name, self.last_id)

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
