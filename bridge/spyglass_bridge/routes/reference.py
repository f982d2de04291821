"""GET /openapi.json, /docs and /models/{model}/schema/{variant}: the API's description, for programs and people."""

import html
import json
from functools import cache
from typing import Any

from aiohttp import web

from spyglass_bridge.errors import ApiError
from spyglass_bridge.openapi import Route, openapi, schema_of
from spyglass_bridge.routes.models import model_in_path
from spyglass_bridge.routes.page import STRICT_HEADERS
from spyglass_bridge.services import CALLER_KEY, SERVICES


async def get_openapi(routes: tuple[Route, ...], request: web.Request) -> web.Response:
    """Returns the OpenAPI document of these routes."""
    return web.json_response(openapi(routes))


async def get_reference(routes: tuple[Route, ...], request: web.Request) -> web.Response:
    """Returns the reference of these routes as a page."""
    return web.Response(text=_page(routes), content_type="text/html", headers=STRICT_HEADERS)


async def get_schema(request: web.Request) -> web.Response:
    """Returns the JSON schema of a model's input, output or stream."""
    await request.app[SERVICES].backend.get_model(model_in_path(request), request[CALLER_KEY])
    schema = schema_of(request.match_info["variant"])
    if schema is None:
        raise ApiError(404, "A schema is of the input, the output or the streaming form.", code="not_found")
    return web.json_response(schema)


@cache
def _page(routes: tuple[Route, ...]) -> str:
    schemas = openapi(routes)["components"]["schemas"]
    links = "".join(f'<a href="#{_anchor(route)}">{html.escape(route.paths[0])}</a>' for route in routes)
    sections = "".join(_section(route, schemas) for route in routes)
    shown = {model.__name__ for one in routes for model in (one.body, one.answer, one.event) if model is not None}
    kinds = "".join(
        f"<h3 id={name}>{name}</h3>{_table(schema)}" for name, schema in sorted(schemas.items()) if name not in shown
    )
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        "<title>Spyglass API</title><link rel=icon href=/page/icon.svg type=image/svg+xml>"
        "<link rel=stylesheet href=/page/theme.css><link rel=stylesheet href=/page/reference.css>"
        "<body class=reference><h1>Spyglass API</h1>"
        "<p>Send your key with every call: <code>Authorization: Bearer KEY</code>. "
        "For programs: <a href=/openapi.json>openapi.json</a>.</p>"
        f"<nav>{links}<a href=#types>types</a></nav>{sections}<h2 id=types>Types</h2>{kinds}</body></html>"
    )


def _anchor(route: Route) -> str:
    return route.method + route.paths[0].replace("/", "-").replace("{", "").replace("}", "")


def _section(route: Route, schemas: dict[str, Any]) -> str:
    assert route.answer is not None
    others = ", ".join(f"<code>{html.escape(path)}</code>" for path in route.paths[1:])
    also = f" Also known as {others}." if others else ""
    parts = [
        f'<h2 id="{_anchor(route)}"><span class=method>{route.method.upper()}</span> '
        f"{html.escape(route.paths[0])}</h2><p>{html.escape(route.summary)}{also}</p>"
    ]
    if route.body is not None:
        parts.append("<h3>Request</h3>" + _table(schemas[route.body.__name__]))
    parts.append("<h3>Answer</h3>" + _table(schemas[route.answer.__name__]))
    if route.event is not None and route.event is not route.answer:
        parts.append("<h3>Each event of a stream</h3>" + _table(schemas[route.event.__name__]))
    return "".join(parts)


def _table(schema: dict[str, Any]) -> str:
    """Returns a table of an object's fields, required ones first."""
    required = schema.get("required", ())
    fields = sorted(schema.get("properties", {}).items(), key=lambda field: field[0] not in required)
    rows = "".join(
        f"<tr><td><code>{html.escape(name)}</code>{' *' if name in required else ''}</td>"
        f"<td>{_kind(field)}</td><td>{html.escape(field.get('description', ''))}</td></tr>"
        for name, field in fields
    )
    description = f"<p>{html.escape(schema['description'])}</p>" if "description" in schema else ""
    table = f"<table><tr><th>field (* required)</th><th>type</th><th></th></tr>{rows}</table>" if rows else ""
    return description + table


def _kind(field: dict[str, Any]) -> str:
    """Describes a field's type in a few words, as HTML."""
    if "$ref" in field:
        name = html.escape(str(field["$ref"]).rpartition("/")[2])
        return f"<a href=#{name}><code>{name}</code></a>"
    for key in ("anyOf", "oneOf"):
        if key in field:
            return " | ".join(dict.fromkeys(_kind(one) for one in field[key]))
    if "const" in field or "enum" in field:
        values = field.get("enum", [field.get("const")])
        return " | ".join(f"<code>{html.escape(json.dumps(value))}</code>" for value in values)
    kind = str(field.get("type", "any"))
    if kind == "array":
        return f"list of {_kind(field.get('items', {}))}"
    limits = [
        f"{sign} {field[key]}"
        for key, sign in (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<"))
        if key in field
    ]
    return f"<code>{html.escape(' '.join([kind, *limits]))}</code>"
