"""The application: routes, page, errors, and the guard around them."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse
from fastapi.routing import APIRoute
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

from distillhash import __version__
from distillhash.errors import DistillHashError
from distillhash.serve.api import routes
from distillhash.serve.guard import App, Guard
from distillhash.serve.library import Query
from distillhash.serve.problems import MEDIA_TYPE, Problem, problem_from
from distillhash.serve.schemas import ProblemDocument
from distillhash.serve.service import Service
from distillhash.serve.settings import MOST_RESULTS
from distillhash.serve.uploads import has_body, read_body

PAGE = Path(__file__).parent / "page"
_COMMON = re.compile(rb"(?:id=(?P<id>\d{1,18})(?:&|$))?(?:k=(?P<k>\d{1,5}))?")

log = logging.getLogger("distillhash.serve")


def create_app(service: Service, *, on_failure: Callable[[], None] = lambda: None) -> Guard:
    """The ASGI application of a service.

    Args:
        service: What is served; started and stopped with the application.
        on_failure: Called when warm-up fails, after which the server is of no use.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        warm_up = asyncio.create_task(service.start())
        warm_up.add_done_callback(lambda task: _report(task, on_failure))
        yield
        warm_up.cancel()  # it may still be at it, or measuring pictures
        await asyncio.wait([warm_up])
        await service.stop()

    api = FastAPI(
        title="distillhash",
        version=__version__,
        description="Exact search over compact binary codes of images.",
        lifespan=lifespan,
        docs_url=None,  # these pages load scripts from another host
        redoc_url=None,
        default_response_class=Response,
    )
    router = routes(service)
    api.include_router(router)
    api.mount("/static", StaticFiles(directory=PAGE), name="static")

    @api.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(PAGE / "index.html", headers={"cache-control": "no-cache"})

    def answer_405(request: Request, error: Exception) -> Response:
        # Each route knows its own methods only; one path may have several routes.
        methods = [
            route.methods or set()
            for route in router.routes
            if isinstance(route, APIRoute) and route.path_regex.match(request.url.path)
        ]
        response = _answer_error(request, error)
        if methods:
            response.headers["allow"] = ", ".join(sorted(set[str]().union(*methods)))
        return response

    for kind in (Problem, DistillHashError, HTTPException, RequestValidationError, Exception):
        api.add_exception_handler(kind, _answer_error)
    api.add_exception_handler(405, answer_405)
    _document_problems(api)
    return Guard(cast("App", api), service.settings, service.metrics, _direct(service))


def _direct(service: Service) -> Callable[[Request], Awaitable[bytes] | None]:
    """``POST /search?id=N&k=K`` and ``POST /search?k=K`` with a body, written out: routing and validation cost more than the search."""

    async def by_upload(request: Request, k: int) -> bytes:
        return await service.search(Query(await service.encode(await read_body(request)), k))

    def answer(request: Request) -> Awaitable[bytes] | None:
        scope = request.scope
        if scope["path"] != "/search" or scope["method"] != "POST":
            return None
        match = _COMMON.fullmatch(scope["query_string"])
        if match is None or (match["id"] is None) != has_body(request):
            return None
        k = int(match["k"] or 10)
        if not 1 <= k <= MOST_RESULTS:
            return None
        return by_upload(request, k) if match["id"] is None else service.search(Query(int(match["id"]), k))

    return answer


def _answer_error(request: Request, error: Exception) -> Response:
    problem = problem_from(error)
    if isinstance(error, RequestValidationError):
        errors = [{"where": ".".join(map(str, part["loc"])), "what": str(part["msg"])} for part in error.errors()]
        first = f"{errors[0]['where']}: {errors[0]['what']}" if errors else "the request is not valid"
        problem = Problem(422, first, errors=errors)
    elif isinstance(error, HTTPException):
        problem = Problem(error.status_code, _detail(error, request), error.headers)
    elif problem is None:
        problem = Problem(500, "something went wrong in the server; its log has this request id")
    body = problem.body(request.scope.get("state", {}).get("request_id", ""))
    return Response(body, problem.status, problem.headers, MEDIA_TYPE)


def _detail(error: HTTPException, request: Request) -> str:
    if error.status_code == 404:
        return "there is nothing here; /openapi.json lists what there is"
    if error.status_code == 405:
        return f"{request.method} is not allowed here"
    return str(error.detail)


def _document_problems(api: FastAPI) -> None:
    """Name the problem document in the OpenAPI document, and drop FastAPI's own error shape, which is never sent."""
    build = api.openapi

    def openapi() -> dict[str, Any]:
        if api.openapi_schema is None:
            document = build()
            shapes = document["components"]["schemas"]
            for name in ("HTTPValidationError", "ValidationError"):
                shapes.pop(name, None)
            shapes["ProblemDocument"] = ProblemDocument.model_json_schema()
        assert api.openapi_schema is not None
        return api.openapi_schema

    api.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way


def _report(task: asyncio.Task[None], on_failure: Callable[[], None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("warm-up failed: %s", error)
        on_failure()
