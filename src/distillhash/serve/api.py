"""The routes: HTTP in, calls of :class:`~distillhash.serve.service.Service`, JSON out.

Annotations are evaluated here, as FastAPI reads them and one depends on the index's code length.
"""

import asyncio
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Path, Query, Request, Response

from distillhash.codes import bytes_per_code
from distillhash.index.base import LARGEST_ID
from distillhash.serve import schemas
from distillhash.serve.library import Query as Search
from distillhash.serve.pictures import Picture
from distillhash.serve.problems import MEDIA_TYPE, Problem
from distillhash.serve.service import Service
from distillhash.serve.settings import COOKIE, MOST_RESULTS
from distillhash.serve.uploads import EMBEDDING_BODY, IMAGE_BODY, has_body, read_body

ItemId = Annotated[int, Path(ge=0, le=LARGEST_ID, description="Id of an item of the index.")]
_PICTURE_SECONDS = 300
_LARGEST_RADIUS = 65_536  # bits
_LONGEST_TEXT = 1000  # characters


def routes(service: Service) -> APIRouter:
    """All routes but the page's."""
    router = APIRouter()
    digits = 2 * bytes_per_code(service.n_bits)

    @router.post(
        "/search",
        **_documented(schemas.SearchAnswer, 400, 404, 408, 413, 415, 422, 503),
        **_body(service, required=False),
    )
    async def search(
        request: Request,
        id: Annotated[int | None, Query(ge=0, le=LARGEST_ID, description="Search by an item of the index.")] = None,
        code: Annotated[
            str | None,
            Query(pattern=f"^[0-9a-fA-F]{{{digits}}}$", description="Search by a packed code in hexadecimal."),
        ] = None,
        text: Annotated[
            str | None,
            Query(
                min_length=1, max_length=_LONGEST_TEXT, description="Search by a sentence, where the model takes them."
            ),
        ] = None,
        k: Annotated[int, Query(ge=1, le=MOST_RESULTS, description="How many neighbours at most.")] = 10,
        radius: Annotated[
            int | None, Query(ge=0, le=_LARGEST_RADIUS, description="Only neighbours within this many bits.")
        ] = None,
    ) -> Response:
        """The nearest items of an uploaded image, of an item, a code or a sentence. An item finds itself first, at distance 0."""
        if (id is not None) + (code is not None) + (text is not None) + has_body(request) != 1:
            raise Problem(422, "give exactly one of: an image in the multipart field 'file', ?id=, ?code=, ?text=")
        if id is not None:
            query = Search(id, k, radius)
        elif code is not None:
            query = Search(_packed(code, service.n_bits), k, radius)
        elif text is not None:
            query = Search(await service.encode_text(text), k, radius)
        else:
            query = Search(await service.encode(await read_body(request)), k, radius)
        return _json(await service.search(query))

    @router.post(
        "/encode", **_documented(schemas.Encoded, 400, 408, 413, 415, 422, 503), **_body(service, required=True)
    )
    async def encode(request: Request) -> Response:
        """The code of an uploaded image, or of an embedding where the index's model takes those."""
        code = await service.encode(await read_body(request))
        return _json({"code": code.hex(), "n_bits": service.n_bits})

    @router.get("/items", **_documented(schemas.Items, 422, 503))
    async def items(
        sample: Annotated[int, Query(ge=1, le=500, description="How many.")] = 50,
        seed: Annotated[int, Query(ge=0, le=2**32 - 1, description="Another seed draws others.")] = 0,
    ) -> Response:
        """Random items."""
        return _json({"items": [service.summary(item) for item in await service.sample(sample, seed)]})

    @router.post(
        "/items",
        status_code=201,
        **_documented(schemas.ItemDetails, 200, 400, 408, 413, 415, 422, 503, status=201),
        **_body(service, required=True),
    )
    async def add(request: Request) -> Response:
        """Add an image (or an embedding) to the index; the same image again is the same item."""
        item, is_new = await service.add(await read_body(request))
        return _json(service.details(item), 201 if is_new else 200, {"location": f"/items/{item.id}"})

    @router.get("/items/{id}", **_documented(schemas.ItemDetails, 404, 422, 503))
    async def item(id: ItemId) -> Response:
        """One item."""
        return _json(service.details(await service.library.item(id)))

    @router.delete("/items/{id}", status_code=204, **_documented(None, 404, 422, 503, status=204))
    async def remove(id: ItemId) -> Response:
        """Remove an item from the index; files are not touched, but for uploads kept beside the index."""
        await service.remove(id)
        return Response(status_code=204)

    @router.get("/items/{id}/image", **_documented("image/*", 404, 422, 503))
    async def image(id: ItemId) -> Response:
        """The picture of an item at its full size."""
        return _picture(await asyncio.to_thread(service.pictures.original, await service.library.item(id)))

    @router.get("/items/{id}/thumbnail", **_documented("image/*", 404, 422, 503))
    async def thumbnail(id: ItemId) -> Response:
        """The picture of an item, small."""
        return _picture(await asyncio.to_thread(service.pictures.thumbnail, await service.library.item(id)))

    @router.get("/duplicates", **_documented(schemas.Groups, 422, 503))
    async def duplicates(
        radius: Annotated[
            int | None,
            Query(ge=0, le=_LARGEST_RADIUS, description="In bits; the file's own where the server was given one."),
        ] = None,
        offset: Annotated[int, Query(ge=0, le=10**9)] = 0,
        limit: Annotated[int, Query(ge=1, le=200)] = 50,
    ) -> Response:
        """Groups of near-duplicates."""
        page = await service.library.run(
            lambda index: service.groups.page(index, radius=radius, offset=offset, limit=limit)
        )
        page["groups"] = [
            [{**service.summary(item), "distance": distance} for item, distance in group] for group in page["groups"]
        ]
        return _json(page)

    @router.get("/quality", **_documented(schemas.QualityNumbers, 422, 503))
    async def quality() -> Response:
        """How the bits of the index behave."""
        return _json(await service.library.run(service.quality.of))

    @router.get("/stats", **_documented(schemas.Statistics, 503))
    async def stats() -> Response:
        """What is served."""
        return _json(await service.statistics())

    @router.get("/healthz", **_documented(schemas.Status))
    async def healthz() -> Response:
        """Whether the process answers."""
        return _json({"status": "alive"})

    @router.get("/readyz", **_documented(schemas.Status, 503))
    async def readyz() -> Response:
        """Whether warm-up is over."""
        if not service.is_ready:
            raise Problem(503, "the model and the index are being loaded", {"retry-after": "1"})
        return _json({"status": "ready"})

    @router.get("/metrics", **_documented("text/plain"))
    async def metrics() -> Response:
        """Counts and times in Prometheus's text format."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @router.get("/session", **_documented(schemas.Session))
    async def access(request: Request) -> Response:
        """Whether this client may ask for more: without a token set, everyone may."""
        return _json({"allowed": service.settings.admits(request.headers)})

    @router.post("/session", status_code=204, **_documented(None, 401, 422, status=204))
    async def session(request: Request) -> Response:
        """Trade `Authorization: Bearer TOKEN` for a cookie, which pictures in the page need."""
        settings = service.settings
        if not settings.admits(request.headers):
            raise Problem(401, "this is not the server's token", {"www-authenticate": "Bearer"})
        response = Response(status_code=204)
        if settings.session is not None:
            response.set_cookie(COOKIE, settings.session, httponly=True, samesite="strict", path="/")
        return response

    return router


def _packed(digits: str, n_bits: int) -> bytes:
    code = bytes.fromhex(digits)
    pad = 8 * len(code) - n_bits
    if code[-1] & ((1 << pad) - 1):
        raise Problem(422, f"the last {pad} bits of a code of {n_bits} bits must be zero")
    return code


def _json(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    body = content if isinstance(content, bytes) else orjson.dumps(content)
    return Response(body, status, headers, "application/json")


def _picture(picture: Picture) -> Response:
    headers = {
        "cache-control": f"private, max-age={_PICTURE_SECONDS}",
        "content-security-policy": "default-src 'none'; sandbox",  # for a picture opened by itself
    }
    return Response(picture.content, 200, headers, picture.media_type)


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
    for code in sorted({*others, 401, 403, 421, 431, 500} - {200}):
        schema_of_problem = {"$ref": "#/components/schemas/ProblemDocument"}
        responses[code] = {"description": "A problem.", "content": {MEDIA_TYPE: {"schema": schema_of_problem}}}
    return {"responses": responses, "response_class": Response}


def _body(service: Service, *, required: bool) -> dict[str, Any]:
    takes_images = service.encoder is None or service.encoder.takes_images
    content = IMAGE_BODY if takes_images else EMBEDDING_BODY
    return {"openapi_extra": {"requestBody": {"required": required, "content": content}}}
