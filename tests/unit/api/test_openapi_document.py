"""The OpenAPI document describes every route with the records that validate it."""

import json
import re
from pathlib import Path

import pytest

from hostd.api import openapi
from hostd.api.server import ROUTES

DOCUMENT = json.loads(json.dumps(openapi.document(ROUTES)))


def references(node):
    if isinstance(node, dict):
        if "$ref" in node:
            yield node["$ref"]
        for value in node.values():
            yield from references(value)
    elif isinstance(node, list):
        for value in node:
            yield from references(value)


def test_every_route_is_described():
    described = {
        (method.upper(), path) for path, methods in DOCUMENT["paths"].items() for method in methods
    }
    assert described == {(route.method, route.path) for route in ROUTES}


def test_operation_ids_are_unique():
    ids = [op["operationId"] for methods in DOCUMENT["paths"].values() for op in methods.values()]
    assert len(set(ids)) == len(ids)


def test_every_reference_leads_to_a_schema():
    schemas = DOCUMENT["components"]["schemas"]
    wanted = {ref.removeprefix("#/components/schemas/") for ref in references(DOCUMENT)}
    assert wanted <= schemas.keys()


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.path}")
def test_path_parameters_are_declared(route):
    operation = DOCUMENT["paths"][route.path][route.method.lower()]
    declared = {p["name"] for p in operation["parameters"] if p["in"] == "path"}
    assert declared == set(re.findall(r"\{(\w+)\}", route.path))


def test_requests_refuse_unknown_fields():
    assert DOCUMENT["components"]["schemas"]["BuildRequest"]["additionalProperties"] is False


def test_manual_names_every_route():
    manual = Path("docs/api.md").read_text()
    missing = [f"{r.method} {r.path}" for r in ROUTES if f"`{r.method} {r.path}`" not in manual]
    assert missing == []
