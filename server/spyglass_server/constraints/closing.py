"""Closes the objects of schemas, as a model that may add properties seldom knows when to stop.

Whatever is valid against the closed schema is valid against the open one.
"""

from collections.abc import Iterator
from typing import Any

from spyglass_server.constraints.schemas import subschemas

_OF_STRINGS = {"pattern", "format", "minLength", "maxLength"}


def close(schema: dict[str, Any]) -> dict[str, Any]:
    """Returns a translated schema that allows only the properties it names, unless it specifies additional ones.

    A schema whose objects consist of several parts stays open, as each part knows only its own properties.
    """
    return schema if any(map(_is_in_parts, _all(schema))) else _close(schema)


def has_choice(schema: dict[str, Any]) -> bool:
    """Whether there is a `oneOf`, whose parts could seem to exclude each other once closed."""
    return any("oneOf" in found for found in _all(schema))


def _all(schema: Any) -> Iterator[dict[str, Any]]:
    """Yields a translated schema and all schemas in it."""
    if isinstance(schema, dict):
        yield schema
        for one in (*subschemas(schema), *schema.get("$defs", {}).values()):
            yield from _all(one)


def _is_in_parts(schema: dict[str, Any]) -> bool:
    is_of_parts = any(not isinstance(part, dict) or part.keys() - _OF_STRINGS for part in schema.get("allOf", ()))
    return is_of_parts or ("properties" in schema and bool(schema.keys() & {"anyOf", "oneOf", "$ref"}))


def _close(schema: Any) -> Any:
    if not isinstance(schema, dict):
        return schema
    result = {key: _closed_in(key, value) for key, value in schema.items()}
    properties, required = schema.get("properties"), schema.get("required")
    if isinstance(properties, dict) and not schema.keys() & {"additionalProperties", "patternProperties"}:
        names = [name for name in required if isinstance(name, str)] if isinstance(required, list) else []
        if properties.keys() >= set(names):
            result["additionalProperties"] = False
    return result


def _closed_in(key: str, value: Any) -> Any:
    """Returns a keyword's value with the schemas in it closed."""
    if key in ("properties", "patternProperties", "$defs"):
        return {name: _close(one) for name, one in value.items()}
    if key in ("items", "additionalProperties"):
        return _close(value)
    if key in ("anyOf", "oneOf", "prefixItems"):
        return [_close(one) for one in value]
    return value
