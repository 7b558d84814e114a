"""The Milvus engine: a collection on a server, exact by default.

``milvus://user:password@host:19530/collection?option=value``, with the options

- ``index``: ``BIN_FLAT`` (exact, the default) or ``BIN_IVF_FLAT`` (approximate, with ``nlist`` and ``nprobe``); decided when the
  collection is made.
- ``database``, ``tls`` (``true`` or ``false``), ``patience`` (seconds to wait for a server that goes away, 10), ``largest`` (items in
  one answer, 16384, the server's own default limit).

What Milvus cannot do, this engine cannot: an ``add`` of several batches is not one transaction (the batches sent before an error
stay, and the same call with ``upsert`` goes on), and two processes that add at one time without giving ids may choose the same ones.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, cast
from urllib.parse import unquote, urlsplit

import numpy as np
from numpy.typing import NDArray

from distillhash.codes import Codes
from distillhash.errors import DataError, DistillHashError, ParameterError
from distillhash.index import milvus_schema as schema
from distillhash.index import milvus_search
from distillhash.index.address import number, refuse_options, shown, split_options
from distillhash.index.base import Index, Item, RangeResult, SearchResult, check_k, check_radius
from distillhash.index.incoming import Incoming
from distillhash.index.manifest import Manifest
from distillhash.index.merge import nearest_from_pairs, range_from_pairs
from distillhash.index.milvus_session import Session
from distillhash.index.rows import LARGEST_ID, check_ids, is_id
from distillhash.index.text import from_plain, to_plain

OPTIONS = ("index", "nlist", "nprobe", "database", "tls", "patience", "largest")
_ROWS_AT_ONCE = 5_000
_BYTES_AT_ONCE = 8 << 20  # of one upsert; a server takes 64 MiB
_VALUES_AT_ONCE = 1_000  # of one expression
_ANSWERS_AT_ONCE = 200_000  # (query, item) pairs of one search


class MilvusIndex(Index):
    """An index in a Milvus collection. Open it with :func:`distillhash.index.open_index`; one thread at a time."""

    def __init__(self, uri: str, *, n_bits: int | None, create: bool, model_fingerprint: str | None) -> None:
        """Connect, and make the collection if it is not there."""
        rest, options = split_options(uri, OPTIONS)
        refuse_options(rest, OPTIONS)
        parts = urlsplit(rest)
        if not parts.hostname:
            raise ParameterError(
                f"a milvus:// address names a host, as in milvus://localhost:19530/photos, got {shown(uri)}"
            )
        self._name = schema.check_name(parts.path.strip("/"))
        settings = _index_settings(options)
        tls = options.get("tls", "false")
        if tls not in ("true", "false"):
            raise ParameterError(f"the option tls must be true or false, got {tls!r}")
        self._largest = number(options.get("largest", "16384"), "largest", least=2, most=1_000_000)
        self._probes = {"nprobe": int(options["nprobe"])} if "nprobe" in options else {}
        user, password = unquote(parts.username or ""), unquote(parts.password or "")
        self._session = Session(
            f"{'https' if tls == 'true' else 'http'}://{parts.hostname}:{parts.port or 19530}",
            shown(rest),
            token=f"{user}:{password}" if password else user,
            database=options.get("database", ""),
            patience=number(options.get("patience", "10"), "patience", least=0, most=86400),
        )
        try:
            held = schema.read_manifest(self._session, self._name)
            if held is None:
                if not create:
                    raise DataError(
                        f"there is no index at {self._session.shown}; make one with `distillhash index`, or pass create=True"
                    )
                schema.make(self._session, self._name, Manifest.new(n_bits, model_fingerprint))
                held = schema.read_manifest(self._session, self._name)
                assert held is not None
            held.check_fits(self._session.shown, n_bits, model_fingerprint)
            schema.prepare(self._session, self._name, settings)
        except BaseException:
            self._session.close()
            raise
        self.n_bits = held.n_bits
        self.model_fingerprint = held.model_fingerprint

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
        """See :meth:`Index.add`; in batches, each stored when the next is sent.

        Raises:
            DistillHashError: the server stayed away; the message says how many items are stored. The same call with ``upsert`` (and
                the same ids or keys) stores the rest.
        """
        self._check_codes(codes)
        incoming = Incoming.checked(codes, ids, metadata, keys, digests)
        last_id = self._last_id()
        following = last_id + 1 if incoming.ids is not None or not len(codes) else self._unused_from(last_id + 1)
        chosen = incoming.choose_ids(
            known=self.known(incoming.keys or []),
            present=set() if incoming.ids is None or upsert else self.present(incoming.ids.tolist()),
            following=following,
            upsert=upsert,
        )
        entities = [schema.to_entity(row) for row in incoming.rows(chosen)]
        if (
            len(chosen) and int(chosen.max()) > last_id
        ):  # before the rows: an id is never given twice, even after a crash
            state = {"id": 0, "unused": b"\0", "last_id": int(chosen.max())}
            self._session.call("upsert", f"{self._name}_ids", [state])
        stored = 0
        for batch in _batches(entities):
            try:
                self._session.call("upsert", self._name, batch)
            except DistillHashError as error:
                if not stored:
                    raise
                raise DistillHashError(f"{stored} of {len(entities)} items are stored, then: {error}") from error
            stored += len(batch)
        return chosen

    def remove(self, ids: Sequence[int] | NDArray[np.int64] = (), *, keys: Sequence[str] = ()) -> int:
        """See :meth:`Index.remove`; in batches, as :meth:`add`."""
        wanted = set(check_ids(ids).tolist())
        if absent := wanted - self.present(list(wanted)):
            raise DataError(f"there is no item with id {min(absent)} in {self!r}; nothing was removed")
        known = self.known(keys)
        for key in keys:
            if key not in known:
                raise DataError(f"there is no item with key {key!r} in {self!r}; nothing was removed")
        wanted.update(identifier for identifier, _ in known.values())
        for part in _parts(sorted(wanted)):
            self._session.call("delete", self._name, ids=part)
        return len(wanted)

    def search(self, codes: Codes, k: int = 10, *, where: str | None = None) -> SearchResult:
        """See :meth:`Index.search`; ``k`` is at most 16,384 (the option ``largest``), or at least the number of items."""
        self._check_codes(codes)
        check_k(k)
        most = k if k <= self._largest else min(k, len(self))
        if most > self._largest:
            raise ParameterError(
                f"Milvus answers with at most {self._largest} items, got k={k}; use range_search or a smaller k"
            )
        answers: list[list[milvus_search.Pair]] = []
        queries = [code.tobytes() for code in codes.packed]
        fetch = self._fetch(where)
        step = max(1, _ANSWERS_AT_ONCE // (2 * most + 16))
        for start in range(0, len(queries) if most else 0, step):
            answers += milvus_search.nearest(fetch, queries[start : start + step], most, self._largest)
        return nearest_from_pairs(answers if most else [[] for _ in queries], k)

    def range_search(self, codes: Codes, radius: int = 3, *, where: str | None = None) -> RangeResult:
        """See :meth:`Index.range_search`."""
        self._check_codes(codes)
        check_radius(radius)
        answers: list[list[milvus_search.Pair]] = []
        queries = [code.tobytes() for code in codes.packed]
        step = max(1, _ANSWERS_AT_ONCE // self._largest)
        for start in range(0, len(queries), step):
            part = queries[start : start + step]
            answers += milvus_search.within(self._fetch(where), part, min(int(radius), self.n_bits), self._largest)
        return range_from_pairs(answers)

    def _fetch(self, where: str | None) -> milvus_search.Fetch:
        def fetch(
            codes: Sequence[bytes],
            limit: int,
            *,
            least: int = 0,
            most: int | None = None,
            ids: milvus_search.IdRange = milvus_search.ALL_IDS,
        ) -> list[list[milvus_search.Pair]]:
            parameters: dict[str, Any] = dict(self._probes)
            if most is not None:
                parameters |= {"radius": most + 1, "range_filter": least}  # Milvus: range_filter <= distance < radius
            conditions = [] if where is None else [f"({where})"]
            if ids != milvus_search.ALL_IDS:
                conditions.append(f"id >= {ids[0]} and id <= {ids[1]}")
            try:
                answers = self._session.call(
                    "search",
                    self._name,
                    list(codes),
                    anns_field="code",
                    limit=limit,
                    filter=" and ".join(conditions),
                    search_params={"metric_type": "HAMMING", "params": parameters},
                    consistency_level="Strong",
                )
            except DistillHashError as error:
                if where is not None and getattr(error.__cause__, "code", None) == 1100:  # invalid parameter
                    raise ParameterError(
                        f"where={where!r} is no expression that Milvus takes ({error.__cause__})"
                    ) from error
                raise
            return [[(round(hit["distance"]), int(hit["id"])) for hit in hits] for hits in answers]

        return fetch

    def get(self, ids: Sequence[int]) -> list[Item]:
        """See :meth:`Index.get`."""
        wanted = [int(identifier) for identifier in ids if is_id(identifier)]
        entities = self._query_in("id", wanted, schema.FIELDS)
        found = {int(entity["id"]): schema.from_entity(entity, self.n_bits) for entity in entities}
        for identifier in ids:
            if identifier not in found:
                raise DataError(f"there is no item with id {identifier} in {self!r}; search gives ids that are")
        return [found[identifier] for identifier in ids]

    def known(self, keys: Sequence[str]) -> dict[str, tuple[int, bytes | None]]:
        """See :meth:`Index.known`."""
        found: dict[str, tuple[int, bytes | None]] = {}
        has_key = "has in [1, 3, 5, 7]"  # schema.HAS_KEY, and any of the others
        for entity in self._query_in("key", [to_plain(key) for key in keys], ["id", "key", "digest", "has"], has_key):
            digest = bytes.fromhex(entity["digest"]) if entity["has"] & schema.HAS_DIGEST else None
            found[from_plain(entity["key"])] = (int(entity["id"]), digest)
        return {key: found[key] for key in keys if key in found}

    def ids(self) -> NDArray[np.int64]:
        """See :meth:`Index.ids`; in several requests, so that a writer at work may be seen in parts."""
        found: list[int] = []
        waiting = [milvus_search.ALL_IDS]
        while waiting:
            first, last = waiting.pop()
            rows = self._query(f"id >= {first} and id <= {last}", ["id"], limit=self._largest)
            part = sorted(int(row["id"]) for row in rows)
            if len(part) < self._largest:
                found += part
            else:
                middle = min(part[len(part) // 2], last - 1)
                waiting += [(middle + 1, last), (first, middle)]  # the lower part is taken next
        return np.array(found, np.int64)

    def present(self, ids: Sequence[int]) -> set[int]:
        """See :meth:`Index.present`."""
        wanted = [int(identifier) for identifier in ids if is_id(identifier)]
        return {int(entity["id"]) for entity in self._query_in("id", wanted, ["id"])}

    def __len__(self) -> int:
        return int(self._query("", ["count(*)"])[0]["count(*)"])

    def close(self) -> None:
        """See :meth:`Index.close`."""
        self._session.close()

    def __repr__(self) -> str:
        return f"MilvusIndex({self._session.shown!r}, n_bits={self.n_bits})"

    def _last_id(self) -> int:
        rows = self._session.call(
            "query", f"{self._name}_ids", filter="id == 0", output_fields=["last_id"], consistency_level="Strong"
        )
        return int(rows[0]["last_id"]) if rows else -1

    def _unused_from(self, following: int) -> int:
        """The first id from ``following`` on with nothing after it: a bulk import leaves no trace in the counter."""
        while following <= LARGEST_ID:
            rows = self._query(f"id >= {following}", ["id"], limit=self._largest)
            if not rows:
                break
            following = max(int(row["id"]) for row in rows) + 1
        return following

    def _query(self, expression: str, fields: list[str], **options: Any) -> list[dict[str, Any]]:
        rows = self._session.call(
            "query", self._name, filter=expression, output_fields=fields, consistency_level="Strong", **options
        )
        return cast("list[dict[str, Any]]", rows)

    def _query_in(
        self, field: str, values: Sequence[int | str], fields: list[str], also: str = "id >= 0"
    ) -> Iterator[dict[str, Any]]:
        for part in _parts(values):
            yield from self._query(f"{field} in {json.dumps(part, ensure_ascii=False)} and {also}", fields)


def _index_settings(options: dict[str, str]) -> dict[str, Any]:
    kind = options.get("index", "BIN_FLAT")
    if kind not in ("BIN_FLAT", "BIN_IVF_FLAT"):
        raise ParameterError(f"the option index must be BIN_FLAT (exact) or BIN_IVF_FLAT (approximate), got {kind!r}")
    for name in ("nlist", "nprobe"):
        if name in options:
            if kind == "BIN_FLAT":
                raise ParameterError(f"the option {name} belongs to index=BIN_IVF_FLAT; leave it out or add that")
            number(options[name], name, least=1, most=65536)
    if kind == "BIN_FLAT":
        return {"index_type": kind}
    return {"index_type": kind, "params": {"nlist": int(options.get("nlist", "1024"))}}


def _parts(values: Sequence[Any]) -> Iterator[list[Any]]:
    for start in range(0, len(values), _VALUES_AT_ONCE):
        yield list(values[start : start + _VALUES_AT_ONCE])


def _batches(entities: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Entities in batches of bounded count and size."""
    left = iter(entities)
    while batch := list(islice(left, _ROWS_AT_ONCE)):
        size = sum(len(entity["code"]) + len(entity["key"]) + len(str(entity["metadata"])) + 100 for entity in batch)
        step = max(1, len(batch) * _BYTES_AT_ONCE // max(size, _BYTES_AT_ONCE))
        for start in range(0, len(batch), step):
            yield batch[start : start + step]
