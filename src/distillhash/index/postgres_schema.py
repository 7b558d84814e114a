"""The tables of an index in Postgres: the items, and one row that says what they are."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from distillhash.errors import DataError, DistillHashError, FormatError, ParameterError
from distillhash.index.manifest import Manifest

if TYPE_CHECKING:
    import psycopg

    from distillhash.index.postgres_session import Session

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,49}")  # Postgres cuts names at 63 bytes, and ours get endings
_OLDEST_PGVECTOR = (0, 7)  # the first with Hamming distance of bits


class Tables:
    """Names and statements. Keys are unique by their hash, because an index entry of Postgres holds 2.7 kB and a path may be longer."""

    def __init__(self, name: str) -> None:
        """Check the name.

        Raises:
            ParameterError: letters, digits and underscores only, at most 50, no digit first.
        """
        from psycopg.sql import SQL, Identifier

        if not _NAME.fullmatch(name):
            raise ParameterError(f"a table's name is up to 50 letters, digits and underscores, got {name!r}")
        self.name = name
        self._names = {
            "items": Identifier(name),
            "manifest": Identifier(f"{name}_manifest"),
            "key": Identifier(f"{name}_key"),
        }
        self._sql = SQL

    def statement(self, text: str) -> psycopg.sql.Composed:
        """SQL with ``{items}`` and ``{manifest}`` replaced by the names of the tables."""
        return self._sql(text).format(**self._names)

    def read_manifest(self, session: Session) -> Manifest | None:
        """What the index holds, None if there is none.

        Raises:
            FormatError: damaged, or a table of that name that is no index.
        """
        found = session.read(
            self._sql("SELECT to_regclass(quote_ident(%s)) IS NOT NULL, to_regclass(quote_ident(%s)) IS NOT NULL"),
            [self.name, f"{self.name}_manifest"],
        )
        has_items, has_manifest = found[0]
        if not has_items and not has_manifest:
            return None
        place = f"table {self.name} in {session.shown}"
        if not (has_items and has_manifest):
            raise FormatError(f"the {place} is not an index; choose another name with ?table=NAME")
        rows = session.read(self.statement("SELECT manifest FROM {manifest}"))
        if len(rows) != 1:
            raise FormatError(f"the {place} has {len(rows)} manifests, not one; restore it or build the index again")
        return Manifest.parse(rows[0][0], f"the manifest of {place}", place)

    def make(self, session: Session, manifest: Manifest) -> None:
        """Make the tables, unless another process was faster.

        Raises:
            DistillHashError: pgvector is missing or too old, or the user has no right to make tables.
        """
        import psycopg

        def work(connection: psycopg.Connection[tuple[Any, ...]]) -> None:
            connection.execute(
                "SELECT pg_advisory_xact_lock(hashtext('distillhash'))"
            )  # one process makes tables at a time
            connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
            columns = (
                f"id bigint PRIMARY KEY, code bit({manifest.n_bits}) NOT NULL, key text, digest bytea, metadata json"
            )
            connection.execute(self.statement(f"CREATE TABLE IF NOT EXISTS {{items}} ({columns})"))
            connection.execute(self.statement("CREATE UNIQUE INDEX IF NOT EXISTS {key} ON {items} (md5(key))"))
            connection.execute(
                self.statement(
                    "CREATE TABLE IF NOT EXISTS {manifest} (manifest text NOT NULL, last_id bigint NOT NULL)"
                )
            )
            connection.execute(
                self.statement("INSERT INTO {manifest} SELECT %s, -1 WHERE NOT EXISTS (SELECT FROM {manifest})"),
                [manifest.text()],
            )

        try:
            session.write(work)
        except DistillHashError as error:
            if isinstance(error.__cause__, psycopg.errors.FeatureNotSupported | psycopg.errors.UndefinedFile):
                raise DistillHashError(
                    f"{session.shown} has no pgvector ({error.__cause__.diag.message_primary}); install 0.7 or newer"
                ) from error
            raise
        version = session.read(self._sql("SELECT extversion FROM pg_extension WHERE extname = 'vector'"))[0][0]
        if tuple(map(int, version.split(".")[:2])) < _OLDEST_PGVECTOR:
            raise DistillHashError(
                f"{session.shown} has pgvector {version}, Hamming distance needs 0.7; update the extension"
            )

    def open(self, session: Session, *, n_bits: int | None, create: bool, model_fingerprint: str | None) -> Manifest:
        """The manifest of the index, made if it is not there and ``create`` is set.

        Raises:
            DataError: no index there, and ``create`` is not set.
            ParameterError: another code length.
            FormatError: damaged, or built with another model.
        """
        held = self.read_manifest(session)
        if held is None:
            if not create:
                raise DataError(
                    f"there is no index {self.name} in {session.shown}; make one with `distillhash index`, or pass create=True"
                )
            self.make(session, Manifest.new(n_bits, model_fingerprint))
            held = self.read_manifest(session)
            assert held is not None
        held.check_fits(f"table {self.name} in {session.shown}", n_bits, model_fingerprint)
        return held
