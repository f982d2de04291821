"""JSON schemas, made narrower so that a model finds to an end.

Owns what may be taken from a schema: whatever holds to the narrower one holds to the schema that was asked for, too.
Knows nothing of grammars.
"""

import json
from itertools import combinations
from typing import Any

_MOST_COMPARISONS = 10_000
_DEEPEST_COMPARISON = 16
_TYPES = ("null", "boolean", "integer", "number", "string", "array", "object")


def narrowed(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema whose objects have the properties that it names and no others, where it leaves that open.

    A model that may add properties seldom knows when to stop. A `oneOf` whose parts exclude each other becomes an
    `anyOf`. A schema that has objects of several parts, or parts that may not exclude each other, stays as it is: each
    part knows the properties of its own only.
    """
    comparison = _Comparison(schema)
    return schema if _has_parts(schema, comparison) else _close(schema)


def _has_parts(value: Any, comparison: "_Comparison") -> bool:
    if isinstance(value, list):
        return any(_has_parts(one, comparison) for one in value)
    if not isinstance(value, dict):
        return False
    in_parts = "properties" in value and value.keys() & {"anyOf", "oneOf", "$ref"}
    if "allOf" in value or in_parts or ("oneOf" in value and not comparison.is_choice(value)):
        return True
    return any(_has_parts(one, comparison) for one in value.values())


def _close(schema: dict[str, Any]) -> dict[str, Any]:
    result = {"anyOf" if key == "oneOf" else key: _closed_in(key, value) for key, value in schema.items()}
    if "properties" in schema and not schema.keys() & {"additionalProperties", "patternProperties"}:
        required = schema.get("required")
        if not isinstance(required, list) or all(name in schema["properties"] for name in required):
            result["additionalProperties"] = False
    return result


def _closed_in(key: str, value: Any) -> Any:
    """What stands under a keyword, with the schemas in it closed."""
    if key in ("properties", "$defs", "definitions") and isinstance(value, dict):
        return {name: _close(one) if isinstance(one, dict) else one for name, one in value.items()}
    if key in ("items", "additionalProperties") and isinstance(value, dict):
        return _close(value)
    if key in ("anyOf", "oneOf", "prefixItems") and isinstance(value, list):
        return [_close(one) if isinstance(one, dict) else one for one in value]
    return value


class _Comparison:
    """Tells of the parts of a schema whether they exclude each other: yes only where that is certain."""

    def __init__(self, root: dict[str, Any]) -> None:
        self._root = root
        self._left = _MOST_COMPARISONS

    def is_choice(self, schema: dict[str, Any]) -> bool:
        """Whether a `oneOf` says no more than an `anyOf` would."""
        parts = schema["oneOf"]
        return (
            isinstance(parts, list)
            and "anyOf" not in schema
            and all(self._exclude(one, other) for one, other in combinations(parts, 2))
        )

    def _exclude(self, one: Any, other: Any, depth: int = _DEEPEST_COMPARISON) -> bool:
        """Whether no value holds to both."""
        self._left -= 1
        if self._left < 0 or depth == 0 or not isinstance(one, dict) or not isinstance(other, dict):
            return False
        return (
            self._excludes(one, other, depth - 1)
            or self._excludes(other, one, depth - 1)
            or not _types(one) & _types(other)
            or _have_other_values(one, other)
        )

    def _excludes(self, one: dict[str, Any], other: dict[str, Any], depth: int) -> bool:
        """Whether what stands in the first excludes the second."""
        for key in ("anyOf", "oneOf"):
            if isinstance(parts := one.get(key), list) and all(self._exclude(part, other, depth) for part in parts):
                return True
        if isinstance(parts := one.get("allOf"), list) and any(self._exclude(part, other, depth) for part in parts):
            return True
        target = self._target(one.get("$ref"))
        return (target is not None and self._exclude(target, other, depth)) or self._differ_in_a_property(
            one, other, depth
        )

    def _differ_in_a_property(self, one: dict[str, Any], other: dict[str, Any], depth: int) -> bool:
        """Whether both describe objects, and a property that the first must have excludes the second."""
        if _types(one) | _types(other) != {"object"}:
            return False
        properties, required, others = one.get("properties"), one.get("required"), other.get("properties")
        if not isinstance(properties, dict) or not isinstance(required, list) or not isinstance(others, dict):
            return False
        return any(
            name in properties and name in others and self._exclude(properties[name], others[name], depth)
            for name in required
        )

    def _target(self, reference: Any) -> Any:
        """The schema that a reference within the document leads to."""
        if not isinstance(reference, str) or not reference.startswith("#/"):
            return None
        found: Any = self._root
        for word in reference[2:].split("/"):
            name = word.replace("~1", "/").replace("~0", "~")
            if not isinstance(found, dict) or name not in found:
                return None
            found = found[name]
        return found


def _types(schema: dict[str, Any]) -> set[str]:
    """The types that values may have; a whole number is a number and an integer."""
    given = schema.get("type")
    names = [given] if isinstance(given, str) else given if isinstance(given, list) else _TYPES
    found = {name for name in _TYPES if name in names}
    if "number" in found:
        found.add("integer")
    values = _values(schema)
    return found if values is None else found & {_type_of(value) for value in values}


def _have_other_values(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether both list their values, and there is none that both have."""
    ones, others = _values(one), _values(other)
    if ones is None or others is None:
        return False
    return not {_written(value) for value in ones} & {_written(value) for value in others}


def _values(schema: dict[str, Any]) -> list[Any] | None:
    if "const" in schema:
        return [schema["const"]]
    found = schema.get("enum")
    return found if isinstance(found, list) else None


def _type_of(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, float):
        return "integer" if value.is_integer() else "number"
    kinds = {dict: "object", list: "array", str: "string", int: "integer", type(None): "null"}
    return kinds[type(value)]


def _written(value: Any) -> str:
    """A text that two values share if they are equal in JSON: 1 and 1.0 are, 1 and true are not."""
    return json.dumps(_plain(value), sort_keys=True)


def _plain(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [_plain(one) for one in value]
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    return value
