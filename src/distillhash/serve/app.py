"""The FastAPI application: routes, page, errors. HTTP comes in, :class:`~distillhash.serve.service.Service` is called, JSON goes out."""

import asyncio
import json
import logging
import traceback
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import chain
from typing import Annotated, Any

import fastapi
import orjson
from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse
from fastapi.routing import APIRoute
from fastapi.staticfiles import StaticFiles
from prometheus_client import generate_latest
from pydantic import Field, ValidationError
from starlette.exceptions import HTTPException

from distillhash import __version__
from distillhash.codes import bytes_per_code
from distillhash.errors import DataError, DistillHashError, ParameterError
from distillhash.index.base import LARGEST_ID
from distillhash.output import escaped
from distillhash.search import NoItemError
from distillhash.search import Query as Search
from distillhash.serve import schemas
from distillhash.serve.limits import MEDIA_TYPE, PAGE, Limits, Problem
from distillhash.serve.pictures import NoPictureError
from distillhash.serve.service import Service
from distillhash.serve.settings import COOKIE
from distillhash.sources import BadItemError

ItemId = Annotated[int, fastapi.Path(ge=0, le=LARGEST_ID, description="Id of an item of the index.")]
Radius = Annotated[
    int | None,
    Query(ge=0, le=schemas.LARGEST_RADIUS, description="In bits; the file's own where the server was given one."),
]
_OF_UPLOADS = (400, 408, 413, 415, 422, 503)  # what may be answered to an upload that cannot be used

log = logging.getLogger("distillhash.serve")


def create_app(service: Service, *, on_failure: Callable[[], None]) -> FastAPI:
    """The application of a service, which starts and stops with it; ``on_failure`` is called when warm-up fails."""

    async def start() -> None:
        try:
            await service.start()
        except Exception as error:
            log.error("warm-up failed: %s", escaped(str(error)))
            service.failure = error
            on_failure()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        warm_up = asyncio.create_task(start())
        yield
        warm_up.cancel()  # it may still be at it, or measuring pictures
        await asyncio.wait([warm_up])
        await service.stop()

    app = FastAPI(
        title="distillhash",
        version=__version__,
        description="Exact search over compact binary codes of images.",
        lifespan=lifespan,
        docs_url=None,  # these pages load scripts from another host
        redoc_url=None,
        redirect_slashes=False,  # to an address made of the host header
    )
    _add_routes(app, service)
    app.mount("/static", StaticFiles(directory=PAGE), name="static")
    for kind in (Problem, DistillHashError, HTTPException, RequestValidationError, ValidationError):
        app.add_exception_handler(kind, _answer_error)
    app.add_middleware(Limits, settings=service.settings, metrics=service.metrics)
    app.openapi()["components"]["schemas"]["ProblemDocument"] = schemas.ProblemDocument.model_json_schema()
    return app


def _add_routes(app: FastAPI, service: Service) -> None:
    pattern = f"^[0-9a-fA-F]{{{2 * bytes_per_code(service.n_bits)}}}$"

    class Asked(schemas.SearchParameters):
        code: str | None = Field(None, pattern=pattern, description="Search by a packed code in hexadecimal.")

    takes_images = service.encoder is None or service.encoder.takes_images
    body = {"required": True, "content": schemas.IMAGE_BODY if takes_images else schemas.EMBEDDING_BODY}
    upload = {"requestBody": body}
    # FastAPI's own reading of so many parameters would take longer than the search.
    parameters = [
        {"name": name, "in": "query", "required": False, "description": schema["description"], "schema": schema}
        for name, schema in Asked.model_json_schema()["properties"].items()
    ]
    asking = {"requestBody": body | {"required": False}, "parameters": parameters}

    @app.post("/search", **_documented(schemas.SearchAnswer, 404, *_OF_UPLOADS), openapi_extra=asking)
    async def search(request: Request) -> Response:
        """The nearest items of an uploaded image, of an item, a code or a sentence. An item finds itself first, at distance 0."""
        asked = Asked.model_validate(dict(request.query_params))
        if 3 - (asked.id, asked.code, asked.text).count(None) + _has_body(request) != 1:
            raise Problem(422, "give exactly one of: an image in the multipart field 'file', ?id=, ?code=, ?text=")
        service.check_options(asked.k, asked.where, asked.rerank, asked.by)
        item: int | bytes
        feature = None
        if asked.id is not None:
            item = asked.id
        elif asked.code is not None:
            item = _packed(asked.code, service.n_bits)
        elif asked.text is not None:
            item = await service.encode_text(asked.text)
        else:
            item, feature = await service.encode(await schemas.read_body(request))
        query = Search(item, asked.k, asked.radius, asked.where, asked.rerank, asked.candidates, feature, asked.by)
        return _json(await service.search(query))

    @app.post(
        "/match",
        **_documented(schemas.MatchAnswer, 501, *_OF_UPLOADS),
        openapi_extra={"requestBody": asking["requestBody"]},
    )
    async def match(
        request: Request,
        code: Annotated[
            str | None, Query(pattern=pattern, description="Look a packed code up, in hexadecimal.")
        ] = None,
        k: Annotated[int, Query(ge=1, le=schemas.MOST_MATCHES, description="How many matches to list at most.")] = 10,
    ) -> Response:
        """Whether the index holds an uploaded image (or embedding, or code) already, within a radius that is calibrated on the index."""
        if _has_body(request) == (code is not None):
            raise Problem(422, "give one of: an image in the multipart field 'file', ?code=")
        if code is not None:
            return _json(await service.match(_packed(code, service.n_bits), None, k))
        body = await schemas.read_body(request)
        packed, _ = await service.encode(body)
        return _json(await service.match(packed, body.upload, k))

    @app.post("/encode", **_documented(schemas.Encoded, *_OF_UPLOADS), openapi_extra=upload)
    async def encode(request: Request) -> Response:
        """The code of an uploaded image, or of an embedding where the index's model takes those."""
        code, _ = await service.encode(await schemas.read_body(request))
        return _json({"code": code.hex(), "n_bits": service.n_bits})

    @app.get("/items", **_documented(schemas.Items, 422, 503))
    async def items(
        sample: Annotated[int, Query(ge=1, le=500, description="How many.")] = 50,
        seed: Annotated[int, Query(ge=0, le=2**32 - 1, description="Another seed draws others.")] = 0,
    ) -> Response:
        """Random items."""
        return _json({"items": [service.summary(item) for item in await service.sample(sample, seed)]})

    @app.post("/items", **_documented(schemas.ItemDetails, 200, *_OF_UPLOADS, status=201), openapi_extra=upload)
    async def add(request: Request) -> Response:
        """Add an image (or an embedding) to the index; the same image again is the same item."""
        item, is_new = await service.add(await schemas.read_body(request))
        where = f"{service.settings.root_path}/items/{item.id}"
        return _json(service.details(item), 201 if is_new else 200, {"location": where})

    @app.get("/items/{id}", **_documented(schemas.ItemDetails, 404, 422, 503))
    async def item(id: ItemId) -> Response:
        """One item."""
        return _json(service.details(await service.item(id)))

    @app.delete("/items/{id}", **_documented(None, 404, 422, 503, status=204))
    async def remove(id: ItemId) -> Response:
        """Remove an item from the index; files are not touched, but for uploads kept beside the index."""
        await service.remove(id)
        return Response(status_code=204)

    @app.get("/items/{id}/image", **_documented("image/*", 404, 422, 503))
    async def image(id: ItemId) -> Response:
        """The picture of an item at its full size."""
        return _picture(*await service.picture(service.pictures.original, id))

    @app.get("/items/{id}/thumbnail", **_documented("image/*", 404, 422, 503))
    async def thumbnail(id: ItemId) -> Response:
        """The picture of an item, small."""
        return _picture(*await service.picture(service.pictures.thumbnail, id))

    @app.get("/duplicates", **_documented(schemas.Groups, 422, 503))
    async def duplicates(
        radius: Radius = None,
        offset: Annotated[int, Query(ge=0, le=10**9)] = 0,
        limit: Annotated[int, Query(ge=1, le=200)] = 50,
    ) -> Response:
        """Groups of near-duplicates."""
        return _json(await service.duplicates(radius=radius, offset=offset, limit=limit))

    @app.get("/quality", **_documented(schemas.QualityNumbers, 422, 503))
    async def quality() -> Response:
        """How the bits of the index behave."""
        return _json(await service.quality())

    @app.get("/stats", **_documented(schemas.Statistics, 503))
    async def stats() -> Response:
        """What is served."""
        return _json(await service.statistics())

    @app.get("/healthz", **_documented(schemas.Status))
    async def healthz() -> Response:
        """Whether the process answers."""
        return _json({"status": "alive"})

    @app.get("/readyz", **_documented(schemas.Status, 503))
    async def readyz() -> Response:
        """Whether warm-up is over."""
        if not service.is_ready:
            raise Problem(503, "the model and the index are being loaded", {"retry-after": "1"})
        return _json({"status": "ready"})

    @app.get("/metrics", **_documented("text/plain"))
    async def metrics() -> Response:
        """Counts and times in Prometheus's text format."""
        text = generate_latest(service.metrics.registry)
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/session", **_documented(schemas.Session))
    async def access(request: Request) -> Response:
        """Whether this client may ask for more: without a token set, everyone may."""
        return _json({"allowed": service.settings.admits(request.headers)})

    @app.post("/session", **_documented(None, 401, 422, status=204))
    async def session(request: Request) -> Response:
        """Trade `Authorization: Bearer TOKEN` for a cookie, which pictures in the page need."""
        settings = service.settings
        if not settings.admits(request.headers):
            raise Problem(401, "this is not the server's token", {"www-authenticate": "Bearer"})
        response = Response(status_code=204)
        if settings.session is not None:
            # Without a path it is for the folder that the browser sees, whatever a proxy makes of it.
            path = settings.root_path or None
            response.set_cookie(COOKIE, settings.session, httponly=True, samesite="strict", path=path)
        return response

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(PAGE / "index.html", headers={"cache-control": "no-cache"})


def _has_body(request: Request) -> bool:
    return request.headers.get("content-length", "0") != "0" or "transfer-encoding" in request.headers


def _packed(code: str, n_bits: int) -> bytes:
    """A code in hexadecimal, whose length was checked."""
    packed = bytes.fromhex(code)
    pad = 8 * len(packed) - n_bits
    if packed[-1] & ((1 << pad) - 1):
        raise Problem(422, f"the last {pad} bits of a code of {n_bits} bits must be zero")
    return packed


def _json(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    try:
        body = orjson.dumps(content)
    except orjson.JSONEncodeError:  # large integers, deep nesting, half characters, which JSON can hold
        body = json.dumps(json.loads(json.dumps(content), parse_constant=lambda _: None)).encode()
    return Response(body, status, headers, "application/json")


def _picture(content: bytes, media_type: str) -> Response:
    headers = {
        "cache-control": "private, max-age=300",
        "content-security-policy": "default-src 'none'; sandbox",  # for a picture opened by itself
    }
    return Response(content, 200, headers, media_type)


def _documented(answer: Any, *others: int, status: int = 200) -> dict[str, Any]:
    """What an operation may answer, for the OpenAPI document."""
    responses: dict[int | str, dict[str, Any]] = {}
    if isinstance(answer, str):
        schema = {"type": "string"} | ({"format": "binary"} if answer == "image/*" else {})
        responses[status] = {"description": "Found.", "content": {answer: {"schema": schema}}}
    elif answer is not None:
        responses[status] = {"description": "Done.", "model": answer}
        if 200 in others:
            responses[200] = {"description": "It was there already.", "model": answer}
    problem = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemDocument"}}}
    for code in sorted({*others, 401, 403, 421, 431, 500} - {200}):
        responses[code] = {"description": "A problem.", "content": problem}
    return {"responses": responses, "response_class": Response, "status_code": status}


async def _answer_error(request: Request, error: Exception) -> Response:
    """An error that is raised on purpose, as a problem document."""
    traceback.clear_frames(error.__traceback__)  # else what was read stays in memory until garbage is collected
    problem = _problem(request, error)
    body = problem.body(request.scope["state"]["request_id"])
    return Response(body, problem.status, problem.headers, MEDIA_TYPE)


def _problem(request: Request, error: Exception) -> Problem:
    match error:
        case Problem():
            return error
        case RequestValidationError() | ValidationError():
            head = "query." if isinstance(error, ValidationError) else ""  # /search reads its query itself
            errors = [{"where": head + ".".join(map(str, part["loc"])), "what": part["msg"]} for part in error.errors()]
            first = f"{errors[0]['where']}: {errors[0]['what']}" if errors else "the request is not valid"
            return Problem(422, first, errors=errors)
        case HTTPException(status_code=404):
            return Problem(404, "there is nothing here; /openapi.json lists what there is", error.headers)
        case HTTPException(status_code=405):
            # Each route knows its own methods only; one path may have several routes.
            routes = [route for route in request.app.routes if isinstance(route, APIRoute)]
            path = request.scope["path"].removeprefix(request.scope["root_path"])
            here = [route.methods or () for route in routes if route.path_regex.match(path)]
            headers = {"allow": ", ".join(sorted(set(chain(*here))))} if here else error.headers
            return Problem(405, f"{request.method} is not allowed here", headers)
        case HTTPException():
            return Problem(error.status_code, str(error.detail), error.headers)
        case NoItemError() | NoPictureError():
            return Problem(404, str(error))
        case BadItemError():
            return Problem(422, f"the upload cannot be used: {error}".replace("; raise it with --max-pixels", ""))
        case DataError() | ParameterError():
            return Problem(422, str(error))
    return Problem(503, str(error), {"retry-after": "5"})
