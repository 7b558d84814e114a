"""What a call of ``add`` stores: checked before anything is written, with the ids chosen by one rule for all engines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import repeat
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillhash.codes import Codes
from distillhash.errors import DataError
from distillhash.index.rows import LARGEST_ID, check_digests, check_ids, check_keys, encode_metadata

Row = tuple[int, bytes, str | None, bytes | None, str | None]  # id, packed code, key, digest, metadata as JSON


@dataclass(frozen=True)
class Incoming:
    """The arguments of :meth:`distillhash.index.Index.add`, checked against each other."""

    codes: Codes
    ids: NDArray[np.int64] | None
    metadata: Sequence[str | None] | None
    keys: list[str] | None
    digests: Sequence[bytes] | None

    @classmethod
    def checked(
        cls,
        codes: Codes,
        ids: NDArray[np.int64] | Sequence[int] | None,
        metadata: Sequence[dict[str, Any] | None] | None,
        keys: Sequence[str] | None,
        digests: Sequence[bytes] | None,
    ) -> Incoming:
        """Check counts and types.

        Raises:
            DataError: counts that differ, repeated ids or keys, a value of another type.
        """
        for name, values in (("ids", ids), ("metadata", metadata), ("keys", keys), ("digests", digests)):
            if values is not None and len(values) != len(codes):
                raise DataError(f"{len(values)} {name} for {len(codes)} codes; give one for each code")
        return cls(
            codes,
            None if ids is None else check_ids(ids),
            None if metadata is None else encode_metadata(metadata),
            None if keys is None else check_keys(keys),
            None if digests is None else check_digests(digests),
        )

    def choose_ids(
        self,
        *,
        known: Mapping[str, tuple[int, bytes | None]],
        present: Set[int],
        following: int,
        upsert: bool,
    ) -> NDArray[np.int64]:
        """The id of every code: the given one, that of its key, or the next one that was never used.

        Args:
            known: Id and digest of those keys that the index holds.
            present: Those of the given ids that it holds.
            following: One more than the largest id ever used.
            upsert: Whether known keys and present ids are replaced.

        Raises:
            DataError: a known key or a present id without ``upsert``, a key of another id, or no id is left.
        """
        if known and not upsert:
            raise DataError(f"the key {next(iter(known))!r} is in the index already; pass upsert=True to replace it")
        if self.ids is not None:
            if present and not upsert:
                raise DataError(f"the id {min(present)} is in the index already; pass upsert=True to replace it")
            for identifier, key in zip(self.ids.tolist(), self.keys or (), strict=False):
                if key in known and known[key][0] != identifier:
                    raise DataError(f"the key {key!r} belongs to id {known[key][0]}, not {identifier}; give that id")
            return self.ids
        chosen = np.empty(len(self.codes), np.int64)
        for place in range(len(chosen)):
            if self.keys is not None and self.keys[place] in known:
                chosen[place] = known[self.keys[place]][0]
            elif following > LARGEST_ID:
                raise DataError(f"no id is left after {LARGEST_ID}; give ids of your own")
            else:
                chosen[place], following = following, following + 1
        return chosen

    def rows(self, chosen: NDArray[np.int64]) -> Iterator[Row]:
        """One row per code, with its chosen id."""
        # The ids run out first, after each of the others gave as many.
        return zip(
            chosen.tolist(),
            (code.tobytes() for code in self.codes.packed),
            self.keys or repeat(None),
            self.digests or repeat(None),
            self.metadata or repeat(None),
            strict=False,
        )
