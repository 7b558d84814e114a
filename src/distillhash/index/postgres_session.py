"""One connection to Postgres that comes back when it was lost, and transactions whose outcome is always known.

A statement that only reads is repeated on a new connection. A transaction is repeated only if it surely did not happen: when the
connection is lost while it is being committed, the server is asked what became of it (``pg_xact_status``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from distillhash.errors import DataError, DistillHashError, MissingDependencyError
from distillhash.index.retry import with_patience

if TYPE_CHECKING:
    import psycopg
    from psycopg.sql import Composable

T = TypeVar("T")
_COMING_AND_GOING = (
    "08",
    "57P",
    "53300",
    "40001",
    "40P01",
)  # SQLSTATE: connection, shutdown, too many, serialization, deadlock


class _NotCommittedError(Exception):
    """The connection was lost during a commit that did not happen."""


class Session:
    """A connection to the database at ``uri``, for one thread at a time."""

    def __init__(self, uri: str, shown: str, *, patience: float, synchronous: bool) -> None:
        """Connect once, without patience: a wrong address should fail at once.

        Args:
            uri: What libpq takes.
            shown: The address for messages, without a password.
            patience: How long to wait for a server that goes away later, in seconds.
            synchronous: Wait for the disk at each commit whatever the server's setting.

        Raises:
            MissingDependencyError: psycopg is not installed.
            DistillHashError: the server does not answer or refuses.
        """
        try:
            import psycopg
        except ImportError as error:
            raise MissingDependencyError(
                f"{shown} needs psycopg; install it with `pip install 'distillhash[postgres]'`"
            ) from error
        self._psycopg = psycopg
        self._uri, self.shown, self._patience, self._synchronous = uri, shown, patience, synchronous
        self._connection: psycopg.Connection[tuple[Any, ...]] | None = None
        self._is_open = True
        try:
            self._connected()
        except psycopg.Error as error:
            raise self.explained(error) from error

    def read(self, statement: Composable, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """The rows of one statement that changes nothing; it sees one committed state.

        Raises:
            DistillHashError: the server stayed away, or refused the statement.
        """
        try:
            return with_patience(
                lambda: self._connected().execute(statement, parameters).fetchall(), self._may_pass, self._patience
            )
        except self._psycopg.Error as error:
            raise self.explained(error) from error

    def write(self, work: Callable[[psycopg.Connection[tuple[Any, ...]]], T]) -> T:
        """The result of ``work`` in one transaction, which happens once or, if this raises, not at all.

        Raises:
            DistillHashError: the server stayed away or refused, or what became of the transaction cannot be known.
        """
        try:
            return with_patience(lambda: self._transaction(work), self._may_pass, self._patience)
        except (self._psycopg.Error, _NotCommittedError) as error:
            raise self.explained(error) from error

    def close(self) -> None:
        """Close the connection."""
        self._is_open = False
        if self._connection is not None:
            self._connection.close()

    def _connected(self) -> psycopg.Connection[tuple[Any, ...]]:
        if not self._is_open:
            raise DataError(f"the index {self.shown} is closed; open it again")
        if self._connection is None or self._connection.closed:
            connection = self._psycopg.connect(
                self._uri,
                autocommit=True,
                connect_timeout=max(2, int(self._patience)),
                fallback_application_name="distillhash",
            )
            if self._synchronous:
                connection.execute("SET synchronous_commit = on")
            self._connection = connection
        return self._connection

    def _transaction(self, work: Callable[[psycopg.Connection[tuple[Any, ...]]], T]) -> T:
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
        """What became of a transaction, asked on a new connection until it is over."""

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
        return bool(error.sqlstate.startswith(_COMING_AND_GOING))

    def explained(self, error: Exception) -> DistillHashError:
        """An error for people."""
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
