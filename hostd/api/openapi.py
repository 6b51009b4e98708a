"""The OpenAPI 3.1 document, from the route table and the records that validate requests."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import msgspec

from hostd import __version__
from hostd.api.routes import Route
from hostd.model import ClientMessage, Problem, ServerMessage

_PARAMETER = re.compile(r"\{(\w+)(?::[^}]*)?\}")


def document(routes: Sequence[Route]) -> dict[str, Any]:
    """Describe every route; the schemas are those of the records, by name."""
    types: list[Any] = [Problem, ClientMessage, ServerMessage]
    types += [t for route in routes for t in (route.request, route.reply) if t is not None]
    unique = list(dict.fromkeys(types))
    schemas, components = msgspec.json.schema_components(
        unique, schema_hook=_anything, ref_template="#/components/schemas/{name}"
    )
    by_type = dict(zip(unique, schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        path = _PARAMETER.sub(r"{\1}", route.path)
        paths.setdefault(path, {})[route.method.lower()] = _operation(route, by_type)
    components["ClientMessage"] = by_type[ClientMessage]
    components["ServerMessage"] = by_type[ServerMessage]
    return {
        "openapi": "3.1.0",
        "info": {"title": "hostd", "version": __version__},
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"token": []}],
    }


def _anything(kind: type) -> dict[str, Any]:
    """The schema of ``object``, the one type of the records that msgspec does not know."""
    if kind is not object:
        raise NotImplementedError(kind)
    return {"description": "any JSON value"}


def _operation(route: Route, by_type: dict[Any, Any]) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "summary": route.summary,
        "operationId": route.handler.__name__,
        "parameters": _parameters(route),
        "responses": {
            "200": {"description": "success", "content": _content(route, by_type)},
            "default": {
                "description": "a problem document",
                "content": {"application/problem+json": {"schema": by_type[Problem]}},
            },
        },
    }
    if route.request is not None:
        operation["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": by_type[route.request]}},
        }
    return operation


def _parameters(route: Route) -> list[dict[str, Any]]:
    in_path = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in _PARAMETER.findall(route.path)
    ]
    in_query = [
        {"name": name, "in": "query", "description": text, "schema": {"type": "string"}}
        for name, text in route.query
    ]
    return in_path + in_query


def _content(route: Route, by_type: dict[Any, Any]) -> dict[str, Any]:
    if route.reply is None:
        return {route.media: {}}
    schema = by_type[route.reply]
    if route.many:
        schema = {
            "type": "object",
            "required": ["items", "next_cursor"],
            "properties": {
                "items": {"type": "array", "items": schema},
                "next_cursor": {"type": ["string", "null"]},
            },
        }
    return {route.media: {"schema": schema}}
