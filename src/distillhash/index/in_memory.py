"""The in-memory engine: items in a dictionary, gone with the process; for tests, notebooks and codes that are never kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillhash.codes import Codes
from distillhash.errors import DataError
from distillhash.index.base import Index, Item, RangeResult, SearchResult, check_k, check_radius
from distillhash.index.incoming import Incoming, Row
from distillhash.index.manifest import Manifest
from distillhash.index.memory import CodesInMemory
from distillhash.index.rows import check_ids, item_from_row


class InMemoryIndex(Index):
    """An index that no other process sees. Open it with ``open_index("memory://", n_bits=64, create=True)``; one thread at a time."""

    def __init__(self, *, n_bits: int | None, model_fingerprint: str | None) -> None:
        """Make an empty index."""
        manifest = Manifest.new(n_bits, model_fingerprint)
        self.n_bits = manifest.n_bits
        self.model_fingerprint = manifest.model_fingerprint
        self._rows: dict[int, Row] = {}
        self._ids: dict[str, int] = {}  # of every key
        self._last_id = -1
        self._loaded: CodesInMemory | None = None
        self._is_open = True

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
        """See :meth:`Index.add`."""
        self._check_codes(codes)
        incoming = Incoming.checked(codes, ids, metadata, keys, digests)
        chosen = incoming.choose_ids(
            known=self.known(incoming.keys or []),
            present=self.present([] if incoming.ids is None else incoming.ids.tolist()),
            following=self._last_id + 1,
            upsert=upsert,
        )
        self._drop(chosen.tolist())
        for row in incoming.rows(chosen):
            self._rows[row[0]] = row
            if row[2] is not None:
                self._ids[row[2]] = row[0]
            self._last_id = max(self._last_id, row[0])
        return chosen

    def remove(self, ids: Sequence[int] | NDArray[np.int64] = (), *, keys: Sequence[str] = ()) -> int:
        """See :meth:`Index.remove`."""
        wanted = set(check_ids(ids).tolist())
        if absent := wanted - self.present(list(wanted)):
            raise DataError(f"there is no item with id {min(absent)} in {self!r}; nothing was removed")
        known = self.known(keys)
        for key in keys:
            if key not in known:
                raise DataError(f"there is no item with key {key!r} in {self!r}; nothing was removed")
        wanted.update(identifier for identifier, _ in known.values())
        self._drop(wanted)
        return len(wanted)

    def _drop(self, ids: Sequence[int] | set[int]) -> None:
        for identifier in ids:
            if (row := self._rows.pop(identifier, None)) is not None and row[2] is not None:
                del self._ids[row[2]]
        self._loaded = None

    def search(self, codes: Codes, k: int = 10) -> SearchResult:
        """See :meth:`Index.search`."""
        from distillhash.hamming import nearest

        self._check_codes(codes)
        check_k(k)
        held = self._codes_in_memory()
        rows, distances = nearest(codes.words(), held.planes.T, k)
        return SearchResult(np.append(held.ids, -1)[rows], distances)

    def range_search(self, codes: Codes, radius: int = 3) -> RangeResult:
        """See :meth:`Index.range_search`."""
        from distillhash.hamming import within

        self._check_codes(codes)
        check_radius(radius)
        held = self._codes_in_memory()
        limits, rows, distances = within(codes.words(), held.planes.T, radius)
        return RangeResult(limits, held.ids[rows], distances)

    def get(self, ids: Sequence[int]) -> list[Item]:
        """See :meth:`Index.get`."""
        present = self.present(ids)
        for identifier in ids:
            if identifier not in present:
                raise DataError(f"there is no item with id {identifier} in {self!r}; search gives ids that are")
        return [item_from_row(self._rows[identifier], self.n_bits) for identifier in ids]

    def known(self, keys: Sequence[str]) -> dict[str, tuple[int, bytes | None]]:
        """See :meth:`Index.known`."""
        self._check_open()
        return {key: (self._ids[key], self._rows[self._ids[key]][3]) for key in keys if key in self._ids}

    def present(self, ids: Sequence[int]) -> set[int]:
        """See :meth:`Index.present`."""
        self._check_open()
        return {identifier for identifier in ids if identifier in self._rows}

    def __len__(self) -> int:
        self._check_open()
        return len(self._rows)

    def close(self) -> None:
        """See :meth:`Index.close`."""
        self._is_open = False
        self._rows, self._ids, self._loaded = {}, {}, None

    def __repr__(self) -> str:
        return f"InMemoryIndex(n_bits={self.n_bits})"

    def _check_open(self) -> None:
        if not self._is_open:
            raise DataError("the index memory:// is closed, and its items are gone; make a new one")

    def _codes_in_memory(self) -> CodesInMemory:
        self._check_open()
        if self._loaded is None:
            rows = [(identifier, self._rows[identifier][1]) for identifier in sorted(self._rows)]
            self._loaded = CodesInMemory.from_rows(rows, self.n_bits)
        return self._loaded
