"""Schemathesis against the OpenAPI document: what it promises is what the server does, for valid and for invalid requests."""

import contextlib
import os
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.core.result import Ok

from serving import Running

# What a schema cannot say: that a binary string is an image, that a code has the length of this index, and that /search takes exactly one
# of three things. Such requests are valid by the schema and may still be refused, with a documented 4xx.
BEYOND_A_SCHEMA = [schemathesis.checks.positive_data_acceptance]
CHANGES_THE_INDEX = {("POST", "/items"), ("DELETE", "/items/{id}")}
EXAMPLES = int(os.environ.get("DISTILLHASH_TEST_EXAMPLES", "15"))


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_the_server_keeps_its_document(server: Running, mode: GenerationMode) -> None:
    schema = schemathesis.openapi.from_url(server.url + "openapi.json")
    tried = set()
    for found in schema.get_all_operations():
        assert isinstance(found, Ok)
        operation = found.ok()
        if (operation.method.upper(), operation.path) in CHANGES_THE_INDEX:
            continue

        @settings(max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy(generation_mode=mode))
        def answers(case: Any) -> None:
            tried.add(case.operation.path)
            case.call_and_validate(excluded_checks=BEYOND_A_SCHEMA, timeout=30)

        # An operation without parameters cannot be asked wrongly.
        with contextlib.suppress(*([Unsatisfiable] if mode is GenerationMode.NEGATIVE else [])):
            answers()
    assert {"/search", "/encode", "/items", "/items/{id}", "/items/{id}/image", "/duplicates"} <= tried


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
