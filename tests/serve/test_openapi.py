"""Schemathesis against the OpenAPI document: what it promises is what the server does."""

import os

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings

from serving import Running

CHECKS = schemathesis.checks
# What a schema cannot say: that a binary string is an image, that a code has the length of this index, and that /search takes exactly one
# of three things. Requests that are valid by the schema may then be refused, with a documented 4xx.
BEYOND_A_SCHEMA = [CHECKS.positive_data_acceptance]


@pytest.fixture(scope="module")
def document(server: Running) -> schemathesis.schemas.BaseSchema:
    return schemathesis.openapi.from_url(server.url + "openapi.json")


schema = schemathesis.pytest.from_fixture("document")


@schema.exclude(path="/items", method="POST").exclude(path="/items/{id}", method="DELETE").parametrize()
@settings(
    max_examples=int(os.environ.get("DISTILLHASH_TEST_EXAMPLES", "15")),
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_the_server_keeps_its_document(case: schemathesis.Case) -> None:
    case.call_and_validate(excluded_checks=BEYOND_A_SCHEMA, timeout=30)


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
        assert method in paths[path]
        refused = [code for code in paths[path][method]["responses"] if code >= "400"]
        for code in refused:
            assert list(paths[path][method]["responses"][code]["content"]) == ["application/problem+json"]
    body = paths["/search"]["post"]["requestBody"]["content"]
    assert "file" in body["multipart/form-data"]["schema"]["properties"]
