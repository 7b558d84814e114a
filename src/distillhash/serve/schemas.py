"""The shapes of answers, for ``/openapi.json``; answers themselves are written without them."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field


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


class SearchedFor(BaseModel):
    """The query."""

    id: int | None
    code: str


class SearchAnswer(BaseModel):
    """Neighbours, nearest first, equal distances by ascending id; exact."""

    query: SearchedFor
    n_bits: int
    k: int
    radius: int | None
    truncated: bool = Field(description="Whether more items lie within the radius than k.")
    results: list[Neighbour]


class Encoded(BaseModel):
    """A code."""

    code: str
    n_bits: int


class Items(BaseModel):
    """Some items."""

    items: list[ItemSummary]


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


class Session(BaseModel):
    """Access."""

    allowed: bool


class Status(BaseModel):
    """Health."""

    status: str


class ProblemDocument(BaseModel):
    """RFC 9457."""

    type: str
    title: str
    status: int
    detail: str
    request_id: str
    errors: list[dict[str, str]] | None = None
