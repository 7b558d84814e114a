"""Schemathesis against the OpenAPI document: what it promises is what the server does, for valid and for invalid requests."""

import contextlib
import os
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.core.result import Ok
from schemathesis.schemas import APIOperation

from image_factory import make_png
from serving import in_thread

# What a schema cannot say: that a binary string is an image, that a code has the length of this index, and that /search takes exactly one
# of three things. Such requests are valid by the schema and may still be refused, with a documented 4xx.
BEYOND_A_SCHEMA = [schemathesis.checks.positive_data_acceptance]
EXAMPLES = int(os.environ.get("DISTILLHASH_TEST_EXAMPLES", "15"))


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_the_server_keeps_its_document(own_index: Path, mode: GenerationMode) -> None:
    tried = set()

    def check(operation: APIOperation[Any, Any, Any, Any]) -> None:
        @settings(max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy(generation_mode=mode))
        def answers(case: Any) -> None:
            tried.add(operation.label)
            case.call_and_validate(excluded_checks=BEYOND_A_SCHEMA, timeout=30)

        # An operation without parameters cannot be asked wrongly.
        with contextlib.suppress(*([Unsatisfiable] if mode is GenerationMode.NEGATIVE else [])):
            answers()

    with in_thread(own_index) as url:
        for found in schemathesis.openapi.from_url(url + "openapi.json").get_all_operations():
            assert isinstance(found, Ok)
            check(found.ok())
        assert httpx.post(url + "search", files={"file": make_png()}).status_code == 200
    assert {"POST /search", "POST /encode", "POST /items", "GET /items/{id}", "DELETE /items/{id}"} <= tried


def test_a_path_with_several_methods_names_them_all(client: httpx.Client) -> None:
    answer = client.put("/items/1")
    assert answer.status_code == 405 and answer.headers["allow"] == "DELETE, GET"
    assert client.get("/search").headers["allow"] == "POST"


def test_the_document_names_every_contracted_operation(client: httpx.Client) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    for path, method in (
        ("/search", "post"),
        ("/encode", "post"),
        ("/items/{id}", "get"),
        ("/items/{id}", "delete"),
        ("/items/{id}/image", "get"),
        ("/items/{id}/thumbnail", "get"),
        ("/items", "post"),
        ("/stats", "get"),
        ("/healthz", "get"),
        ("/readyz", "get"),
        ("/metrics", "get"),
    ):
        responses = paths[path][method]["responses"]
        refused = [content for code, content in responses.items() if code >= "400"]
        assert refused and all(list(answer["content"]) == ["application/problem+json"] for answer in refused)
    body = paths["/search"]["post"]["requestBody"]["content"]
    assert "file" in body["multipart/form-data"]["schema"]["properties"]
