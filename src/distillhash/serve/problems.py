"""Errors as RFC 9457 problem documents: every 4xx and 5xx answer, whoever raises it."""

from __future__ import annotations

import http
from collections.abc import Mapping
from typing import Any

import orjson

from distillhash.errors import DataError, DistillHashError, ParameterError
from distillhash.serve.batching import OverloadedError
from distillhash.serve.library import NoItemError
from distillhash.serve.pictures import NoPictureError
from distillhash.sources import BadItemError

MEDIA_TYPE = "application/problem+json"


class Problem(Exception):  # noqa: N818  # RFC 9457 calls it a problem
    """An answer that is an error: HTTP status, one sentence of detail, headers, further members."""

    def __init__(self, status: int, detail: str, headers: Mapping[str, str] | None = None, **members: Any) -> None:
        """Keep the parts."""
        super().__init__(detail)
        self.status, self.detail, self.headers, self.members = status, detail, dict(headers or {}), members

    def body(self, request_id: str) -> bytes:
        """The problem document."""
        title = http.HTTPStatus(self.status).phrase
        document = {"type": "about:blank", "title": title, "status": self.status, "detail": self.detail}
        return orjson.dumps(document | {"request_id": request_id} | self.members)


def problem_from(error: Exception) -> Problem | None:
    """The answer to an error that the package raises on purpose; None for any other."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, NoItemError | NoPictureError):
        return Problem(404, str(error))
    if isinstance(error, OverloadedError):
        return Problem(503, str(error), {"retry-after": "1"})
    if isinstance(error, BadItemError):
        return Problem(422, f"the upload cannot be used: {error}".replace("; raise it with --max-pixels", ""))
    if isinstance(error, DataError | ParameterError):
        return Problem(422, str(error))
    if isinstance(error, DistillHashError):
        return Problem(503, str(error), {"retry-after": "5"})
    return None
