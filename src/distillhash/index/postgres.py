"""The Postgres engine: rows in a table, distances by pgvector, exact scans.

``postgresql://user@host:port/database?table=photos&patience=10`` and whatever else libpq takes. The table has the columns ``id``,
``code`` (``bit(n_bits)``), ``key``, ``digest`` and ``metadata``; see ``docs/postgres.md``. A call of ``add`` or ``remove`` is one
transaction; a search sees one committed state. Writers wait for each other, readers for nobody.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from distillhash.codes import Codes
from distillhash.errors import DataError, DistillHashError, FormatError, ParameterError
from distillhash.index.address import number, shown, split_options
from distillhash.index.base import Index, Item, RangeResult, SearchResult, check_k, check_radius
from distillhash.index.incoming import Incoming
from distillhash.index.merge import nearest_from_pairs, range_from_pairs
from distillhash.index.postgres_schema import Tables
from distillhash.index.postgres_session import Session
from distillhash.index.rows import check_ids, is_id
from distillhash.index.text import from_plain, to_plain

if TYPE_CHECKING:
    import psycopg

OPTIONS = ("table", "patience")
_QUERIES_AT_ONCE = 256
_VALUES_AT_ONCE = 10_000

# The cast to int keeps the planner from an approximate index (HNSW, IVFFlat) that somebody made on the column.
_NEAREST = """SELECT query.place, found.distance, found.id
    FROM unnest(%s::text[]) WITH ORDINALITY AS query (bits, place)
    CROSS JOIN LATERAL (SELECT id, (code <~> query.bits::bit({n}))::int AS distance
        FROM {{items}} WHERE {where} ORDER BY distance, id LIMIT %s) AS found
    ORDER BY query.place, found.distance, found.id"""
_WITHIN = """SELECT query.place, (code <~> query.bits::bit({n}))::int AS distance, id
    FROM unnest(%s::text[]) WITH ORDINALITY AS query (bits, place) CROSS JOIN {{items}}
    WHERE ({where}) AND (code <~> query.bits::bit({n}))::int <= %s
    ORDER BY query.place, distance, id"""


class PostgresIndex(Index):
    """An index in a Postgres table. Open it with :func:`distillhash.index.open_index`; one thread at a time."""

    def __init__(
        self,
        uri: str,
        *,
        n_bits: int | None,
        create: bool,
        model_fingerprint: str | None,
        durability: Literal["normal", "full"],
    ) -> None:
        """Connect, and make the tables if they are not there. Durability ``normal`` is whatever the server is set to."""
        rest, options = split_options(uri, OPTIONS)
        patience = number(options.get("patience", "10"), "patience", least=0, most=86400)
        self._session = Session(rest, shown(rest), patience=patience, synchronous=durability == "full")
        try:
            self._tables = Tables(options.get("table", "distillhash"))
            held = self._tables.open(self._session, n_bits=n_bits, create=create, model_fingerprint=model_fingerprint)
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
        """See :meth:`Index.add`."""
        self._check_codes(codes)
        incoming = Incoming.checked(codes, ids, metadata, keys, digests)
        given = None if incoming.ids is None else incoming.ids.tolist()

        def work(connection: psycopg.Connection[tuple[Any, ...]]) -> NDArray[np.int64]:
            last_id = self._lock(connection)
            chosen = incoming.choose_ids(
                known=self._known(connection, incoming.keys or []),
                present=self._present(connection, given or []),
                following=last_id + 1,
                upsert=upsert,
            )
            statement = self._tables.statement
            if upsert:
                connection.execute(statement("DELETE FROM {items} WHERE id = ANY(%s)"), [chosen.tolist()])
            bits = to_bit_text(codes)
            copy_in = statement("COPY {items} (id, code, key, digest, metadata) FROM STDIN")
            with connection.cursor() as cursor, cursor.copy(copy_in) as copy:
                for text, (identifier, _, key, digest, entry) in zip(bits, incoming.rows(chosen), strict=True):
                    copy.write_row((identifier, text, None if key is None else to_plain(key), digest, entry))
            largest = max(last_id, int(chosen.max(initial=-1)))
            connection.execute(statement("UPDATE {manifest} SET last_id = %s"), [largest])
            return chosen

        return self._session.write(work)

    def remove(self, ids: Sequence[int] | NDArray[np.int64] = (), *, keys: Sequence[str] = ()) -> int:
        """See :meth:`Index.remove`."""
        wanted = check_ids(ids).tolist()

        def work(connection: psycopg.Connection[tuple[Any, ...]]) -> int:
            self._lock(connection)
            if absent := set(wanted) - self._present(connection, wanted):
                raise DataError(f"there is no item with id {min(absent)} in {self!r}; nothing was removed")
            known = self._known(connection, keys)
            for key in keys:
                if key not in known:
                    raise DataError(f"there is no item with key {key!r} in {self!r}; nothing was removed")
            leaving = list({*wanted, *(identifier for identifier, _ in known.values())})
            connection.execute(self._tables.statement("DELETE FROM {items} WHERE id = ANY(%s)"), [leaving])
            return len(leaving)

        return self._session.write(work)

    def search(self, codes: Codes, k: int = 10, *, where: str | None = None) -> SearchResult:
        """See :meth:`Index.search`; the condition becomes part of a statement: take it from no stranger."""
        self._check_codes(codes)
        check_k(k)
        return nearest_from_pairs(self._answers(_NEAREST, codes, int(k), where), k)

    def range_search(self, codes: Codes, radius: int = 3, *, where: str | None = None) -> RangeResult:
        """See :meth:`Index.range_search`."""
        self._check_codes(codes)
        check_radius(radius)
        return range_from_pairs(self._answers(_WITHIN, codes, min(int(radius), self.n_bits), where))

    def _answers(self, query: str, codes: Codes, bound: int, where: str | None) -> list[list[tuple[int, int]]]:
        """(distance, id) pairs of every code."""
        condition = "true" if where is None else f"({where})".replace("%", "%%").replace("{", "{{").replace("}", "}}")
        statement = self._tables.statement(query.format(n=self.n_bits, where=condition))
        bits = to_bit_text(codes)
        answers: list[list[tuple[int, int]]] = [[] for _ in bits]
        for start in range(0, len(bits), _QUERIES_AT_ONCE):
            try:
                rows = self._session.read(statement, [bits[start : start + _QUERIES_AT_ONCE], bound])
            except DistillHashError as error:
                state = getattr(error.__cause__, "sqlstate", None) or ""
                if where is not None and state.startswith(("22", "42")):  # data exception, syntax error or unknown name
                    raise ParameterError(
                        f"where={where!r} is no condition that Postgres takes ({error.__cause__})"
                    ) from error
                raise
            for place, distance, identifier in rows:
                answers[start + place - 1].append((distance, identifier))
        return answers

    def get(self, ids: Sequence[int]) -> list[Item]:
        """See :meth:`Index.get`."""
        statement = self._tables.statement(
            "SELECT id, code::text, key, digest, metadata::text FROM {items} WHERE id = ANY(%s)"
        )
        wanted = [int(identifier) for identifier in ids if is_id(identifier)]
        found: dict[int, Item] = {}
        for start in range(0, len(wanted), _VALUES_AT_ONCE):
            for identifier, bits, key, digest, entry in self._session.read(
                statement, [wanted[start : start + _VALUES_AT_ONCE]]
            ):
                if len(bits) != self.n_bits:
                    raise FormatError(
                        f"the code of id {identifier} in {self!r} has {len(bits)} bits, not {self.n_bits}"
                    )
                found[identifier] = Item(
                    identifier,
                    from_bit_text([bits]),
                    None if key is None else from_plain(key),
                    digest,
                    None if entry is None else json.loads(entry),
                )
        for identifier in ids:
            if identifier not in found:
                raise DataError(f"there is no item with id {identifier} in {self!r}; search gives ids that are")
        return [found[identifier] for identifier in ids]

    def known(self, keys: Sequence[str]) -> dict[str, tuple[int, bytes | None]]:
        """See :meth:`Index.known`."""
        return self._known(self._session, keys)

    def ids(self) -> NDArray[np.int64]:
        """See :meth:`Index.ids`."""
        rows = self._session.read(self._tables.statement("SELECT id FROM {items} ORDER BY id"))
        return np.array([row[0] for row in rows], np.int64)

    def present(self, ids: Sequence[int]) -> set[int]:
        """See :meth:`Index.present`."""
        return self._present(self._session, [int(identifier) for identifier in ids if is_id(identifier)])

    def __len__(self) -> int:
        return int(self._session.read(self._tables.statement("SELECT count(*) FROM {items}"))[0][0])

    def close(self) -> None:
        """See :meth:`Index.close`."""
        self._session.close()

    def __repr__(self) -> str:
        return f"PostgresIndex({self._session.shown!r}, table={self._tables.name!r}, n_bits={self.n_bits})"

    def _lock(self, connection: psycopg.Connection[tuple[Any, ...]]) -> int:
        """Keep other writers out until the transaction ends; the largest id ever used."""
        row = connection.execute(self._tables.statement("SELECT last_id FROM {manifest} FOR UPDATE")).fetchone()
        if row is None:
            raise FormatError(f"{self!r} has lost its manifest; restore it or build the index again")
        return int(row[0])

    def _known(
        self, source: Session | psycopg.Connection[tuple[Any, ...]], keys: Sequence[str]
    ) -> dict[str, tuple[int, bytes | None]]:
        statement = self._tables.statement(
            "SELECT key, id, digest FROM {items} WHERE md5(key) = ANY(SELECT md5(wanted) FROM unnest(%s::text[]) AS wanted)"
        )
        wanted = {to_plain(key): key for key in keys}
        rows = _rows(source, statement, list(wanted))
        return {wanted[key]: (identifier, digest) for key, identifier, digest in rows if key in wanted}

    def _present(self, source: Session | psycopg.Connection[tuple[Any, ...]], ids: list[int]) -> set[int]:
        statement = self._tables.statement("SELECT id FROM {items} WHERE id = ANY(%s)")
        return {row[0] for row in _rows(source, statement, ids)}


def _rows(
    source: Session | psycopg.Connection[tuple[Any, ...]], statement: psycopg.sql.Composed, values: list[Any]
) -> list[tuple[Any, ...]]:
    """Rows of a statement for all values, a bounded number at a time."""
    rows: list[tuple[Any, ...]] = []
    for start in range(0, len(values), _VALUES_AT_ONCE):
        part = values[start : start + _VALUES_AT_ONCE]
        rows += source.read(statement, [part]) if isinstance(source, Session) else source.execute(statement, [part])
    return rows


def to_bit_text(codes: Codes) -> list[str]:
    """Codes as Postgres writes ``bit(n_bits)``: one character a bit, bit 0 first."""
    if not len(codes):
        return []
    characters = np.unpackbits(codes.packed, axis=1, count=codes.n_bits) + np.uint8(ord("0"))
    return [text.decode() for text in np.ascontiguousarray(characters).view(f"S{codes.n_bits}").ravel().tolist()]


def from_bit_text(texts: Sequence[str]) -> Codes:
    """The codes that :func:`to_bit_text` wrote; at least one."""
    characters = np.frombuffer("".join(texts).encode(), np.uint8).reshape(len(texts), -1)
    return Codes(np.packbits(characters - np.uint8(ord("0")), axis=1), characters.shape[1])
