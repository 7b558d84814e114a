"""The Milvus engine: a collection on a server, exact by default.

``milvus://user:password@host:19530/collection?option=value``; docs/milvus.md explains the options in :data:`OPTIONS`.

The limits of Milvus are limits of this engine: an ``add`` of several batches is not one transaction (the batches sent before an error
stay, and the same call with ``upsert`` continues), and two processes that add at the same time without ids may choose the same ones.

There are two collections: the items, and ``NAME_ids`` with the largest id ever used. The manifest is JSON in the description of the item
collection, written together with it. Milvus has no byte strings and, in older versions, no null: digests are hexadecimal, and the
field ``has`` says which of key, digest and metadata are there.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeVar, cast
from urllib.parse import unquote, urlsplit

import numpy as np
from numpy.typing import NDArray

from distillhash.codes import Codes, bytes_per_code
from distillhash.errors import DataError, DistillHashError, FormatError, MissingDependencyError, ParameterError
from distillhash.index.address import from_plain, number, refuse_options, shown, split_options, to_plain, with_patience
from distillhash.index.base import LARGEST_ID, Incoming, Index, Item, Known, RangeResult, Row, SearchResult
from distillhash.index.manifest import Manifest

if TYPE_CHECKING:
    from pymilvus import MilvusClient

OPTIONS = ("index", "nlist", "nprobe", "database", "tls", "patience", "largest")
HAS_KEY, HAS_DIGEST, HAS_METADATA = 1, 2, 4
MOST_TEXT_BYTES = 65535
_FIELDS = ["id", "code", "key", "digest", "metadata", "has"]
_COLLECTION = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,199}")
_SPECIAL = re.compile(r"""[%_"'\\]""")  # in a pattern
_ROWS_AT_ONCE = 5_000
_BYTES_AT_ONCE = 8 << 20  # of one upsert; a server takes 64 MiB
_VALUES_AT_ONCE = 1_000  # of one expression
_ANSWERS_AT_ONCE = 200_000  # (query, item) pairs of one search
_MARGIN = 16  # items asked for beyond k, at least
_AWAY_CODES = ("UNAVAILABLE", "UNKNOWN", "DEADLINE_EXCEEDED", "CANCELLED", "ABORTED")
_AWAY_TEXTS = ("server unavailable", "Fail connecting", "channel is closed", "connection first", "Retry timeout")
_DEADLINE = 60.0  # seconds for one request
# pymilvus pings an idle connection every 10 s. Some servers (gRPC's own default) count such pings and hang up: "too_many_pings".
_CHANNEL = {"grpc.keepalive_permit_without_calls": 0}

T = TypeVar("T")
Pair = tuple[int, int]  # (distance, id)
IdRange = tuple[int, int]  # first and last id
ALL_IDS = (0, LARGEST_ID)
Fetch = Callable[[Sequence[bytes], int, int, int | None, IdRange], list[list[Pair]]]
"""``fetch(codes, limit, least, most, ids)`` is one request.

For every code it gives up to ``limit`` pairs, nearest first and ties in any order, with distances in ``least..most`` (``most=None``: no
limit) and ids in the range.
"""


class MilvusIndex(Index):
    """An index in a Milvus collection. Open it with :func:`distillhash.index.open_index`; one thread at a time."""

    def __init__(self, uri: str, n_bits: int | None, create: bool, model_fingerprint: str | None) -> None:
        """Connect, and make the collection if it is not there."""
        rest, options = split_options(uri, OPTIONS)
        refuse_options(rest, OPTIONS)
        parts = urlsplit(rest)
        if not parts.hostname:
            raise ParameterError(
                f"a milvus:// address names a host, as in milvus://localhost:19530/photos, got {shown(uri)}"
            )
        self._name = parts.path.strip("/")
        if not _COLLECTION.fullmatch(self._name):
            raise ParameterError(
                f"a milvus:// address ends in a collection of up to 200 letters, digits and underscores, got {self._name!r}"
            )
        vector_index = _vector_index(options)
        tls = options.get("tls", "false")
        if tls not in ("true", "false"):
            raise ParameterError(f"the option tls must be true or false, got {tls!r}")
        self._largest = number(options.get("largest", "16384"), "largest", least=2, most=1_000_000)
        self._probes = {"nprobe": int(options["nprobe"])} if "nprobe" in options else {}
        user, password = unquote(parts.username or ""), unquote(parts.password or "")
        self._session = MilvusSession(
            f"{'https' if tls == 'true' else 'http'}://{parts.hostname}:{parts.port or 19530}",
            shown(rest),
            token=f"{user}:{password}" if password else user,
            database=options.get("database", ""),
            patience=number(options.get("patience", "10"), "patience", least=0, most=86400),
        )
        try:
            held = self._read_manifest()
            if held is None:
                if not create:
                    raise DataError(
                        f"there is no index at {self._session.shown}; make one with `distillhash index`, or pass create=True"
                    )
                self._make_items(Manifest.new(n_bits, model_fingerprint))
                held = self._read_manifest()
                assert held is not None
            held.check_fits(self._session.shown, n_bits, model_fingerprint)
            self._vector_index = self._complete(vector_index)
            if options.get("index", self._vector_index) != self._vector_index:
                raise ParameterError(
                    f"{self._session.shown} has a {self._vector_index} index, got index={options['index']!r}; leave the option out, or "
                    "index into a new collection"
                )
        except BaseException:
            self._session.close()
            raise
        self.n_bits = held.n_bits
        self.model_fingerprint = held.model_fingerprint

    def _read_manifest(self) -> Manifest | None:
        """What the index holds, None if there is none."""
        if not self._session.call("has_collection", self._name):
            return None
        place = f"collection {self._name} of {self._session.shown}"
        description = self._session.call("describe_collection", self._name)["description"]
        if not description.startswith("{"):
            raise FormatError(f"the {place} is not an index; choose another name")
        return Manifest.parse(description, f"the description of {place}", place)

    def _make_items(self, manifest: Manifest) -> None:
        from pymilvus import DataType, MilvusClient

        description = json.dumps(json.loads(manifest.text()))
        schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False, description=description)
        schema.add_field("id", DataType.INT64, is_primary=True)
        schema.add_field("code", DataType.BINARY_VECTOR, dim=8 * bytes_per_code(manifest.n_bits))
        schema.add_field("key", DataType.VARCHAR, max_length=MOST_TEXT_BYTES)
        schema.add_field("digest", DataType.VARCHAR, max_length=MOST_TEXT_BYTES)
        schema.add_field("metadata", DataType.JSON)
        schema.add_field("has", DataType.INT8)
        self._create(self._name, schema)

    def _complete(self, vector_index: dict[str, Any]) -> str:
        """Make what an index still lacks (a process may have died after any step), and load it; the type of its vector index."""
        from pymilvus import DataType, MilvusClient

        counter = f"{self._name}_ids"
        if not self._session.call("has_collection", counter):
            schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
            schema.add_field("id", DataType.INT64, is_primary=True)
            schema.add_field("unused", DataType.BINARY_VECTOR, dim=8)  # Milvus has no collection without a vector
            schema.add_field("last_id", DataType.INT64)
            self._create(counter, schema)
        vectors = [(self._name, "code", vector_index), (counter, "unused", {"index_type": "BIN_FLAT"})]
        for collection, field, settings in vectors:
            if not self._session.call("list_indexes", collection):
                parameters = MilvusClient.prepare_index_params()
                parameters.add_index(field, metric_type="HAMMING", **settings)
                if field == "code":
                    parameters.add_index("key", index_type=self._key_index())
                self._session.call("create_index", collection, parameters, sync=False)
            self._session.call("load_collection", collection)
        return str(self._session.call("describe_index", self._name, "code")["index_type"])

    def _key_index(self) -> str:
        """The type of the index of keys: ``INVERTED`` came with Milvus 2.4, ``Trie`` was before it."""
        try:
            version = re.match(r"v?(\d+)\.(\d+)", self._session.call("get_server_version"))
        except DistillHashError:  # milvus-lite does not tell
            return "INVERTED"
        return "Trie" if version and (int(version[1]), int(version[2])) < (2, 4) else "INVERTED"

    def is_exact(self, class_bits: int = 0, *, within: bool = False) -> bool:
        """See :meth:`Index.is_exact`; as the collection was made, whatever the address says."""
        return super().is_exact(class_bits, within=within) and self._vector_index == "BIN_FLAT"

    def _create(self, collection: str, schema: Any) -> None:
        """Make a collection, unless another process was faster."""
        try:
            self._session.call("create_collection", collection, schema=schema, consistency_level="Strong")
        except DistillHashError:
            if not self._session.call("has_collection", collection):
                raise

    def _add(self, incoming: Incoming) -> NDArray[np.int64]:
        counter = self._query("id == 0", ["last_id"], "_ids")
        last_id = int(counter[0]["last_id"]) if counter else -1
        assigns = incoming.ids is None and len(incoming.codes)
        chosen = incoming.choose_ids(
            known=self.known(incoming.keys or []),
            present=set() if incoming.ids is None or incoming.upsert else self._present(incoming.ids.tolist()),
            following=self._unused_from(last_id + 1) if assigns else last_id + 1,
        )
        entities = [_to_entity(row) for row in incoming.rows(chosen)]
        largest = int(chosen.max(initial=-1))
        if largest == LARGEST_ID:  # Milvus 2.3 finds such an item, but never lists it
            raise DataError(f"Milvus does not hold the id {LARGEST_ID}; give ids of your own below it")
        if largest > last_id:  # first, so that no id is given twice even after a crash
            self._session.call("upsert", f"{self._name}_ids", [{"id": 0, "unused": b"\0", "last_id": largest}])
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

    def _remove(self, ids: set[int], keys: Sequence[str]) -> int:
        leaving = self._leaving(ids, keys, self._present(list(ids)), self.known(keys))
        for part in _parts(sorted(leaving)):
            self._session.call("delete", self._name, ids=part)
        return len(leaving)

    def _search(self, codes: Codes, k: int, where: str | None) -> SearchResult:
        most = k if k <= self._largest else min(k, len(self))
        if most > self._largest:
            raise ParameterError(
                f"Milvus answers with at most {self._largest} items, got k={k}; use range_search or a smaller k"
            )
        queries = [code.tobytes() for code in codes.packed]
        if not most:
            return SearchResult.from_pairs([[] for _ in queries], k)
        fetch, step = partial(self._fetch, where), max(1, _ANSWERS_AT_ONCE // (2 * most + 16))
        starts = range(0, len(queries), step)
        nearest = exact_nearest if self.is_exact() else found_nearest
        parts = (nearest(fetch, queries[start : start + step], most, self._largest) for start in starts)
        return SearchResult.from_pairs(list(chain.from_iterable(parts)), k)

    def _n_candidates(self, k: int) -> int:
        return max(k, min(super()._n_candidates(k), self._largest))

    def _range_search(self, codes: Codes, radius: int, where: str | None) -> RangeResult:
        queries = [code.tobytes() for code in codes.packed]
        fetch, step = partial(self._fetch, where), max(1, _ANSWERS_AT_ONCE // self._largest)
        starts = range(0, len(queries), step)
        parts = (exact_within(fetch, queries[start : start + step], radius, self._largest) for start in starts)
        return RangeResult.from_pairs(list(chain.from_iterable(parts)))

    def _fetch(
        self, where: str | None, codes: Sequence[bytes], limit: int, least: int, most: int | None, ids: IdRange
    ) -> list[list[Pair]]:
        """See :data:`Fetch`."""
        parameters: dict[str, Any] = dict(self._probes)
        if most is not None:
            parameters |= {"radius": most + 1, "range_filter": least}  # Milvus: range_filter <= distance < radius
        conditions = [] if where is None else [f"({where})"]
        if ids != ALL_IDS:
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
            code, text = getattr(error.__cause__, "code", None), str(error.__cause__)
            if where is not None and (code == 1100 or "cannot parse expression" in text):  # 1100: invalid parameter
                raise ParameterError(f"where={where!r} is no expression that Milvus takes ({text})") from error
            raise
        return [[(round(hit["distance"]), int(hit["id"])) for hit in hits] for hits in answers]

    def _get(self, ids: list[int]) -> dict[int, Item]:
        return {int(entity["id"]): _from_entity(entity, self.n_bits) for entity in self._query_in("id", ids, _FIELDS)}

    def known(self, keys: Sequence[str]) -> Known:
        """See :meth:`Index.known`."""
        found: Known = {}
        has_key = "has in [1, 3, 5, 7]"  # HAS_KEY, and any of the others
        for entity in self._query_in("key", [to_plain(key) for key in keys], ["id", "key", "digest", "has"], has_key):
            digest = bytes.fromhex(entity["digest"]) if entity["has"] & HAS_DIGEST else None
            found[from_plain(entity["key"])] = (int(entity["id"]), digest)
        return {key: found[key] for key in keys if key in found}

    def _present(self, ids: list[int]) -> set[int]:
        return {int(entity["id"]) for entity in self._query_in("id", ids, ["id"])}

    def _members(self, source: str, below: str) -> Iterator[tuple[int, str | None, bytes | None, Any]]:
        text = json.dumps(to_plain(source), ensure_ascii=False)
        conditions = [f'metadata["source"] == {text}', f'json_contains(metadata["also"], {text})']
        if below:  # as far as its characters mean themselves; what is too much is sorted out later
            conditions.append(f'key like "{_SPECIAL.split(to_plain(below))[0]}%"')

        def ask(first: int, last: int) -> list[dict[str, Any]]:
            condition = f"id >= {first} and id <= {last} and ({' or '.join(conditions)})"
            return self._query(condition, ["id", "key", "digest", "metadata", "has"], limit=self._largest)

        for part in _by_id_ranges(ask, lambda entity: int(entity["id"]), self._largest):
            for entity in sorted(part, key=lambda entity: int(entity["id"])):
                key = from_plain(entity["key"]) if entity["has"] & HAS_KEY else None
                digest = bytes.fromhex(entity["digest"]) if entity["has"] & HAS_DIGEST else None
                yield int(entity["id"]), key, digest, map_text(entity["metadata"], from_plain)

    def ids(self) -> NDArray[np.int64]:
        """See :meth:`Index.ids`; in several requests, between which other processes may change the index."""

        def ask(first: int, last: int) -> list[int]:
            rows = self._query(f"id >= {first} and id <= {last}", ["id"], limit=self._largest)
            return [int(row["id"]) for row in rows]

        found = [identifier for part in _by_id_ranges(ask, int, self._largest) for identifier in sorted(part)]
        return np.array(found, np.int64)

    def __len__(self) -> int:
        return int(self._query("", ["count(*)"])[0]["count(*)"])

    def close(self) -> None:
        """See :meth:`Index.close`."""
        self._session.close()

    def __repr__(self) -> str:
        return f"MilvusIndex({self._session.shown!r}, n_bits={self.n_bits})"

    def _unused_from(self, following: int) -> int:
        """The first id from ``following`` on with nothing after it: a bulk import leaves no trace in the counter."""
        while following <= LARGEST_ID:
            rows = self._query(f"id >= {following}", ["id"], limit=self._largest)
            if not rows:
                break
            following = max(int(row["id"]) for row in rows) + 1
        return following

    def _query(self, expression: str, fields: list[str], suffix: str = "", **options: Any) -> list[dict[str, Any]]:
        options |= {"filter": expression, "output_fields": fields, "consistency_level": "Strong"}
        return cast("list[dict[str, Any]]", self._session.call("query", self._name + suffix, **options))

    def _query_in(
        self, field: str, values: Sequence[int | str], fields: list[str], also: str = "id >= 0"
    ) -> Iterator[dict[str, Any]]:
        for part in _parts(values):
            yield from self._query(f"{field} in {json.dumps(part, ensure_ascii=False)} and {also}", fields)


def _vector_index(options: dict[str, str]) -> dict[str, Any]:
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


def _batches(entities: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Entities in batches of bounded count and size."""
    for first in range(0, len(entities), _ROWS_AT_ONCE):
        batch = entities[first : first + _ROWS_AT_ONCE]
        size = sum(len(entity["code"]) + len(entity["key"]) + len(str(entity["metadata"])) + 100 for entity in batch)
        step = max(1, len(batch) * _BYTES_AT_ONCE // max(size, _BYTES_AT_ONCE))
        for start in range(0, len(batch), step):
            yield batch[start : start + step]


def _to_entity(row: Row) -> dict[str, Any]:
    """A row as Milvus takes it; raises :class:`DataError` for a key or a number that is too long for it."""
    identifier, code, key, digest, metadata = row
    plain = "" if key is None else to_plain(key)
    if len(plain.encode()) > MOST_TEXT_BYTES:
        raise DataError(
            f"the key {key!r:.80} has more than the {MOST_TEXT_BYTES} bytes that Milvus holds; use a shorter one"
        )
    entry = {} if metadata is None else map_text(json.loads(metadata), to_plain)
    if not _fits(entry):
        raise DataError(f"the metadata of id {identifier} hold an integer of more than 64 bits; give it as text")
    has = HAS_KEY * (key is not None) | HAS_DIGEST * (digest is not None) | HAS_METADATA * (metadata is not None)
    hexadecimal = (digest or b"").hex()
    return {"id": identifier, "code": code, "key": plain, "digest": hexadecimal, "metadata": entry, "has": has}


def _from_entity(entity: dict[str, Any], n_bits: int) -> Item:
    """The item in an entity of all fields; raises :class:`FormatError` unless ``add`` can have stored it."""
    try:
        code = np.frombuffer(entity["code"][0], np.uint8)[None]
        return Item(
            int(entity["id"]),
            Codes.from_packed(code, n_bits),
            from_plain(entity["key"]) if entity["has"] & HAS_KEY else None,
            bytes.fromhex(entity["digest"]) if entity["has"] & HAS_DIGEST else None,
            map_text(entity["metadata"], from_plain) if entity["has"] & HAS_METADATA else None,
        )
    except (TypeError, ValueError, KeyError) as error:
        raise FormatError(f"the entity of id {entity.get('id')}: {error}") from error


def map_text(value: Any, change: Callable[[str], str]) -> Any:
    """A JSON value with ``change`` applied to every text in it, names of fields included."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {change(name): map_text(entry, change) for name, entry in value.items()}
    if isinstance(value, list):
        return [map_text(entry, change) for entry in value]
    return value


def _fits(value: Any) -> bool:
    """Whether all integers in a JSON value have at most 64 bits."""
    if isinstance(value, dict | list):
        return all(map(_fits, value.values() if isinstance(value, dict) else value))
    return not isinstance(value, int) or -(2**63) <= value < 2**63


def found_nearest(fetch: Fetch, codes: Sequence[bytes], k: int, largest: int) -> list[list[Pair]]:
    """The ``k`` nearest that an approximate index finds: its range search loses more, so ties at the k-th distance are not completed."""
    limit = min(largest, k + max(k, _MARGIN))
    return [sorted(pairs)[:k] for pairs in fetch(codes, limit, 0, None, ALL_IDS)]


# Exact answers, ties by ascending id, from a server that orders ties arbitrarily and gives at most ``largest`` items (16,384) in one
# answer.


def exact_nearest(fetch: Fetch, codes: Sequence[bytes], k: int, largest: int) -> list[list[Pair]]:
    """The ``k`` nearest of every code by (distance, id); ``k`` is at most ``largest``, the most items of one answer.

    More than ``k`` are asked for. If the answer goes on beyond the k-th distance, or holds all items, it has all items at that distance,
    and the lowest ids are chosen. Otherwise the items at exactly that distance are fetched by ascending ranges of ids until there are
    enough.
    """
    limit = min(largest, k + max(k, _MARGIN))
    answers = []
    for code, pairs in zip(codes, fetch(codes, limit, 0, None, ALL_IDS), strict=True):
        found = sorted(pairs)
        if len(found) == limit and found[-1][0] == found[k - 1][0]:
            worst = found[k - 1][0]
            found = [pair for pair in found if pair[0] < worst]
            for part in _within_by_id_ranges(fetch, code, worst, worst, largest):
                found += sorted(part)
                if len(found) >= k:
                    break
        answers.append(found[:k])
    return answers


def exact_within(fetch: Fetch, codes: Sequence[bytes], radius: int, largest: int) -> list[list[Pair]]:
    """All within ``radius`` of every code by (distance, id): one request, and more by ranges of ids where its answer is full."""
    answers = []
    for code, pairs in zip(codes, fetch(codes, largest, 0, radius, ALL_IDS), strict=True):
        if len(pairs) == largest:
            pairs = [pair for part in _within_by_id_ranges(fetch, code, 0, radius, largest) for pair in part]
        answers.append(sorted(pairs))
    return answers


def _within_by_id_ranges(fetch: Fetch, code: bytes, least: int, most: int, largest: int) -> Iterator[list[Pair]]:
    """All items with distances in ``least..most``, in parts of ascending ids."""

    def ask(first: int, last: int) -> list[Pair]:
        return fetch([code], largest, least, most, (first, last))[0]

    return _by_id_ranges(ask, lambda pair: pair[1], largest)


def _by_id_ranges(ask: Callable[[int, int], list[T]], id_of: Callable[[T], int], largest: int) -> Iterator[list[T]]:
    """All answers of ``ask(first id, last id)`` in parts of ascending ids; a range whose answer is full is split."""
    waiting = [ALL_IDS]
    while waiting:
        first, last = waiting.pop()
        found = ask(first, last)
        if len(found) < largest or first == last:
            yield found
            continue
        middle = min(sorted(map(id_of, found))[len(found) // 2], last - 1)
        waiting += [(middle + 1, last), (first, middle)]  # the lower part is taken next


class MilvusSession:
    """A client that connects again when the server was away, for one thread at a time.

    Every call may be repeated, so only repeatable calls are made: reads, deletions by id, and upserts of whole rows under ids that were
    chosen before. (An insert that is sent twice would store a row twice.)
    """

    def __init__(self, uri: str, shown: str, *, token: str, database: str, patience: float) -> None:
        """Connect without patience, since a wrong address should fail at once; ``shown`` is the address without a password.

        ``patience`` is how many seconds to wait for a server that goes away later.
        """
        try:
            import pymilvus
        except ImportError as error:
            raise MissingDependencyError(
                f"{shown} needs pymilvus; install it with `pip install 'distillhash[milvus]'`"
            ) from error
        # pymilvus prints the traceback of each failed attempt; the last error is raised here, with one sentence.
        logging.getLogger("pymilvus.decorators").setLevel(logging.CRITICAL + 1)
        self._pymilvus, self.shown, self._patience = pymilvus, shown, patience
        self._account = {"uri": uri, "token": token, "db_name": database}
        self._client: MilvusClient | None = None
        self._is_open = True
        try:
            self._connected()
        except Exception as error:
            raise self._explained(error, "the connection") from error

    def call(self, name: str, *arguments: Any, **options: Any) -> Any:
        """The result of a repeatable method of the client."""

        def attempt() -> Any:
            client = self._connected()
            try:
                # A server that is gone is noticed at once. The deadline is for one that hangs, and long enough for a busy one.
                return getattr(client, name)(*arguments, timeout=max(_DEADLINE, self._patience), **options)
            except Exception as error:
                if self._may_pass(error):  # its channel does not recover
                    self._drop()
                raise

        try:
            return with_patience(attempt, self._may_pass, self._patience)
        except DataError:
            raise
        except Exception as error:
            raise self._explained(error, name.replace("_", " ")) from error

    def close(self) -> None:
        """Close the connection."""
        self._is_open = False
        self._drop()

    def _connected(self) -> MilvusClient:
        if not self._is_open:
            raise DataError(f"the index {self.shown} is closed; open it again")
        if self._client is None:
            timeout = max(2.0, self._patience)
            self._client = self._pymilvus.MilvusClient(
                **self._account, timeout=timeout, dedicated=True, grpc_options=_CHANNEL
            )
        return self._client

    def _drop(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            client.close()

    def _may_pass(self, error: Exception) -> bool:
        if _refusal(error):
            return False
        if _code_name(error) in _AWAY_CODES:
            return True
        is_milvus = isinstance(error, self._pymilvus.MilvusException)
        return is_milvus and any(text in str(error) for text in _AWAY_TEXTS)

    def _explained(self, error: Exception, what: str) -> DistillHashError:
        if isinstance(error, DistillHashError):
            return error
        if refusal := _refusal(error):
            return DistillHashError(
                f"{self.shown} refused the user ({refusal}); check the name, the password and the rights of the user"
            )
        text = " ".join(str(getattr(error, "message", None) or error).split())
        if self._may_pass(error):
            return DistillHashError(
                f"{self.shown} does not answer ({text}); check that Milvus runs there, and run the same command again"
            )
        return DistillHashError(
            f"{self.shown} refused {what} ({text}); check the request against the server's version and limits"
        )


def _refusal(error: BaseException) -> str:
    """What a server said that does not let the user in; empty if it is not that. pymilvus hides it behind "Fail connecting"."""
    for one in (error, error.__cause__):
        if _code_name(one) in ("UNAUTHENTICATED", "PERMISSION_DENIED"):
            return " ".join(str(one.details()).split())  # type: ignore[union-attr]  # an error of gRPC
    return ""


def _code_name(error: BaseException | None) -> str | None:
    """The name of the status in an error of gRPC."""
    code = getattr(error, "code", None)
    return getattr(code() if callable(code) else code, "name", None)
