"""The OpenAPI description of the routes, generated from the types that validate their requests."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from functools import cache
from typing import Any, Literal

from aiohttp.typedefs import Handler
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from spyglass_bridge.openai import responses, validation
from spyglass_bridge.openai.requests import ChatRequest, CompletionRequest

_PARTS_OF_MESSAGES = {
    "messages": {
        "SystemMessage",
        "UserMessage",
        "AssistantMessage",
        "ToolMessage",
        "CountedUserMessage",
        "CountedToolMessage",
    },
    "content": {"TextPart", "ImagePart", "CountedImagePart"},
    "tool_calls": {"ToolCall"},
    "function": {"FunctionCall"},
}
_REFERENCE = "#/components/schemas/{model}"
_PATH_SCHEMAS: dict[str, Any] = {
    "model": {"type": "string", "minLength": 1},
    "variant": {"enum": ["input", "output", "streaming"]},
}
_CHAT_MODELS: dict[str, type[BaseModel]] = {
    "input": ChatRequest,
    "output": responses.ChatCompletion,
    "streaming": responses.ChatCompletionChunk,
}
_REFUSALS = (400, 401, 403, 404, 405, 408, 409, 413, 415, 429, 431, 500, 503, 504)


@dataclass(frozen=True, slots=True)
class Route:
    """How a route is served and described.

    `{model}` in `paths` may contain slashes. `query` maps query parameters to their schemas. `answer` is the type of
    the answer, `event` that of an event if the route can stream. The API's description omits routes without `answer`.
    """

    method: Literal["get", "post"]
    paths: tuple[str, ...]
    handler: Handler
    _: KW_ONLY
    summary: str = ""
    answer: type[BaseModel] | None = None
    body: type[BaseModel] | None = None
    event: type[BaseModel] | None = None
    query: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, hash=False)
    needs_key: bool = True
    is_logged: bool = True
    statuses: tuple[int, ...] = (200,)


@cache
def openapi(routes: tuple[Route, ...]) -> dict[str, Any]:
    """Returns the OpenAPI 3.1 document."""
    models = {model for route in routes for model in (route.answer, route.body, route.event) if model is not None} | {
        responses.ErrorAnswer
    }
    inputs = {route.body for route in routes}
    ordered = sorted(models, key=lambda model: model.__name__)
    _, schemas = models_json_schema(
        [(model, "validation" if model in inputs else "serialization") for model in ordered], ref_template=_REFERENCE
    )
    for model in (ChatRequest, CompletionRequest):
        _describe_neutral(schemas["$defs"][model.__name__], schemas["$defs"], model)
    paths: dict[str, Any] = {}
    for route in routes:
        for path in route.paths:
            paths.setdefault(path, {})[route.method] = _described(route, path)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Spyglass",
            "version": "1",
            "description": "OpenAI-compatible HTTP API of a server for Llama 3.2 Vision models.",
        },
        "paths": paths,
        "components": {"schemas": schemas["$defs"], "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
        "security": [{"key": []}],
    }


@cache
def schema_of(variant: str) -> dict[str, Any] | None:
    """Returns the JSON schema of chat completions in their `input`, `output` or `streaming` form."""
    model = _CHAT_MODELS.get(variant)
    if model is None:
        return None
    schema = model.model_json_schema(mode="validation" if variant == "input" else "serialization")
    if variant == "input":
        _describe_neutral(schema, schema["$defs"], ChatRequest)
    return schema


def _describe_neutral(schema: dict[str, Any], parts: dict[str, Any], model: type[BaseModel]) -> None:
    """Adds fields that are accepted without effect: labels, and parameters that allow only neutral values.

    `parts` are the schemas that the request's schema refers to.
    """
    neutral = {name: values for name, values in validation.NEUTRAL_VALUES.items() if name not in model.model_fields}
    _add_neutral(schema, validation.LABELS, neutral)
    _add_neutral(parts["StreamOptions"], (), validation.NEUTRAL_STREAM_OPTIONS)
    for place, labels in validation.MESSAGE_LABELS.items():
        for part in _PARTS_OF_MESSAGES[place] & parts.keys():
            _add_neutral(parts[part], labels, validation.NEUTRAL_MESSAGE_VALUES if place == "messages" else {})


def _add_neutral(schema: dict[str, Any], labels: Iterable[str], neutral: Mapping[str, Sequence[Any]]) -> None:
    for name in sorted(labels):
        schema["properties"][name] = {"description": "A label, without an effect."}
    for name, values in neutral.items():
        schema["properties"][name] = {"description": "Must change nothing.", "enum": list(values)}


def _described(route: Route, path: str) -> dict[str, Any]:
    result: dict[str, Any] = {
        "summary": route.summary,
        "operationId": f"{route.method}{path}".replace("/", "_").replace("{", "").replace("}", ""),
        "responses": {str(status): _answer(route) for status in route.statuses},
    }
    if not route.needs_key:
        result["security"] = []
    else:
        refusal = {"description": "Refused or failed.", "content": _json(responses.ErrorAnswer)}
        result["responses"] |= {str(status): refusal for status in _REFUSALS}
    in_path = [
        {"name": name, "in": "path", "required": True, "schema": _PATH_SCHEMAS[name]}
        for name in re.findall(r"{(\w+)}", path)
    ]
    in_query = [{"name": name, "in": "query", "schema": schema} for name, schema in route.query.items()]
    if in_path or in_query:
        result["parameters"] = [*in_path, *in_query]
    if route.body is not None:
        result["requestBody"] = {"required": True, "content": _json(route.body)}
    return result


def _answer(route: Route) -> dict[str, Any]:
    assert route.answer is not None
    content = _json(route.answer)
    if route.event is not None:
        reference = _REFERENCE.format(model=route.event.__name__)
        # An event's data is one such object or an error; the last event's is [DONE].
        either = {"anyOf": [{"$ref": reference}, {"$ref": _REFERENCE.format(model=responses.ErrorAnswer.__name__)}]}
        written = {"type": "string", "contentMediaType": "application/json", "contentSchema": either}
        data = {"anyOf": [{"const": "[DONE]"}, written]}
        event = {"type": "object", "properties": {"data": data}, "required": ["data"]}
        content["text/event-stream"] = {"schema": event}
    return {"description": "OK", "content": content}


def _json(model: type[BaseModel]) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": _REFERENCE.format(model=model.__name__)}}}
