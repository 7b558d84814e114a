"""Bring an index up to date with a source: what is new, changed, renamed and gone.

An item is known by its key. The key of a file is its real path, so one file is one item under every spelling and link. The key of a row
is the identity of its source (the real path of the file or folder) and the row's own key. The metadata of an item name its source, and in
``also`` other sources that hold it.

Ids follow the content: a file with another name keeps its id, unless the source still has the old name with the old content. What is gone
is removed on request alone. A file counts as gone where the system says that there is no such file, so a disk that is away or a folder
that cannot be read loses nothing.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from distillhash.codes import Codes
from distillhash.errors import DataError
from distillhash.index.base import Index, Item, Member, quantise
from distillhash.sources import Skipped, Source
from distillhash.sources.registry import split_selections

CODES_OF = "codes:"
"""Before the identity of what codes in a file were made from; so they are never taken for items of the source itself."""

_AT_ONCE = 10_000  # items whose metadata are in memory
_MOST_DEFERRED = 50_000  # rows that wait for their id, about 300 bytes each
_OWN_FIELDS = ("source", "key", "also")
T = TypeVar("T")


class Added(NamedTuple):
    """What bringing an index up to date did, in numbers of items."""

    added: int
    updated: int  # replaced because their content changed
    unchanged: int
    skipped: list[Skipped]
    renamed: int = 0  # kept their id under another key
    gone: int = 0  # not in the source any more, and still in the index
    pruned: int = 0  # removed because they were gone, or because another item that was renamed has their key


class Batch(NamedTuple):
    """Some rows of a source, in order."""

    rows: NDArray[np.intp]  # with these
    codes: Codes
    digests: Sequence[bytes]
    known: NDArray[np.intp]  # that :meth:`Update.recognise` recognised
    features: NDArray[np.float32] | None = None  # for an index that keeps vectors


@dataclass(frozen=True)
class Rows:
    """The rows of a source as items."""

    source: str  # its identity
    own: Sequence[str]  # keys within the source
    keys: list[str]  # of the items, distinct
    old_keys: Sequence[str]  # what the keys were in version 0.1
    folder: str = ""  # of the files, where they are all those of one folder: its real path and a slash
    is_part: bool = False  # a selection, which says nothing about the rest
    by_content: bool = True  # equal digests mean equal content, so that a renamed item is recognised


def rows_of(source: Source, identity: str) -> tuple[Source, Rows]:
    """The rows of an open source, without files that it holds a second time under another name; ``identity`` as of :func:`identity_of`."""
    real_folder = cache(os.path.realpath)
    paths = [source.path(row) for row in range(len(source))]
    keys = [
        row_key(identity, own) if path is None else _real_path(path, real_folder)
        for path, own in zip(paths, source.keys, strict=True)
    ]
    if len(first := {key: row for row, key in reversed(list(enumerate(keys)))}) < len(keys):
        rows = sorted(first.values())
        source, keys, paths = source.select(np.array(rows)), [keys[row] for row in rows], [paths[row] for row in rows]
    old_keys = [path or old_row_key(source.name, own) for path, own in zip(paths, source.keys, strict=True)]
    is_folder = paths[0] is not None and Path(identity).is_absolute() and Path(identity).is_dir()
    folder = identity.rstrip(os.sep) + os.sep if is_folder else ""
    return source, Rows(identity, source.keys, keys, old_keys, folder, is_part(source.name, identity))


def is_part(name: str, identity: str) -> bool:
    """Whether a source says nothing about what else there is: a selection, or files given one by one, which have no place of their own."""
    return bool(split_selections(name)[1]) or not (":" in identity or os.path.isabs(identity))  # noqa: PTH117


def identity_of(name: str) -> str:
    """What a source is called wherever one stands and however it is spelled: its real path, after ``scheme:`` where it has one."""
    try:
        place = split_selections(name)[0]
        scheme, colon, rest = place.partition(":")
        if (path := Path(place).expanduser()).exists():
            return os.path.realpath(path)
        if colon and rest and Path(rest).expanduser().exists():
            return f"{scheme}:{os.path.realpath(Path(rest).expanduser())}"
    except (OSError, ValueError, RuntimeError):  # no path at all
        return name
    return place


def row_key(source: str, own: str) -> str:
    """The key of a row, unique over all sources."""
    return f"{source.removesuffix(':')}:{own}"


def old_row_key(name: str, own: str) -> str:
    """The key that version 0.1 gave to a row of a source, by the name that was typed."""
    return row_key(name.partition("#")[0], own)


def is_row(item: Item | Member) -> bool:
    """Whether an item's key names a row of its source rather than a file; the source may have an absolute path."""
    metadata = item.metadata or {}
    source, own = str(metadata.get("source")), str(metadata.get("key"))
    return item.key in (row_key(source, own), old_row_key(source, own))


def _real_path(path: str, real_folder: Callable[[str], str]) -> str:
    """The real path of a file, given a cache for those of folders, which most files share with others."""
    folder, name = os.path.split(path)
    try:
        whole = os.path.join(real_folder(folder), name)  # noqa: PTH118  # a Path takes ten times as long
        is_plain = name not in ("", ".", "..") and not os.path.islink(whole)  # noqa: PTH114
        return whole if is_plain else os.path.realpath(whole)
    except ValueError:  # a NUL in a line of a list
        return path


class Update:
    """One run over a source: :meth:`recognise` says which rows need no code, :meth:`store` takes the batches, :meth:`finish` ends it."""

    def __init__(self, index: Index, rows: Rows) -> None:
        """Find out what the index holds of the source, and give items of version 0.1 their new keys."""
        self._index, self._rows = index, rows
        self._row_of = {own: row for row, own in enumerate(rows.own)}
        self._held: dict[str, tuple[int, bytes | None]] = {}  # id and digest of the items that the rows are
        self._shared: set[int] = set()  # those among them that other sources hold as well
        self._unclaimed: set[int] = set()  # those that this one does not hold yet
        self._gone: dict[bytes | None, list[int]] = defaultdict(list)  # ids of what is gone, by content
        self._left: list[int] = []  # items that the source does not hold any more, but others do
        # By row: id and content of the item of version 0.1 that is the row's if the content is.
        self._old: dict[int, tuple[int, bytes | None]] = {}
        self._moves: dict[int, tuple[int, bool]] = {}  # by row: the id of its item, and whether it was renamed
        # Row, digest, packed code, and the vector where those are kept.
        self._waiting: list[tuple[int, bytes, NDArray[np.uint8], NDArray[Any] | None]] = []
        self._identity = cache(identity_of)
        self.added = self.updated = self.unchanged = self.renamed = self.pruned = 0
        self._find_held()
        self._find_old()
        self._contents = {digest for _, digest in self._held.values()} if rows.by_content else set()

    def recognise(self, own_keys: Sequence[str], digests: Sequence[bytes]) -> list[bool]:
        """Which rows, given by their keys within the source and their contents, the index holds, if under another key."""
        return [self._recognise(self._row_of[own], digest) for own, digest in zip(own_keys, digests, strict=True)]

    def _recognise(self, row: int, digest: bytes) -> bool:
        if (held := self._held.get(self._rows.keys[row])) is not None:
            return held[1] == digest
        old = self._old.get(row)
        if old is not None and old[1] == digest:
            self._moves[row] = old[0], False
        elif self._rows.by_content and (identifier := _pop(digest, self._gone)) is not None:
            self._moves[row] = identifier, True
        return row in self._moves

    def store(self, batch: Batch) -> None:
        """Store the rows of a batch. A row whose content, or whose key's content, may be elsewhere waits for the end."""
        moved = [(row, *self._moves.pop(row)) for row in batch.known.tolist() if row in self._moves]
        n_renamed = sum(is_renamed for *_, is_renamed in moved)
        self.unchanged += len(batch.known) - n_renamed
        self.renamed += n_renamed
        self._rename([(row, identifier) for row, identifier, _ in moved])
        kind = self._index.vector_type
        vectors = None if kind is None or batch.features is None else quantise(batch.features, kind)
        new = []
        for place, (row, digest) in enumerate(zip(batch.rows.tolist(), batch.digests, strict=True)):
            if self._rows.keys[row] in self._held or digest in self._contents:
                vector = None if vectors is None else vectors[place].copy()
                self._waiting.append((row, digest, batch.codes.packed[place], vector))
            else:
                new.append(place)
        if new:
            rows, digests = batch.rows[new].tolist(), [batch.digests[place] for place in new]
            metadata = [self._metadata(row, None) for row in rows]
            more: dict[str, Any] = {"digests": digests, "vectors": None if vectors is None else vectors[new]}
            self._index.add(batch.codes[new], metadata=metadata, keys=self._keys(rows), upsert=True, **more)
            self.added += len(new)
        if len(self._waiting) > (_MOST_DEFERRED if self._rows.by_content else 0):
            self._settle()

    def finish(self, skipped: list[Skipped], *, prune: bool) -> Added:
        """Store what waits; with ``prune`` remove what is gone."""
        self._settle()
        for part in _parts(sorted(self._unclaimed), _AT_ONCE):
            self._change(part, lambda found: [*found.sources, self._rows.source])
        gone = sorted(identifier for ids in self._gone.values() for identifier in ids)
        if prune:
            for part in _parts(gone, _AT_ONCE):
                self.pruned += self._index.remove(sorted(self._index.present(part)))
            for part in _parts(self._left, _AT_ONCE):
                self._change(part, lambda found: [name for name in found.sources if name != self._rows.source])
        n_gone = 0 if prune else len(gone)
        return Added(self.added, self.updated, self.unchanged, skipped, self.renamed, n_gone, self.pruned)

    def refuse_other_codes(self, codes: Codes, digests: Sequence[bytes], *, replace: bool) -> None:
        """Raise :class:`DataError` where a key is also another source's, with another code than in ``codes`` (one for each row).

        With ``replace`` such an item is taken over.
        """
        row_of = {key: row for row, key in enumerate(self._rows.keys)}
        for part in _parts(sorted(self._shared), _AT_ONCE):
            for item in self._items(part).values():
                assert item.key is not None
                row = row_of[item.key]
                if item.code == codes[row]:
                    self._held[item.key] = item.id, digests[row]  # of a file, it is another digest
                    continue
                if not replace:
                    owner = next(name for name in _member(item).sources if name != self._rows.source)
                    raise DataError(
                        f"the key {item.key!r} of {_shown(self._rows.source)} is that of another item, from {_shown(owner)}; "
                        "give the items other keys, or pass --replace to replace what is there"
                    )
                self._unclaimed.discard(item.id)
                self._shared.discard(item.id)

    def _find_held(self) -> None:
        """Sort the items of the source into those that it lists and those that it does not."""
        rows, listed = self._rows, set(self._rows.keys)
        for member in self._index.members(rows.source, rows.folder):
            if member.key in listed:
                self._hold(member)
            elif not rows.is_part and self._is_gone(member):
                if len(member.sources) > 1 and not (rows.folder and _is_missing(member.key)):
                    self._left.append(member.id)
                else:
                    self._gone[member.digest].append(member.id)
        for item in self._with_keys([key for key in rows.keys if key not in self._held]):
            self._hold(_member(item))

    def _hold(self, member: Member) -> None:
        self._held[member.key] = member.id, member.digest
        others = [name for name in member.sources if self._identity(name) != self._rows.source]
        if others and not self._lies_in_other_folder(member):  # else they need not be named
            self._shared.add(member.id)
            if self._rows.source not in member.sources:
                self._unclaimed.add(member.id)

    def _lies_in_other_folder(self, member: Member) -> bool:
        """Whether an item is the file of another source, which is a folder."""
        folders = [self._identity(name).rstrip(os.sep) for name in member.sources]
        return any(member.key.startswith(name + os.sep) for name in folders if name != self._rows.source)

    def _is_gone(self, member: Member) -> bool:
        """Whether an item that the source does not list is not in it any more."""
        is_own = self._rows.source in member.sources
        if not self._rows.folder:
            return is_own
        if not is_own and is_row(member):  # of a table in the folder
            return False
        if member.key.startswith(self._rows.folder):  # a file that is there may lie in a folder that cannot be listed
            return _is_missing(member.key) or os.path.realpath(member.key) != member.key
        # It was reached through a link. Where the folder behind that is away, the file may come back with it.
        return os.access(os.path.dirname(member.key), os.R_OK | os.X_OK)  # noqa: PTH120

    def _find_old(self) -> None:
        """Give items of version 0.1 their new keys, where the old ones are whole paths. Others are recognised by their content."""
        rows = self._rows
        new = {old: row for row, (old, key) in enumerate(zip(rows.old_keys, rows.keys, strict=True)) if old != key}
        new = {old: row for old, row in new.items() if rows.keys[row] not in self._held}
        moves: list[tuple[int, int]] = []
        for item in self._with_keys(list(new) if len(self._index) else []):
            assert item.key is not None
            row = new[item.key]
            if os.path.isabs(item.key):  # noqa: PTH117  # any text
                moves.append((row, item.id))
            elif not _member(item).sources or is_row(item):
                self._old[row] = item.id, item.digest
        self._rename(moves)

    def _rename(self, moves: Sequence[tuple[int, int]]) -> None:
        """Give items, as (row, id), the keys of rows; they keep their code and what else their metadata hold."""
        for part in _parts(moves, _AT_ONCE):
            items = self._items([identifier for _, identifier in part])
            kept = {row: items[identifier] for row, identifier in part if identifier in items}
            metadata = [self._metadata(row, item, is_renamed=True) for row, item in kept.items()]
            self._put(list(kept.values()), self._keys(kept), metadata)
            self._held |= {self._rows.keys[row]: (item.id, item.digest) for row, item in kept.items()}

    def _change(self, ids: Sequence[int], sources: Callable[[Member], list[str]]) -> None:
        """Write anew which sources hold items."""
        items = [item for item in self._items(ids).values() if item.key is not None]
        metadata = [_held_by(item.metadata or {}, sources(_member(item))) for item in items]
        self._put(items, [str(item.key) for item in items], metadata)

    def _put(self, items: Sequence[Item], keys: Sequence[str], metadata: Sequence[dict[str, Any]]) -> None:
        """Store items again, with these keys."""
        for has_digest in (True, False):
            places = [place for place, item in enumerate(items) if (item.digest is not None) == has_digest]
            if places:
                self._index.add(
                    Codes.concatenate([items[place].code for place in places], self._index.n_bits),
                    [items[place].id for place in places],
                    [metadata[place] for place in places],
                    keys=[keys[place] for place in places],
                    digests=[items[place].digest or b"" for place in places] if has_digest else None,
                    upsert=True,
                )

    def _metadata(self, row: int, old: Item | None, *, is_renamed: bool = False) -> dict[str, Any]:
        """What is stored with a row, which is an item that is there already, or a new one (None)."""
        own = {"source": self._rows.source, "key": self._rows.own[row]}
        if old is None:
            return own
        if is_renamed:
            return {name: value for name, value in (old.metadata or {}).items() if name not in _OWN_FIELDS} | own
        member = _member(old)
        is_inside = self._lies_in_other_folder(member)
        if not is_inside and old.id not in self._shared:
            return own
        claim = [] if is_inside else [self._rows.source]
        return _held_by({"key": member.metadata.get("key")}, [*member.sources, *claim])

    def _keys(self, rows: Iterable[int]) -> list[str]:
        return [self._rows.keys[row] for row in rows]

    def _items(self, ids: Sequence[int]) -> dict[int, Item]:
        """Those of the items that are there."""
        return {item.id: item for item in self._index.get(sorted(self._index.present(ids)))}

    def _with_keys(self, keys: Sequence[str]) -> Iterator[Item]:
        """The items that have these keys."""
        for part in _parts(keys, _AT_ONCE):
            yield from self._items([identifier for identifier, _ in self._index.known(part).values()]).values()

    def _settle(self) -> None:
        """Give the rows that wait their ids: that of an item with their content, whose key's content changed, or else that of their key."""
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        owners = [self._held.get(self._rows.keys[row]) for row, *_ in waiting]
        chosen: list[int | None] = [None] * len(waiting)
        if self._rows.by_content:
            displaced: dict[bytes | None, list[int]] = defaultdict(list)
            for identifier, content in filter(None, owners):
                displaced[content].append(identifier)
            chosen = [_pop(digest, displaced, self._gone) for _, digest, *_ in waiting]
        moved = set(chosen)
        self.renamed += len(moved - {None})
        for place, owner in enumerate(owners):
            if chosen[place] is None and owner is not None and owner[0] not in moved:
                chosen[place] = owner[0]
                self.updated += 1
        self.added += chosen.count(None)
        orphans = {identifier for identifier, _ in filter(None, owners)}.difference(chosen)
        self.pruned += self._index.remove(sorted(self._index.present(list(orphans))))
        items = self._items([identifier for identifier in chosen if identifier is not None])
        for is_new in (False, True):  # a new item may get a key that another one has lost
            places = [place for place, identifier in enumerate(chosen) if (identifier is None) == is_new]
            if not places:
                continue
            ids = [identifier for identifier in chosen if identifier is not None]
            olds = [None] * len(places) if is_new else [items.get(identifier) for identifier in ids]
            rows, digests, packed, vectors = zip(*(waiting[place] for place in places), strict=True)
            stored = self._index.add(
                Codes(np.stack(packed), self._index.n_bits),
                None if is_new else ids,
                [
                    self._metadata(row, old, is_renamed=chosen[place] in moved)
                    for place, row, old in zip(places, rows, olds, strict=True)
                ],
                keys=self._keys(rows),
                digests=digests,
                vectors=None if vectors[0] is None else np.stack(vectors),
                upsert=True,
            )
            self._held |= dict(zip(self._keys(rows), zip(stored.tolist(), digests, strict=True), strict=True))
            self._contents.update(digests)


def _shown(source: str) -> str:
    """A source in messages."""
    return f"codes of {source.removeprefix(CODES_OF)}" if source.startswith(CODES_OF) else source


def _member(item: Item) -> Member:
    return Member(item.id, item.key or "", item.digest, item.metadata or {})


def _held_by(entry: dict[str, Any], sources: Sequence[str]) -> dict[str, Any]:
    """Metadata that name these sources, at least one."""
    first, *others = dict.fromkeys(sources)
    entry = {name: value for name, value in entry.items() if name != "also"} | {"source": first}
    return entry | ({"also": others} if others else {})


def _is_missing(path: str) -> bool:
    """Whether the system says that there is no such file; not where it cannot tell."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except (OSError, ValueError):
        return False
    return False


def _pop(digest: bytes, *pools: dict[bytes | None, list[int]]) -> int | None:
    """The id of an item with this content, taken from the first pool that has one."""
    for pool in pools:
        if ids := pool.get(digest):
            return ids.pop(0)
    return None


def _parts(values: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(values), size):
        yield values[start : start + size]
