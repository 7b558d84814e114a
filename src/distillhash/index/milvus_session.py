"""A Milvus client that comes back when the server was away, and errors that people can act on.

Every call made through :meth:`Session.call` may be repeated, so only repeatable calls are made: reads, deletions by id, and upserts
of whole rows under ids that were chosen before. (An insert that is sent twice would store a row twice.)
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from distillhash.errors import DataError, DistillHashError, MissingDependencyError
from distillhash.index.retry import with_patience

if TYPE_CHECKING:
    from pymilvus import MilvusClient

_AWAY_CODES = ("UNAVAILABLE", "UNKNOWN", "DEADLINE_EXCEEDED", "CANCELLED", "ABORTED")
_DEADLINE = 60.0  # seconds for one request
_AWAY_TEXTS = ("server unavailable", "Fail connecting", "channel is closed", "connection first", "Retry timeout")


class Session:
    """A connection to one Milvus server, for one thread at a time."""

    def __init__(self, uri: str, shown: str, *, token: str, database: str, patience: float) -> None:
        """Connect once, without patience: a wrong address should fail at once.

        Args:
            uri: ``http://host:port`` or ``https://host:port``.
            shown: The address for messages, without a password.
            token: ``user:password`` or a token, empty for none.
            database: Its name, empty for the default one.
            patience: How long to wait for a server that goes away later, in seconds.

        Raises:
            MissingDependencyError: pymilvus is not installed.
            DistillHashError: the server does not answer or refuses.
        """
        try:
            import pymilvus
        except ImportError as error:
            raise MissingDependencyError(
                f"{shown} needs pymilvus; install it with `pip install 'distillhash[milvus]'`"
            ) from error
        # pymilvus prints the traceback of each failed attempt; what fails for good is raised, and said in one sentence.
        logging.getLogger("pymilvus.decorators").setLevel(logging.CRITICAL + 1)
        self._pymilvus = pymilvus
        self._uri, self.shown, self._patience = uri, shown, patience
        self._token, self._database = token, database
        self._client: MilvusClient | None = None
        self._is_open = True
        try:
            self._connected()
        except Exception as error:
            raise self.explained(error, "the connection") from error

    def call(self, name: str, *arguments: Any, **options: Any) -> Any:
        """The result of a repeatable method of the client.

        Raises:
            DistillHashError: the server stayed away, or refused.
        """

        def attempt() -> Any:
            client = self._connected()
            try:
                # A server that is gone is noticed at once; the deadline is for one that hangs, and long enough for a busy one.
                return getattr(client, name)(*arguments, timeout=max(_DEADLINE, self._patience), **options)
            except Exception as error:
                if self._may_pass(error):  # its channel does not recover by itself
                    self._drop()
                raise

        try:
            return with_patience(attempt, self._may_pass, self._patience)
        except DataError:
            raise
        except Exception as error:
            raise self.explained(error, name.replace("_", " ")) from error

    def close(self) -> None:
        """Close the connection."""
        self._is_open = False
        self._drop()

    def _connected(self) -> MilvusClient:
        if not self._is_open:
            raise DataError(f"the index {self.shown} is closed; open it again")
        if self._client is None:
            self._client = self._pymilvus.MilvusClient(
                uri=self._uri,
                token=self._token,
                db_name=self._database,
                timeout=max(2.0, self._patience),
                dedicated=True,
            )
        return self._client

    def _drop(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            client.close()

    def _may_pass(self, error: Exception) -> bool:
        code = getattr(error, "code", None)
        code = code() if callable(code) else code
        if getattr(code, "name", None) in _AWAY_CODES:
            return True
        is_milvus = isinstance(error, self._pymilvus.MilvusException)
        return is_milvus and any(text in str(error) for text in _AWAY_TEXTS)

    def explained(self, error: Exception, what: str) -> DistillHashError:
        """An error for people."""
        if isinstance(error, DistillHashError):
            return error
        text = " ".join(str(getattr(error, "message", None) or error).split())
        if self._may_pass(error):
            return DistillHashError(
                f"{self.shown} does not answer ({text}); check that Milvus runs there, and run the same command again"
            )
        return DistillHashError(
            f"{self.shown} refused {what} ({text}); check the request against the server's version and limits"
        )
