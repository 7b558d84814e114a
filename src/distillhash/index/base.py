"""The interface of an index, its results, and the checks that are the same for every engine."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import pairwise, repeat
from typing import Any, Literal, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from distillhash.codes import Codes, bytes_per_code
from distillhash.errors import DataError, ParameterError
from distillhash.hamming.ranking import By, check_by, class_part, first_of, order
from distillhash.hamming.search import MOST_PADDED, cut_k
from distillhash.index.manifest import damaged

LARGEST_ID = 2**63 - 1
LEAST_CANDIDATES = 400
"""Codes of two parts that an engine of Hamming distance puts in order, at least."""
_QUERIES_AT_ONCE = 64  # whose candidates are read together
_BLOCK = 4096
VectorType = Literal["int8", "float16"]
"""How an index keeps vectors: 1 or 2 bytes a value."""
Row = tuple[int, bytes, str | None, bytes | None, str | None]  # id, packed code, key, digest, metadata as JSON
Known = dict[str, tuple[int, bytes | None]]  # key -> id, digest


@dataclass(frozen=True)
class SearchResult:
    """The k nearest items of every query.

    Attributes:
        ids: ``(q, k) int64``, nearest first, ties by ascending id; -1 where the index holds fewer than k items.
        distances: ``(q, k) int32`` in bits; -1 in the same places.
    """

    ids: NDArray[np.int64]
    distances: NDArray[np.int32]

    @classmethod
    def from_pairs(cls, answers: Sequence[Sequence[tuple[int, int]]], k: int) -> SearchResult:
        """From one list of (distance, id) per query, nearest first; more than ``k`` are cut off."""
        ids = np.full((len(answers), k), -1, np.int64)
        distances = np.full((len(answers), k), -1, np.int32)
        for query, pairs in enumerate(answers):
            for place, (distance, identifier) in enumerate(pairs[:k]):
                ids[query, place], distances[query, place] = identifier, distance
        return cls(ids, distances)

    @classmethod
    def merged(cls, parts: Sequence[SearchResult], k: int) -> SearchResult:
        """The ``k`` nearest of several parts of an index, each of which gave its own ``k`` nearest for the same queries."""
        if len(parts) == 1:
            return parts[0]
        ids = np.concatenate([part.ids for part in parts], axis=1)
        distances = np.concatenate([part.distances for part in parts], axis=1)
        order = np.lexsort((ids, distances.view(np.uint32)), axis=-1)[:, :k]  # the padding, -1, comes last
        return cls(np.take_along_axis(ids, order, 1), np.take_along_axis(distances, order, 1))

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
        ids: Ids, nearest first within a query, ties by ascending id.
        distances: Distances in bits.
    """

    limits: NDArray[np.int64]
    ids: NDArray[np.int64]
    distances: NDArray[np.int32]

    @classmethod
    def from_pairs(cls, answers: Sequence[Sequence[tuple[int, int]]]) -> RangeResult:
        """From one list of (distance, id) per query, nearest first."""
        limits = np.cumsum([0, *map(len, answers)], dtype=np.int64)
        pairs = np.array([pair for answer in answers for pair in answer], np.int64).reshape(-1, 2)
        return cls(limits, np.ascontiguousarray(pairs[:, 1]), np.ascontiguousarray(pairs[:, 0], np.int32))

    @classmethod
    def merged(cls, parts: Sequence[RangeResult]) -> RangeResult:
        """The items of several parts of an index, for the same queries."""
        if len(parts) == 1:
            return parts[0]
        queries = np.concatenate([np.repeat(np.arange(len(part)), np.diff(part.limits)) for part in parts])
        ids = np.concatenate([part.ids for part in parts])
        distances = np.concatenate([part.distances for part in parts])
        order = np.lexsort((ids, distances, queries))
        return cls(np.sum([part.limits for part in parts], axis=0), ids[order], distances[order])

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


class Member(NamedTuple):
    """One item of a source, without its code."""

    id: int
    key: str
    digest: bytes | None
    metadata: dict[str, Any]

    @property
    def sources(self) -> list[str]:
        """The sources that hold the item: the one it was read from last, and the others."""
        also = self.metadata.get("also")
        named = [self.metadata.get("source"), *(also if isinstance(also, list) else [])]
        return [source for source in named if isinstance(source, str)]


@dataclass(frozen=True)
class Incoming:
    """The arguments of :meth:`Index.add` after the checks; metadata as JSON text."""

    codes: Codes
    ids: NDArray[np.int64] | None
    metadata: Sequence[str | None] | None
    keys: list[str] | None
    digests: Sequence[bytes] | None
    vectors: Sequence[bytes] | None  # as they are kept
    upsert: bool

    def choose_ids(self, *, known: Known, present: Set[int], following: int) -> NDArray[np.int64]:
        """The id of every code: the given one, that of its key, or the next one that was never used.

        ``known`` and ``present`` are those of the keys and of the given ids that the index holds; ``following`` is one more than the
        largest id ever used.
        """
        if known and not self.upsert:
            raise DataError(f"the key {next(iter(known))!r} is in the index already; pass upsert=True to replace it")
        if self.ids is not None:
            if present and not self.upsert:
                raise DataError(f"the id {min(present)} is in the index already; pass upsert=True to replace it")
            rewritten = set(self.ids.tolist()) if known else set()  # these may exchange their keys
            for identifier, key in zip(self.ids.tolist(), self.keys or (), strict=False):
                if key in known and known[key][0] not in rewritten:
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
        # The ids come first, so that zip stops when they end and takes no code too many.
        return zip(
            chosen.tolist(),
            (code.tobytes() for code in self.codes.packed),
            self.keys or repeat(None),
            self.digests or repeat(None),
            self.metadata or repeat(None),
            strict=False,
        )


class Index(ABC):
    """Codes with ids, searched by Hamming distance, exactly unless :meth:`is_exact` says otherwise; a context manager.

    The public methods check their arguments; an engine implements the methods with an underscore. An index does not know whether its codes
    have two parts: that is a property of the codes that are searched for.

    Attributes:
        n_bits: Code length.
        model_fingerprint: The model the codes come from, None where none was given.
    """

    n_bits: int
    model_fingerprint: str | None

    @property
    def vector_type(self) -> VectorType | None:
        """How the vector of every item is kept; None where vectors are not kept."""
        return None

    def add(
        self,
        codes: Codes,
        ids: NDArray[np.int64] | Sequence[int] | None = None,
        metadata: Sequence[dict[str, Any] | None] | None = None,
        *,
        keys: Sequence[str] | None = None,
        digests: Sequence[bytes] | None = None,
        vectors: NDArray[Any] | None = None,
        upsert: bool = False,
    ) -> NDArray[np.int64]:
        """Store codes in one transaction; when this returns they are stored.

        Milvus has no transactions: there the codes are stored in batches. When the server stays away, the message says how many items
        are stored, and the same call with ``upsert`` and the same ids or keys stores the rest.

        Args:
            codes: ``m`` codes of the index's length.
            ids: ``m`` distinct ids in 0..2^63 - 1; None assigns ascending ones that were never used.
            metadata: ``m`` JSON-able dictionaries (None for none).
            keys: ``m`` distinct names, unique in the index.
            digests: ``m`` content digests, to see later whether an item changed.
            vectors: ``(m, d)`` finite numbers, for an index that keeps vectors; see :func:`quantise`. Without them, items that are there
                and whose code stays keep theirs.
            upsert: Replace whole items whose id or key is there already; a known key keeps its id.

        Returns:
            ``(m,)`` ids.

        Raises:
            DataError: another code length, counts that differ, repeated ids or keys, or known ones without ``upsert``; no vectors where
                they are kept, or of another width.
            ParameterError: vectors for an index that keeps none.
        """
        self.check_codes(codes)
        given = {"ids": ids, "metadata": metadata, "keys": keys, "digests": digests, "vectors": vectors}
        for name, values in given.items():
            if values is not None and len(values) != len(codes):
                raise DataError(f"{len(values)} {name} for {len(codes)} codes; give one for each code")
        checked_ids = None if ids is None else check_ids(ids)
        texts = None if metadata is None else _encode_metadata(metadata)
        checked_keys = None if keys is None else check_keys(keys)
        for digest in () if digests is None else digests:
            if not isinstance(digest, bytes):
                raise DataError(f"digests must be bytes, got {digest!r}")
        kept = None if vectors is None else [row.tobytes() for row in quantise(vectors, self._kept_type())]
        return self._add(Incoming(codes, checked_ids, texts, checked_keys, digests, kept, upsert))

    def remove(self, ids: Sequence[int] | NDArray[np.int64] = (), *, keys: Sequence[str] = ()) -> int:
        """Remove items by id, by key, or both, in one transaction (on Milvus in batches); returns how many.

        Raises:
            DataError: an id or key is not there, or an id comes twice; nothing is removed then.
        """
        return self._remove(set(check_ids(ids).tolist()), keys)

    def search(self, codes: Codes, k: int = 10, *, where: str | None = None, by: By = "both") -> SearchResult:
        """The ``k`` nearest items of every code; fewer where the index holds fewer.

        Args:
            codes: ``q`` codes of the index's length. With two parts, the answer is the beginning of their ranking
                (:mod:`distillhash.hamming.ranking`). Milvus and Postgres know Hamming distance alone: there, the nearest
                max(10 k, 400) items by it are put in the order of the ranking, and items beyond are not found
                (docs/index.md has the share that is missed).
            k: How many, at least 1. Above 1,024 it is cut to the number of items (but not below 1,024). Milvus gives at most 16,384 (the
                option ``largest``) unless it holds fewer.
            where: Search only items for which this condition over ``id``, ``key`` and ``metadata`` holds, in the engine's own
                language: SQL as in ``metadata->>'label' = 'cat'``, on Milvus ``metadata["label"] == "cat"``. On Postgres the
                condition becomes part of a statement, so it must come from a trusted user.
            by: The ranking of codes of two parts; ``both`` for codes of one.

        Raises:
            ParameterError: ``k`` is not a positive integer, codes of one part have no ranking ``by``, or the engine does not understand
                the condition.
            DataError: another code length.
        """
        self.check_codes(codes)
        if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
            raise ParameterError(f"k must be a positive integer, got {k!r}")
        check_by(by, codes.class_bits)
        k = self.cut(int(k))
        return self._search_two_parts(codes, k, where, by) if codes.class_bits else self._search(codes, k, where)

    def cut(self, k: int) -> int:
        """``k``, or less where it is both large and more than the number of items."""
        return k if k <= MOST_PADDED else cut_k(k, len(self))

    def range_search(self, codes: Codes, radius: int = 3, *, where: str | None = None, by: By = "both") -> RangeResult:
        """All items within ``radius`` bits of every code; memory grows with the number of answers. ``where`` as in :meth:`search`.

        The radius counts all bits alike, also with two parts; then the hits of a query come in the order of the ranking ``by``.

        Raises:
            ParameterError: ``radius`` is not an integer of at least 0, codes of one part have no ranking ``by``, or the engine does not
                understand the condition.
            DataError: another code length.
        """
        self.check_codes(codes)
        if isinstance(radius, bool) or not isinstance(radius, int | np.integer) or radius < 0:
            raise ParameterError(f"the radius must be an integer of at least 0 bits, got {radius!r}")
        check_by(by, codes.class_bits)
        found = self._range_search(codes, min(int(radius), self.n_bits), where)
        return self._in_order(found, codes, by) if codes.class_bits else found

    def _search_two_parts(self, codes: Codes, k: int, where: str | None, by: By) -> SearchResult:
        """The search of an engine that knows Hamming distance alone."""
        answers = [(np.zeros((0, k), np.int64), np.zeros((0, k), np.int32))]
        for start in range(0, len(codes), _QUERIES_AT_ONCE):
            some = codes[start : start + _QUERIES_AT_ONCE]
            found = self._search(some, self._n_candidates(k), where)
            query_of = np.repeat(np.arange(len(some)), found.ids.shape[1])
            class_distances = self._class_distances(some, query_of, found.ids.ravel()).reshape(found.ids.shape)
            distances = np.where(class_distances < 0, -1, found.distances)
            answers.append(first_of(found.ids, distances, class_distances, k, by))
        ids, distances = (np.concatenate(arrays) for arrays in zip(*answers, strict=True))
        return SearchResult(ids, distances)

    def _n_candidates(self, k: int) -> int:
        """How many of the nearest items are put in the order of a ranking for its ``k`` first."""
        return self.cut(max(10 * k, LEAST_CANDIDATES))

    def _in_order(self, found: RangeResult, codes: Codes, by: By) -> RangeResult:
        """The same hits in the order of the ranking."""
        query_of = np.repeat(np.arange(len(codes)), np.diff(found.limits))
        by_id = np.lexsort((found.ids, query_of))
        ids, distances = found.ids[by_id], found.distances[by_id]
        class_distances = self._class_distances(codes, query_of, ids)
        for start, stop in pairwise(found.limits.tolist()):
            ranked = start + order(distances[start:stop], class_distances[start:stop], by)
            ids[start:stop], distances[start:stop] = ids[ranked], distances[ranked]
        return RangeResult(found.limits, ids, distances)

    def _class_distances(self, codes: Codes, query_of: NDArray[np.intp], ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """``(m,)``: differing bits in the class parts of codes and items; -1 for the id -1, and for items that are gone by now."""
        known, places = np.unique(ids, return_inverse=True)
        packed, is_there = self._packed(known)
        items = class_part(Codes(packed, self.n_bits, codes.class_bits)).packed[places]
        differing = np.bitwise_count(items ^ class_part(codes).packed[query_of]).sum(axis=1, dtype=np.int64)
        return np.where(is_there[places], differing, -1)

    def _packed(self, ids: NDArray[np.int64]) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """The packed codes of items, ``(n, bytes)``, and whether they are there; -1 is no item."""
        found = self._get(ids[ids >= 0].tolist())
        packed = np.zeros((len(ids), bytes_per_code(self.n_bits)), np.uint8)
        for place, identifier in enumerate(ids.tolist()):
            if identifier in found:
                packed[place] = found[identifier].code.packed[0]
        return packed, np.array([identifier in found for identifier in ids.tolist()], np.bool_)

    def get(self, ids: Sequence[int]) -> list[Item]:
        """The items with these ids, in this order.

        Raises:
            DataError: an id is not there.
        """
        found = self._get([int(identifier) for identifier in ids if _is_id(identifier)])
        self._check_found(ids, found)
        return [found[identifier] for identifier in ids]

    def vectors(self, ids: Sequence[int], width: int) -> NDArray[np.float32]:
        """The vectors that are kept of the items with these ids, ``(m, width)``; only their directions mean something.

        Raises:
            ParameterError: the index keeps none.
            DataError: an id is not there.
            FormatError: an item has no vector, or none of this width: the index is damaged.
        """
        dtype = np.dtype(self._kept_type()).newbyteorder("<")
        found = self._vectors([int(identifier) for identifier in ids if _is_id(identifier)], width * dtype.itemsize)
        self._check_found(ids, found)
        kept = np.frombuffer(b"".join(found[identifier] for identifier in ids), dtype).reshape(-1, width)
        vectors = kept.astype(np.float32)
        if not np.isfinite(vectors).all():
            wrong = ids[int(np.argmin(np.isfinite(vectors).all(axis=1)))]
            raise damaged(self._place, f"the vector of id {wrong} holds NaN or infinity")
        return vectors

    def _check_found(self, ids: Sequence[int], found: Mapping[int, object]) -> None:
        for identifier in ids:
            if identifier not in found:
                raise DataError(f"there is no item with id {identifier} in {self._place}; search gives ids that are")

    def _kept_type(self) -> VectorType:
        if self.vector_type is None:
            raise ParameterError(
                f"{self._place} keeps no vectors; index its sources into a new folder with --keep-vectors int8"
            )
        return self.vector_type

    @abstractmethod
    def known(self, keys: Sequence[str]) -> Known:
        """Id and content digest of those keys that are there."""

    def present(self, ids: Sequence[int]) -> set[int]:
        """Those of the ids that are there."""
        return self._present([int(identifier) for identifier in ids if _is_id(identifier)])

    @abstractmethod
    def ids(self) -> NDArray[np.int64]:
        """``(n,)``: the ids of all items, ascending."""

    def members(self, source: str, below: str = "") -> Iterator[Member]:
        """The items of a source, and those whose key begins with ``below`` unless that is empty; by ascending id.

        An item with a key is a source's if its metadata name that as ``source``, or in the list ``also``. The items are read in parts; the
        index must not change meanwhile.
        """
        for identifier, key, digest, metadata in self._members(source, below):
            if key is not None:
                member = Member(identifier, key, digest, metadata if isinstance(metadata, dict) else {})
                if source in member.sources or (below and key.startswith(below)):
                    yield member

    def is_exact(self, class_bits: int = 0, *, within: bool = False) -> bool:
        """Whether :meth:`search` by codes with ``class_bits`` finds all of the nearest items; ``within``: :meth:`range_search`."""
        return within or not class_bits  # an engine that knows Hamming distance alone

    def prepare(self, class_bits: int = 0) -> None:  # noqa: B027  # most engines have nothing to do
        """Do now what the next search, for codes with ``class_bits``, would have to do first, such as reading the codes."""

    def compact(self) -> None:  # noqa: B027
        """Give back the space of removed and replaced items, where the engine does not do so by itself."""

    def state(self) -> Hashable | None:
        """A change token: it differs after every change, whichever process made it; None where the engine has no cheap one."""
        return None

    @abstractmethod
    def __len__(self) -> int:
        """Number of items."""

    @abstractmethod
    def close(self) -> None:
        """Release files and memory; the index cannot be used after that."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @abstractmethod
    def _add(self, incoming: Incoming) -> NDArray[np.int64]: ...

    @abstractmethod
    def _remove(self, ids: set[int], keys: Sequence[str]) -> int: ...

    @abstractmethod
    def _search(self, codes: Codes, k: int, where: str | None) -> SearchResult: ...

    @abstractmethod
    def _range_search(self, codes: Codes, radius: int, where: str | None) -> RangeResult: ...

    @abstractmethod
    def _get(self, ids: list[int]) -> Mapping[int, Item]: ...

    def _vectors(self, ids: list[int], n_bytes: int) -> Mapping[int, bytes]:
        raise NotImplementedError("this engine keeps no vectors")

    @abstractmethod
    def _present(self, ids: list[int]) -> set[int]: ...

    @abstractmethod
    def _members(self, source: str, below: str) -> Iterable[tuple[int, str | None, bytes | None, Any]]:
        """Id, key, digest and metadata of at least the :meth:`members`, by ascending id."""

    @property
    def _place(self) -> str:
        """The index in messages."""
        return repr(self)

    def check_codes(self, codes: Codes) -> None:
        """Raise :class:`DataError` for codes of another length than the index's."""
        if codes.n_bits != self.n_bits:
            raise DataError(
                f"the index holds codes of {self.n_bits} bits, got {codes.n_bits}; encode with the index's model"
            )

    def _leaving(self, ids: set[int], keys: Sequence[str], present: Set[int], known: Known) -> set[int]:
        """The ids to remove; raises :class:`DataError` unless all ids are present and all keys are known."""
        if absent := ids - present:
            raise DataError(f"there is no item with id {min(absent)} in {self._place}; nothing was removed")
        for key in keys:
            if key not in known:
                raise DataError(f"there is no item with key {key!r} in {self._place}; nothing was removed")
        return ids | {identifier for identifier, _ in known.values()}


def quantise(vectors: NDArray[Any], kind: VectorType) -> NDArray[Any]:
    """Vectors ``(m, d)`` as an index keeps them: round(127 x / max|x|) as int8, or x / max|x| as float16; zeros stay.

    Doing it twice changes nothing. :class:`DataError` where they are not finite numbers in rows.
    """
    array = np.asarray(vectors)
    if array.ndim != 2 or array.shape[1] == 0 or array.dtype.kind not in "fiu":
        raise DataError(f"vectors must be (m, d) numbers, got {array.dtype} of shape {array.shape}")
    quantised = np.empty(array.shape, "i1" if kind == "int8" else "<f2")
    for start in range(0, len(array), _BLOCK):
        block = array[start : start + _BLOCK].astype(np.float64)
        largest = np.abs(block).max(axis=1, keepdims=True)
        if not np.isfinite(largest).all():
            row = start + int(np.argmin(np.isfinite(largest)))
            raise DataError(f"vectors must be finite; row {row} holds NaN or infinity")
        scaled = np.divide(block, largest, out=np.zeros_like(block), where=largest > 0)
        quantised[start : start + _BLOCK] = np.rint(127 * scaled) if kind == "int8" else scaled
    return quantised


def check_ids(ids: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
    """Distinct ids as ``(m,) int64``; raises :class:`DataError` otherwise."""
    array = np.asarray(ids)
    if array.ndim != 1:
        raise DataError(f"ids must be a flat sequence, got shape {array.shape}")
    if array.size and (array.dtype.kind not in "iu" or int(array.min()) < 0 or int(array.max()) > LARGEST_ID):
        wrong = next((value for value in ids if not _is_id(value)), ids[0])
        raise DataError(f"ids must be integers in 0..{LARGEST_ID}, got {wrong!s}")
    if len(np.unique(array)) != len(array):
        raise DataError(f"ids must be distinct in one call, {_first_repeated(array.tolist())} comes twice")
    return array.astype(np.int64)


def check_keys(keys: Sequence[str]) -> list[str]:
    """Distinct keys as a list; raises :class:`DataError` otherwise."""
    for key in keys:
        if not isinstance(key, str):
            raise DataError(f"keys must be text, got {key!r}")
    if len(set(keys)) != len(keys):
        raise DataError(f"keys must be distinct in one call, {_first_repeated(keys)!r} comes twice")
    return list(keys)


def _encode_metadata(metadata: Sequence[dict[str, Any] | None]) -> list[str | None]:
    encoded: list[str | None] = []
    for row, entry in enumerate(metadata):
        if entry is not None and not isinstance(entry, dict):
            raise DataError(f"metadata must be dictionaries or None, entry {row} is {entry!r}")
        try:
            encoded.append(None if entry is None else json.dumps(entry, allow_nan=False))
        except (TypeError, ValueError) as error:
            raise DataError(
                f"metadata entry {row} is not JSON ({error}); use text, finite numbers and lists"
            ) from error
    return encoded


def _is_id(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and 0 <= int(value) <= LARGEST_ID


def _first_repeated(values: Iterable[Any]) -> Any:
    return next(value for value, times in Counter(values).items() if times > 1)
