"""The Postgres engine: rows in a table, distances by pgvector, exact scans unless the address asks for HNSW.

``postgresql://user@host:port/database?table=photos&patience=10`` and all other options of libpq. The table has the columns ``id``,
``code`` (``bit(n_bits)``), ``key``, ``digest`` and ``metadata``; see ``docs/postgres.md``. A call of ``add`` or ``remove`` is one
transaction; a search sees one committed state. Writers wait for each other, readers never wait.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from distillhash.codes import Codes
from distillhash.errors import DataError, DistillHashError, FormatError, MissingDependencyError, ParameterError
from distillhash.index.address import from_plain, number, shown, split_options, to_plain, with_patience
from distillhash.index.base import Incoming, Index, Item, Known, RangeResult, SearchResult
from distillhash.index.manifest import Manifest

if TYPE_CHECKING:
    import psycopg
    from psycopg.sql import Composable, Composed

T = TypeVar("T")
Connection: TypeAlias = "psycopg.Connection[tuple[Any, ...]]"
OPTIONS = ("table", "index", "ef", "patience")
_QUERIES_AT_ONCE = 256
_CONDITION_SECONDS = 10.0
_VALUES_AT_ONCE = 10_000
_TABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,49}")  # Postgres cuts names at 63 bytes, and ours get endings
_OLDEST_PGVECTOR = (0, 7)  # the first with Hamming distance of bits
_OLDEST_FOR_HNSW = (0, 8)  # the first whose scan goes on where a condition leaves too few of ef items
# SQLSTATE: connection, shutdown, too many connections, serialization, deadlock.
_TRANSIENT_STATES = ("08", "57P", "53300", "40001", "40P01")

# The cast to int keeps the planner from an approximate index (HNSW, IVFFlat) that somebody made on the column.
_NEAREST = """SELECT query.place, found.distance, found.id
    FROM unnest(%s::text[]) WITH ORDINALITY AS query (bits, place)
    CROSS JOIN LATERAL (SELECT id, (code <~> query.bits::bit({n}))::int AS distance
        FROM {{items}} WHERE {where} ORDER BY distance, id LIMIT %s) AS found
    ORDER BY query.place, found.distance, found.id"""
_NEAR = _NEAREST.replace("ORDER BY distance, id", "ORDER BY code <~> query.bits::bit({n})")  # as an index can serve it
_WITHIN = """SELECT query.place, (code <~> query.bits::bit({n}))::int AS distance, id
    FROM unnest(%s::text[]) WITH ORDINALITY AS query (bits, place) CROSS JOIN {{items}}
    WHERE ({where}) AND (code <~> query.bits::bit({n}))::int <= %s
    ORDER BY query.place, distance, id"""
_HAS_HNSW = """SELECT FROM pg_index JOIN pg_opclass ON pg_opclass.oid = indclass[0] JOIN pg_am ON pg_am.oid = opcmethod
    WHERE indrelid = to_regclass(quote_ident(%s)) AND indisvalid AND amname = 'hnsw' AND opcname = 'bit_hamming_ops'"""


class PostgresIndex(Index):
    """An index in a Postgres table. Open it with :func:`distillhash.index.open_index`; one thread at a time."""

    def __init__(
        self, uri: str, n_bits: int | None, create: bool, model_fingerprint: str | None, is_durable: bool
    ) -> None:
        """Connect, and make the tables if they are not there; unless ``is_durable``, the server's setting decides about the disk."""
        rest, options = split_options(uri, OPTIONS)
        patience = number(options.get("patience", "10"), "patience", least=0, most=86400)
        self._session = PostgresSession(rest, shown(rest), patience=patience, synchronous=is_durable)
        try:
            self._table = options.get("table", "distillhash")
            if not _TABLE.fullmatch(self._table):
                raise ParameterError(f"a table's name is up to 50 letters, digits and underscores, got {self._table!r}")
            held = self._read_manifest()
            if held is None:
                if not create:
                    raise DataError(
                        f"there is no index {self._table} in {self._session.shown}; make one with `distillhash index`, or pass create=True"
                    )
                self._make(Manifest.new(n_bits, model_fingerprint))
                held = self._read_manifest()
                assert held is not None
            held.check_fits(f"table {self._table} in {self._session.shown}", n_bits, model_fingerprint)
            self._scan = _approximate_scan(options)
            if self._scan:
                self._check_pgvector(_OLDEST_FOR_HNSW, "?index=hnsw")
        except BaseException:
            self._session.close()
            raise
        self.n_bits = held.n_bits
        self.model_fingerprint = held.model_fingerprint

    def _read_manifest(self) -> Manifest | None:
        """What the index holds, None if there is none."""
        place = f"table {self._table} in {self._session.shown}"
        tables = [self._table, f"{self._table}_manifest"]
        exists = self._sql("SELECT to_regclass(quote_ident(name)) IS NOT NULL FROM unnest(%s::text[]) AS name")
        found = [row[0] for row in self._session.read(exists, [tables])]
        if not any(found):
            return None
        if not all(found):
            raise FormatError(f"the {place} is not an index; choose another name with ?table=NAME")
        rows = self._session.read(self._sql("SELECT manifest FROM {manifest}"))
        if len(rows) != 1:
            raise FormatError(f"the {place} has {len(rows)} manifests, not one; restore it or build the index again")
        return Manifest.parse(rows[0][0], f"the manifest of {place}", place)

    def _make(self, manifest: Manifest) -> None:
        """Make the tables, unless another process was faster."""
        import psycopg

        # Keys are unique by their hash: an index entry of Postgres holds 2.7 kB, and a path may be longer.
        columns = f"id bigint PRIMARY KEY, code bit({manifest.n_bits}) NOT NULL, key text, digest bytea, metadata json"
        statements = (
            "SELECT pg_advisory_xact_lock(hashtext('distillhash'))",  # one process makes tables at a time
            "CREATE EXTENSION IF NOT EXISTS vector",
            f"CREATE TABLE IF NOT EXISTS {{items}} ({columns})",
            "CREATE UNIQUE INDEX IF NOT EXISTS {key} ON {items} (md5(key))",
            "CREATE TABLE IF NOT EXISTS {manifest} (manifest text NOT NULL, last_id bigint NOT NULL)",
        )

        def work(connection: Connection) -> None:
            for statement in statements:
                connection.execute(self._sql(statement))
            fill = self._sql("INSERT INTO {manifest} SELECT %s, -1 WHERE NOT EXISTS (SELECT FROM {manifest})")
            connection.execute(fill, [manifest.text()])

        try:
            self._session.write(work)
        except DistillHashError as error:
            if isinstance(error.__cause__, psycopg.errors.FeatureNotSupported | psycopg.errors.UndefinedFile):
                raise DistillHashError(
                    f"{self._session.shown} has no pgvector ({error.__cause__.diag.message_primary}); install 0.7 or newer"
                ) from error
            raise
        self._check_pgvector(_OLDEST_PGVECTOR, "Hamming distance")

    def _check_pgvector(self, oldest: tuple[int, int], what: str) -> None:
        select = "SELECT coalesce(max(extversion), '0.0') FROM pg_extension WHERE extname = 'vector'"
        version = self._session.read(self._sql(select))[0][0]
        if tuple(map(int, version.split(".")[:2])) < oldest:
            raise DistillHashError(
                f"{self._session.shown} has pgvector {version}, {what} needs {oldest[0]}.{oldest[1]}; update the extension"
            )

    def is_exact(self, class_bits: int = 0, *, within: bool = False) -> bool:
        """See :meth:`Index.is_exact`."""
        return super().is_exact(class_bits, within=within) and (within or not self._scan)

    def prepare(self, class_bits: int = 0) -> None:  # noqa: ARG002  # the same index for all codes
        """With ``?index=hnsw``, make the index on the codes unless there is one; other writers wait meanwhile."""
        if not self._scan or self._session.read(self._sql(_HAS_HNSW), [self._table]):
            return

        def work(connection: Connection) -> None:
            connection.execute(self._sql("SELECT pg_advisory_xact_lock(hashtext('distillhash'))"))
            connection.execute(
                self._sql("CREATE INDEX IF NOT EXISTS {hnsw} ON {items} USING hnsw (code bit_hamming_ops)")
            )

        self._session.write(work)

    def _sql(self, text: str) -> Composed:
        """A statement with ``{items}``, and with ``{manifest}``, ``{key}`` and ``{hnsw}``, replaced by their names."""
        from psycopg.sql import SQL, Identifier

        names = {"items": self._table} | {name: f"{self._table}_{name}" for name in ("manifest", "key", "hnsw")}
        return SQL(text).format(**{name: Identifier(own) for name, own in names.items()})

    def _add(self, incoming: Incoming) -> NDArray[np.int64]:
        def work(connection: Connection) -> NDArray[np.int64]:
            last_id = self._lock(connection)
            chosen = incoming.choose_ids(
                known=self._known(incoming.keys or [], connection),
                present=self._present([] if incoming.ids is None else incoming.ids.tolist(), connection),
                following=last_id + 1,
            )
            if incoming.upsert:
                connection.execute(self._sql("DELETE FROM {items} WHERE id = ANY(%s)"), [chosen.tolist()])
            bits = to_bit_text(incoming.codes)
            copy_in = self._sql("COPY {items} (id, code, key, digest, metadata) FROM STDIN")
            with connection.cursor() as cursor, cursor.copy(copy_in) as copy:
                for text, (identifier, _, key, digest, entry) in zip(bits, incoming.rows(chosen), strict=True):
                    copy.write_row((identifier, text, None if key is None else to_plain(key), digest, entry))
            largest = max(last_id, int(chosen.max(initial=-1)))
            connection.execute(self._sql("UPDATE {manifest} SET last_id = %s"), [largest])
            return chosen

        return self._session.write(work)

    def _remove(self, ids: set[int], keys: Sequence[str]) -> int:
        def work(connection: Connection) -> int:
            self._lock(connection)
            present, known = self._present(list(ids), connection), self._known(keys, connection)
            leaving = list(self._leaving(ids, keys, present, known))
            connection.execute(self._sql("DELETE FROM {items} WHERE id = ANY(%s)"), [leaving])
            return len(leaving)

        return self._session.write(work)

    def _search(self, codes: Codes, k: int, where: str | None) -> SearchResult:
        return SearchResult.from_pairs(self._answers(_NEAR if self._scan else _NEAREST, codes, k, where, self._scan), k)

    def _range_search(self, codes: Codes, radius: int, where: str | None) -> RangeResult:
        return RangeResult.from_pairs(self._answers(_WITHIN, codes, radius, where, {}))

    def _answers(
        self, query: str, codes: Codes, bound: int, where: str | None, settings: Mapping[str, str]
    ) -> list[list[tuple[int, int]]]:
        """(distance, id) pairs of every code."""
        condition = "true" if where is None else f"({where})".replace("%", "%%").replace("{", "{{").replace("}", "}}")
        statement = self._sql(query.format(n=self.n_bits, where=condition))
        bits = to_bit_text(codes)
        answers: list[list[tuple[int, int]]] = [[] for _ in bits]
        if where is not None:  # what a user wrote may not take long, nor change anything
            seconds = self._seconds(min(len(bits), _QUERIES_AT_ONCE))
            settings = {**settings, "transaction_read_only": "on", "statement_timeout": str(int(1000 * seconds))}
        for start in range(0, len(bits), _QUERIES_AT_ONCE):
            try:
                rows = self._session.read(statement, [bits[start : start + _QUERIES_AT_ONCE], bound], settings)
            except DistillHashError as error:
                state = getattr(error.__cause__, "sqlstate", None) or ""
                if where is not None and state == "57014":  # cancelled by the server's clock
                    raise ParameterError(
                        f"where={where!r:.200} takes longer than {seconds:g} s; use a simpler condition"
                    ) from error
                if where is not None and state.startswith(("22", "25", "42")):  # data, a change, syntax or unknown name
                    raise ParameterError(
                        f"where={where!r} is no condition that Postgres takes ({error.__cause__})"
                    ) from error
                raise
            for place, distance, identifier in rows:
                answers[start + place - 1].append((distance, identifier))
        return answers

    def _seconds(self, n_queries: int) -> float:
        """How long a search with a condition may take: ten seconds, and two for a million pairs of a query and an item."""
        statement = self._sql("SELECT greatest(reltuples, 0) FROM pg_class WHERE oid = to_regclass(quote_ident(%s))")
        found = self._session.read(statement, [self._table])
        return _CONDITION_SECONDS + 2e-6 * n_queries * float(found[0][0] if found else 0)

    def _get(self, ids: list[int]) -> dict[int, Item]:
        statement = self._sql("SELECT id, code::text, key, digest, metadata::text FROM {items} WHERE id = ANY(%s)")
        found: dict[int, Item] = {}
        for identifier, bits, key, digest, entry in _rows(self._session, statement, ids):
            if len(bits) != self.n_bits:
                raise FormatError(f"the code of id {identifier} in {self!r} has {len(bits)} bits, not {self.n_bits}")
            name, metadata = None if key is None else from_plain(key), None if entry is None else json.loads(entry)
            code = Codes(np.packbits(np.frombuffer(bits.encode(), np.uint8)[None] == ord("1"), axis=1), self.n_bits)
            found[identifier] = Item(identifier, code, name, digest, metadata)
        return found

    def known(self, keys: Sequence[str]) -> Known:
        """See :meth:`Index.known`."""
        return self._known(keys, self._session)

    def _known(self, keys: Sequence[str], source: PostgresSession | Connection) -> Known:
        statement = self._sql(
            "SELECT key, id, digest FROM {items} WHERE md5(key) = ANY(SELECT md5(wanted) FROM unnest(%s::text[]) AS wanted)"
        )
        wanted = {to_plain(key): key for key in keys}
        rows = _rows(source, statement, list(wanted))
        return {wanted[key]: (identifier, digest) for key, identifier, digest in rows if key in wanted}

    def _present(self, ids: list[int], source: PostgresSession | Connection | None = None) -> set[int]:
        statement = self._sql("SELECT id FROM {items} WHERE id = ANY(%s)")
        return {row[0] for row in _rows(source or self._session, statement, ids)}

    def _members(self, source: str, below: str) -> Iterator[tuple[int, str | None, bytes | None, Any]]:
        statement = self._sql(
            """SELECT id, key, digest, metadata::text FROM {items} WHERE id > %s
            AND (position(%s in metadata::text) > 0 OR (%s <> '' AND starts_with(key, %s))) ORDER BY id LIMIT %s"""
        )
        last, text, start = -1, json.dumps(source), to_plain(below)
        while rows := self._session.read(statement, [last, text, start, start, _VALUES_AT_ONCE]):
            for identifier, key, digest, entry in rows:
                name, metadata = None if key is None else from_plain(key), None if entry is None else json.loads(entry)
                yield identifier, name, digest, metadata
            last = rows[-1][0]

    def ids(self) -> NDArray[np.int64]:
        """See :meth:`Index.ids`."""
        rows = self._session.read(self._sql("SELECT id FROM {items} ORDER BY id"))
        return np.array([row[0] for row in rows], np.int64)

    def __len__(self) -> int:
        return int(self._session.read(self._sql("SELECT count(*) FROM {items}"))[0][0])

    def close(self) -> None:
        """See :meth:`Index.close`."""
        self._session.close()

    def __repr__(self) -> str:
        return f"PostgresIndex({self._session.shown!r}, table={self._table!r}, n_bits={self.n_bits})"

    def _lock(self, connection: Connection) -> int:
        """Keep other writers out until the transaction ends; the largest id ever used."""
        row = connection.execute(self._sql("SELECT last_id FROM {manifest} FOR UPDATE")).fetchone()
        if row is None:
            raise FormatError(f"{self!r} has lost its manifest; restore it or build the index again")
        return int(row[0])


def _approximate_scan(options: Mapping[str, str]) -> dict[str, str]:
    """The settings of a search by HNSW; none where the address asks for an exact scan."""
    kind = options.get("index", "exact")
    if kind not in ("exact", "hnsw"):
        raise ParameterError(f"the option index must be exact or hnsw (approximate), got {kind!r}")
    if kind == "exact":
        if "ef" in options:
            raise ParameterError("the option ef belongs to index=hnsw; leave it out or add that")
        return {}
    ef = number(options.get("ef", "100"), "ef", least=1, most=1000)
    return {"hnsw.ef_search": str(ef), "hnsw.iterative_scan": "strict_order"}


def _rows(source: PostgresSession | Connection, statement: Composed, values: list[Any]) -> list[tuple[Any, ...]]:
    """Rows of a statement for all values, a bounded number at a time; within a transaction, on its connection."""
    rows: list[tuple[Any, ...]] = []
    for start in range(0, len(values), _VALUES_AT_ONCE):
        part = [values[start : start + _VALUES_AT_ONCE]]
        rows += source.read(statement, part) if isinstance(source, PostgresSession) else source.execute(statement, part)
    return rows


def to_bit_text(codes: Codes) -> list[str]:
    """Codes as Postgres writes ``bit(n_bits)``: one character a bit, bit 0 first."""
    if not len(codes):
        return []
    characters = np.unpackbits(codes.packed, axis=1, count=codes.n_bits) + np.uint8(ord("0"))
    return [text.decode() for text in np.ascontiguousarray(characters).view(f"S{codes.n_bits}").ravel().tolist()]


class _NotCommittedError(Exception):
    """The connection was lost during a commit that did not happen."""


class PostgresSession:
    """A connection to a database that is opened again when it was lost, for one thread at a time.

    A statement that only reads is repeated on a new connection. A transaction is repeated only if it surely did not happen: when the
    connection is lost during the commit, the server is asked what became of it (``pg_xact_status``).
    """

    def __init__(self, uri: str, shown: str, *, patience: float, synchronous: bool) -> None:
        """Connect without patience, since a wrong address should fail at once; ``shown`` is the address without a password.

        ``patience`` is how many seconds to wait for a server that goes away later. ``synchronous`` waits for the disk at each commit.
        """
        try:
            import psycopg
        except ImportError as error:
            raise MissingDependencyError(
                f"{shown} needs psycopg; install it with `pip install 'distillhash[postgres]'`"
            ) from error
        self._psycopg, self._uri, self.shown = psycopg, uri, shown
        self._patience, self._synchronous = patience, synchronous
        self._connection: Connection | None = None
        self._is_open = True
        try:
            self._connected()
        except psycopg.Error as error:
            raise self._explained(error) from error

    def read(
        self, statement: Composable, parameters: Sequence[Any] = (), settings: Mapping[str, str] | None = None
    ) -> list[tuple[Any, ...]]:
        """The rows of one statement that changes nothing; it sees one committed state. ``settings`` of the server hold for it alone."""

        def attempt() -> Any:
            connection = self._connected()
            if not settings:
                return connection.execute(statement, parameters).fetchall()
            with connection.transaction():
                for name, value in settings.items():
                    connection.execute("SELECT set_config(%s, %s, true)", [name, value])
                return connection.execute(statement, parameters).fetchall()

        try:
            return list(with_patience(attempt, self._may_pass, self._patience))
        except self._psycopg.Error as error:
            raise self._explained(error) from error

    def write(self, work: Callable[[Connection], T]) -> T:
        """The result of ``work`` in one transaction, which happens once or, if this raises, not at all.

        One error says that what became of the transaction cannot be known.
        """
        try:
            return with_patience(lambda: self._transaction(work), self._may_pass, self._patience)
        except (self._psycopg.Error, _NotCommittedError) as error:
            raise self._explained(error) from error

    def close(self) -> None:
        """Close the connection."""
        self._is_open = False
        if self._connection is not None:
            self._connection.close()

    def _connected(self) -> Connection:
        if not self._is_open:
            raise DataError(f"the index {self.shown} is closed; open it again")
        if self._connection is None or self._connection.closed:
            options = {"connect_timeout": max(2, int(self._patience)), "fallback_application_name": "distillhash"}
            connection = self._psycopg.connect(self._uri, autocommit=True, **options)
            if self._synchronous:
                connection.execute("SET synchronous_commit = on")
            self._connection = connection
        return self._connection

    def _transaction(self, work: Callable[[Connection], T]) -> T:
        connection = self._connected()
        connection.execute("BEGIN")
        try:
            found = connection.execute("SELECT pg_current_xact_id()::text").fetchone()
            assert found is not None
            result = work(connection)
        except BaseException:
            with suppress(self._psycopg.Error):
                connection.execute("ROLLBACK")
            raise
        try:
            connection.execute("COMMIT")
        except self._psycopg.OperationalError as error:
            if not connection.closed or not self._was_committed(found[0]):
                raise _NotCommittedError(str(error)) from error
        return result

    def _was_committed(self, transaction: str) -> bool:
        """Whether a transaction happened; asks on a new connection until it is over."""

        def ask() -> str | None:
            row = self._connected().execute("SELECT pg_xact_status(%s::xid8)", [transaction]).fetchone()
            status: str | None = None if row is None else row[0]
            if status == "in progress":  # the server has not noticed yet that the client is gone
                raise _NotCommittedError("the transaction is still in progress")
            return status

        try:
            status = with_patience(ask, self._may_pass, self._patience)
        except (self._psycopg.Error, _NotCommittedError) as error:
            raise DistillHashError(
                f"the connection to {self.shown} was lost while a transaction was being committed ({_one_line(error)}), and the server "
                "could not be asked whether it was; run the same command again, with upsert"
            ) from error
        return bool(status == "committed")

    def _may_pass(self, error: Exception) -> bool:
        if isinstance(error, _NotCommittedError):
            return True
        if not isinstance(error, self._psycopg.OperationalError):
            return False
        if error.sqlstate is None:  # no answer from a server
            return self._connection is None or self._connection.closed
        return bool(error.sqlstate.startswith(_TRANSIENT_STATES))

    def _explained(self, error: Exception) -> DistillHashError:
        text = _one_line(error)
        state = getattr(error, "sqlstate", None)
        if state is not None and state.startswith("28"):
            return DistillHashError(f"{self.shown} refused the user ({text}); check the name and the password")
        if isinstance(error, self._psycopg.OperationalError | _NotCommittedError):
            return DistillHashError(
                f"{self.shown} cannot be used now ({text}); check that the server runs and the address is right"
            )
        return DistillHashError(
            f"{self.shown} refused the request ({text}); check the database and the rights of its user"
        )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
