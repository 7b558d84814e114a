"""The shapes of requests and answers: for ``/openapi.json``, and the upload in a request's body."""

import sys
from typing import Any, Literal, NamedTuple

import numpy as np
import orjson
from pydantic import BaseModel, Field, create_model
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from distillhash.hamming.ranking import By
from distillhash.index.base import LARGEST_ID
from distillhash.serve.encoding import Upload
from distillhash.serve.limits import Problem
from distillhash.serve.settings import MOST_RESULTS

LARGEST_RADIUS = 65_536  # bits
MOST_MATCHES = 500
_LONGEST_TEXT = 1000  # characters
_MOST_JSON = 2**20
_MOST_FIELD = 4096
_MOST_NAME = 200

_FILE = {"type": "string", "format": "binary", "description": "An image: JPEG, PNG, WebP, GIF, BMP, TIFF, PPM or AVIF."}
_NAME = {"type": "string", "maxLength": _MOST_NAME}
_EMBEDDING = {"type": "array", "items": {"type": "number"}, "minItems": 1}
IMAGE_BODY = {
    "multipart/form-data": {"schema": {"type": "object", "properties": {"file": _FILE}, "required": ["file"]}},
    "image/*": {"schema": _FILE},
}
EMBEDDING_BODY = {
    "application/json": {
        "schema": {"type": "object", "properties": {"embedding": _EMBEDDING, "name": _NAME}, "required": ["embedding"]}
    },
}


class Body(NamedTuple):
    """What was uploaded, and under which name."""

    upload: Upload
    name: str | None


async def read_body(request: Request) -> Body:
    """The upload in a request, or a problem: 400 malformed, 413 too much JSON, 415 another content type, 422 without what is needed."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type == "multipart/form-data":
        try:
            parser = MultiPartParser(
                request.headers, request.stream(), max_files=1, max_fields=4, max_part_size=_MOST_FIELD
            )
            parser.spool_max_size = sys.maxsize  # the whole body may be held in memory, and a disk may be full
            file = (await parser.parse()).get("file")
            if not isinstance(file, UploadFile):
                raise Problem(422, "the multipart body has no file in its field 'file'")
            return Body(await file.read(), _name(file.filename))
        except MultiPartException as error:
            raise Problem(400, error.message) from error
    if media_type == "application/json":
        return _from_json(await request.body())
    if media_type.startswith("image/"):
        return Body(await request.body(), None)
    raise Problem(
        415,
        f"send multipart/form-data with a field 'file', an image, or JSON with 'embedding', not {media_type[:60]!r}",
    )


def _from_json(body: bytes) -> Body:
    if len(body) > _MOST_JSON:
        raise Problem(413, f"a JSON body may have {_MOST_JSON} bytes at most, got {len(body)}")
    try:
        document: Any = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Problem(400, f"the body is not JSON: {error}; NaN and Infinity are not JSON numbers") from error
    values = document.get("embedding") if isinstance(document, dict) else None
    if not isinstance(values, list) or not values or any(type(value) not in (int, float) for value in values):
        raise Problem(422, "the JSON body must be an object with 'embedding', a list of numbers")
    name = document.get("name")
    if name is not None and not isinstance(name, str):
        raise Problem(422, "the name must be text")
    with np.errstate(over="ignore"):
        return Body(np.array(values, np.float64).astype(np.float32), _name(name))


def _name(text: str | None) -> str | None:
    """A file name without folders and control characters."""
    if not text:
        return None
    if len(text) > _MOST_NAME:
        raise Problem(422, f"the name may have {_MOST_NAME} characters at most, got {len(text)}")
    name = text.replace("\\", "/").rpartition("/")[2]
    return "".join(letter for letter in name if letter.isprintable()) or None


class SearchParameters(BaseModel):
    """What ``POST /search`` may be asked for."""

    id: int | None = Field(None, ge=0, le=LARGEST_ID, description="Search by an item of the index.")
    code: str | None = None
    text: str | None = Field(
        None, min_length=1, max_length=_LONGEST_TEXT, description="Search by a sentence, where the model takes them."
    )
    k: int = Field(10, ge=1, le=MOST_RESULTS, description="How many neighbours at most.")
    radius: int | None = Field(None, ge=0, le=LARGEST_RADIUS, description="Only neighbours within this many bits.")
    by: By = Field(
        "both",
        description="For codes of two parts: `nearest`, of the same `kind`, or `both`, the nearest first and then the kind.",
    )
    where: str | None = Field(
        None,
        min_length=1,
        max_length=_LONGEST_TEXT,
        description="Only items for which this condition over id, key and metadata holds, in the index's language: "
        "`metadata->>'label' = 'cat'`, on Milvus `metadata[\"label\"] == \"cat\"`.",
    )
    rerank: Literal["projection", "decoder", "vectors"] | None = Field(
        None,
        description="For an upload: order the nearest codes by its real projection, or by the cosine of its features to those decoded "
        "from the codes or kept in the index.",
    )
    candidates: int | None = Field(
        None, ge=1, le=MOST_RESULTS, description="How many nearest codes to re-rank; 10 k by default."
    )


class ItemSummary(BaseModel):
    """An item as lists show it."""

    id: int
    name: str = Field(description="What people call it; never a path of the server.")
    code: str = Field(description="Packed code as hexadecimal digits, first bit first.")
    picture: bool = Field(description="Whether /items/{id}/image is worth asking for.")
    width: int | None = Field(description="Of the picture, in pixels; null while unknown.")
    height: int | None


class ItemDetails(ItemSummary):
    """An item."""

    n_bits: int
    metadata: dict[str, Any]


class Neighbour(ItemSummary):
    """A search result."""

    distance: int = Field(description="Hamming distance in bits.")
    score: float | None = Field(
        None, description="What re-ranked results are ordered by, larger is nearer; absent otherwise."
    )


class SearchedFor(BaseModel):
    """The query."""

    id: int | None
    code: str


class SearchAnswer(BaseModel):
    """Neighbours, nearest first (of two parts: by the ranking) with ties by ascending id, or by descending score if re-ranked.

    They are exact unless /stats says otherwise.
    """

    query: SearchedFor
    n_bits: int
    k: int
    radius: int | None
    truncated: bool = Field(
        description="Whether more items lie within the radius than k, or may do so with codes of two parts."
    )
    results: list[Neighbour]


class Match(Neighbour):
    """An item that an upload matches."""

    same_file: bool = Field(description="Whether it has the same content, to the last byte.")


class MatchAnswer(BaseModel):
    """Whether the index holds an image already, and how often that is said by mistake."""

    code: str
    verdict: Literal["same file", "copy", "new"] = Field(
        description="`copy`: an item lies within the radius, `new`: none does."
    )
    radius: int = Field(description="In bits, as calibrated on this index.")
    n_bits: int
    expected_false_matches: float | None = Field(
        description="Of 1,000 look-ups of images that the index does not hold; null where `unknown` says why."
    )
    interval: tuple[float, float] | None = Field(description="90% interval of that number.")
    light_edits_found: float | None = Field(
        description="Share of known light edits of the index's own pictures that lie within the radius; null without pictures."
    )
    unknown: str | None
    caution: str | None = Field(
        description="Where the calibration expects more than 1.1 false matches in 1,000, why, and what to do."
    )
    n_matches: int
    matches: list[Match]


class Groups(BaseModel):
    """Near-duplicate groups, largest first; the first member of a group is its keeper."""

    radius: int
    expected_false_pairs: Any
    n_groups: int
    n_missing: int
    from_file: bool
    groups: list[list[Neighbour]]


class Statistics(BaseModel):
    """What is served."""

    n_items: int
    n_bits: int
    class_bits: int = Field(description="How many of them are the class part; 0 for codes of one part.")
    exact: bool = Field(
        description="Whether searches find all of the nearest items; false for approximate indexes on servers."
    )
    method: str | None
    backbone: str | None
    model_fingerprint: str | None
    n_trained_on: int | None
    accepts: str | None = Field(description="image, embedding, or null where the index keeps no model.")
    accepts_text: bool = Field(description="Whether ?text= is understood.")
    max_upload: int
    max_pixels: int
    has_duplicates_file: bool
    ready: bool
    uptime_seconds: float


class QualityNumbers(BaseModel):
    """How the bits behave on a sample; see distillhash.metrics.code_statistics.bit_statistics."""

    n_items: int
    n_sampled: int
    n_bits: int
    balance: list[float]
    correlation: list[list[float]]
    effective_bits: float
    unique_fraction: float
    largest_bucket_fraction: float
    pair_distances: list[int]
    nearest_distances: list[int]


class ProblemDocument(BaseModel):
    """RFC 9457."""

    type: str
    title: str
    status: int
    detail: str
    request_id: str
    errors: list[dict[str, str]] | None = None


Encoded = create_model("Encoded", __doc__="A code.", code=(str, ...), n_bits=(int, ...))
Items = create_model("Items", __doc__="Some items.", items=(list[ItemSummary], ...))
Session = create_model("Session", __doc__="Access.", allowed=(bool, ...))
Status = create_model("Status", __doc__="Health.", status=(str, ...))
