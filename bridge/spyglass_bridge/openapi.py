"""The description of the HTTP API, made from the types that validate its requests.

Owns the list of operations. Knows nothing of how they are served.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import cache
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from spyglass_bridge.openai import objects
from spyglass_bridge.openai.reading import (
    LABELS,
    MESSAGE_LABELS,
    NEUTRAL_MESSAGE_VALUES,
    NEUTRAL_STREAM_OPTIONS,
    NEUTRAL_VALUES,
)
from spyglass_bridge.openai.requests import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    NativeRequest,
    TokenizeRequest,
)

_PARTS_OF_MESSAGES = {
    "messages": {"SystemMessage", "UserMessage", "AssistantMessage", "ToolMessage"},
    "content": {"TextPart", "ImagePart"},
    "tool_calls": {"ToolCall"},
    "function": {"FunctionCall"},
}
_REFERENCE = "#/components/schemas/{model}"
_PATH_SCHEMAS: dict[str, Any] = {
    "model": {"type": "string", "minLength": 1},
    "variant": {"enum": ["input", "output", "streaming"]},
}
_REFUSALS = (400, 401, 403, 404, 405, 408, 409, 413, 415, 429, 431, 500, 503, 504)


@dataclass(frozen=True, slots=True)
class Operation:
    """A route. `event` is what the events of its stream hold, where it has one; `paths` are its names."""

    method: str
    paths: tuple[str, ...]
    summary: str
    _: KW_ONLY
    answer: type[BaseModel]
    body: type[BaseModel] | None = None
    event: type[BaseModel] | None = None
    is_open: bool = False
    statuses: tuple[int, ...] = (200,)


def _twice(path: str) -> tuple[str, ...]:
    """OpenAI's name and DeepInfra's."""
    return f"/v1{path}", f"/v1/openai{path}"


CHAT = Operation(
    "post",
    _twice("/chat/completions"),
    "Answers a conversation with text and images.",
    answer=objects.ChatCompletion,
    body=ChatRequest,
    event=objects.ChatCompletionChunk,
)
OPERATIONS = (
    CHAT,
    Operation(
        "post",
        _twice("/completions"),
        "Continues ready prompts.",
        answer=objects.Completion,
        body=CompletionRequest,
        event=objects.Completion,
    ),
    Operation(
        "post",
        ("/v1/inference/{model}",),
        "Continues a ready prompt, in DeepInfra's own form.",
        answer=objects.Inference,
        body=NativeRequest,
        event=objects.InferenceEvent,
    ),
    Operation("get", _twice("/models"), "Lists the models.", answer=objects.ModelList),
    Operation("get", _twice("/models/{model}"), "Describes one model.", answer=objects.ModelObject),
    Operation(
        "get",
        ("/models/{model}/schema/{variant}",),
        "Tells the JSON schema of the input, output or streaming form of a chat completion.",
        answer=objects.Schema,
    ),
    Operation("post", ("/tokenize",), "Tells the tokens of a prompt.", answer=objects.Tokens, body=TokenizeRequest),
    Operation("post", ("/detokenize",), "Tells what tokens say.", answer=objects.TokenizedText, body=DetokenizeRequest),
    Operation("get", ("/health",), "Whether the bridge is alive.", answer=objects.Status, is_open=True),
    Operation(
        "get",
        ("/ready",),
        "Whether generations can be served.",
        answer=objects.Status,
        is_open=True,
        statuses=(200, 503),
    ),
)


@cache
def openapi() -> dict[str, Any]:
    """The OpenAPI 3.1 document."""
    models = {model for one in OPERATIONS for model in (one.answer, one.body, one.event) if model is not None} | {
        objects.ErrorAnswer
    }
    inputs = {one.body for one in OPERATIONS}
    ordered = sorted(models, key=lambda model: model.__name__)
    _, schemas = models_json_schema(
        [(model, "validation" if model in inputs else "serialization") for model in ordered], ref_template=_REFERENCE
    )
    for model in (ChatRequest, CompletionRequest):
        _tell_neutral(schemas["$defs"][model.__name__], schemas["$defs"], model)
    paths: dict[str, Any] = {}
    for operation in OPERATIONS:
        for path in operation.paths:
            paths.setdefault(path, {})[operation.method] = _described(operation, path)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Spyglass",
            "version": "1",
            "description": "OpenAI-compatible HTTP API of a server for Llama 3.2 Vision models.",
        },
        "paths": paths,
        "components": {
            "schemas": schemas["$defs"],
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}],
    }


@cache
def schema_of(variant: str) -> dict[str, Any] | None:
    """The JSON schema of chat completions: of their `input`, `output` or `streaming` form."""
    models = {"input": CHAT.body, "output": CHAT.answer, "streaming": CHAT.event}
    model = models.get(variant)
    if model is None:
        return None
    schema = model.model_json_schema(mode="validation" if variant == "input" else "serialization")
    if variant == "input":
        _tell_neutral(schema, schema["$defs"], ChatRequest)
    return schema


def _tell_neutral(schema: dict[str, Any], parts: dict[str, Any], model: type[BaseModel]) -> None:
    """Adds what is taken without an effect: labels, and parameters that are refused unless they ask for nothing.

    `parts` are the schemas that the request's refers to.
    """
    neutral = {name: values for name, values in NEUTRAL_VALUES.items() if name not in model.model_fields}
    _add_neutral(schema, LABELS, neutral)
    _add_neutral(parts["StreamOptions"], (), NEUTRAL_STREAM_OPTIONS)
    for place, labels in MESSAGE_LABELS.items():
        for part in _PARTS_OF_MESSAGES[place] & parts.keys():
            _add_neutral(parts[part], labels, NEUTRAL_MESSAGE_VALUES if place == "messages" else {})


def _add_neutral(schema: dict[str, Any], labels: Iterable[str], neutral: Mapping[str, Sequence[Any]]) -> None:
    for name in sorted(labels):
        schema["properties"][name] = {"description": "A label, without an effect."}
    for name, values in neutral.items():
        schema["properties"][name] = {"description": "Not honoured: asks for nothing.", "enum": list(values)}


def _described(operation: Operation, path: str) -> dict[str, Any]:
    result: dict[str, Any] = {
        "summary": operation.summary,
        "operationId": f"{operation.method}{path}".replace("/", "_").replace("{", "").replace("}", ""),
        "responses": {str(status): _answer(operation) for status in operation.statuses},
    }
    if operation.is_open:
        result["security"] = []
    else:
        refusal = {"description": "Refused or failed.", "content": _json(objects.ErrorAnswer)}
        result["responses"] |= {str(status): refusal for status in _REFUSALS}
    if names := re.findall(r"{(\w+)}", path):
        result["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": _PATH_SCHEMAS[name]} for name in names
        ]
    if operation.body is not None:
        result["requestBody"] = {"required": True, "content": _json(operation.body)}
    return result


def _answer(operation: Operation) -> dict[str, Any]:
    content = _json(operation.answer)
    if operation.event is not None:
        reference = _REFERENCE.format(model=operation.event.__name__)
        # The data of an event is one such object, or an error in its place; at the end it is [DONE].
        either = {"anyOf": [{"$ref": reference}, {"$ref": _REFERENCE.format(model=objects.ErrorAnswer.__name__)}]}
        written = {"type": "string", "contentMediaType": "application/json", "contentSchema": either}
        data = {"anyOf": [{"const": "[DONE]"}, written]}
        event = {"type": "object", "properties": {"data": data}, "required": ["data"]}
        content["text/event-stream"] = {"schema": event}
    return {"description": "OK", "content": content}


def _json(model: type[BaseModel]) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": _REFERENCE.format(model=model.__name__)}}}
