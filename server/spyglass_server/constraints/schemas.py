"""Translates JSON schemas into a vocabulary that llguidance enforces in every detail.

Keywords that constrain are either enforced or refused, whichever `$schema` is named; all others, including those that
no draft defines, are annotations and are dropped. Whatever is valid against the translated schema is valid against the
original one. Refusals contain the JSON pointer of the schema at fault and quote the caller's own text.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from spyglass_server.constraints.patterns import exact_pattern
from spyglass_server.constraints.property_names import restrict_names
from spyglass_server.constraints.references import Place, References

_MAX_EXACT = 2**53
"""The library's numbers have 53 bits."""
_TYPES = ("null", "boolean", "number", "string", "array", "object")
_TAKEN = ("type", "required", "enum", "const")
_COUNTS = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")
_BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", *_COUNTS)
_SCHEMA = ("items", "additionalProperties")
_SCHEMAS = ("allOf", "anyOf", "oneOf", "prefixItems")
_NAMED = ("properties", "patternProperties")
_REFUSED: dict[str, tuple[Any, ...]] = {
    "contains": (),
    "dependencies": ({},),
    "dependentRequired": ({},),
    "dependentSchemas": ({},),
    "disallow": ([],),
    "divisibleBy": (),
    "extends": ({}, []),
    "if": (),
    "not": (False,),
    "unevaluatedItems": (True, {}),
    "unevaluatedProperties": (True, {}),
    "uniqueItems": (False,),
    "$dynamicRef": (),
    "$recursiveRef": (),
}
"""Keywords that constrain in some draft but are not enforced, and the values with which they constrain nothing."""

FORMATS = ("date", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "time", "uri", "uuid")
"""Formats that are enforced; all others are annotations."""
_DATE = (
    r"(?:(?:[0-9]{3}[1-9]|[0-9]{2}[1-9][0-9]|[0-9][1-9][0-9]{2}|[1-9][0-9]{3})-"
    r"(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8]))"
    r"|(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)-02-29)"
)
_TIME = r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]+)?(?:[zZ]|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
_FORMAT_PATTERNS = {
    "date": f"^{_DATE}$",
    "time": f"^{_TIME}$",
    "date-time": f"^{_DATE}[tT]{_TIME}$",
    "uuid": "^[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}$",
}
"""Replacements for the library's patterns, which allow February 29 in every year and leap seconds in every minute,
unlike most readers."""
_OF_NAMES = {"type", "const", "enum", "pattern", "format", "minLength", "maxLength"}
_VOCABULARY = {*_TAKEN, *_BOUNDS, *_SCHEMA, *_SCHEMAS, *_NAMED, *_REFUSED, *_OF_NAMES, "$ref", "propertyNames"}
"""All keywords that constrain; others only modify these, or have no effect."""
_DEFINITION = "#/$defs/"
_MAX_QUOTED_CHARACTERS = 100


class SchemaRefused(ValueError):
    """The schema is wrong, or cannot be enforced."""

    def __init__(self, pointer: str, reason: str) -> None:
        super().__init__(f"{pointer}: {reason}")


@dataclass(frozen=True, slots=True)
class Translation:
    """A schema whose references all point to its own `$defs`."""

    schema: dict[str, Any]
    origins: dict[int, Place] = field(default_factory=dict)
    """The origin of each translated schema, by its id()."""
    patterns: dict[str, str] = field(default_factory=dict)
    """The caller's original text of each translated pattern."""


def translate(schema: dict[str, Any]) -> Translation:
    """Translates a schema. Raises SchemaRefused if any of it is not enforced, or only approximately."""
    return _Translator(schema).translate()


def subschemas(schema: dict[str, Any]) -> Iterator[Any]:
    """Yields the direct subschemas of a translated schema, without its `$defs`."""
    for keyword, value in schema.items():
        if keyword in _SCHEMA:
            yield value
        elif keyword in _SCHEMAS:
            yield from value
        elif keyword in _NAMED:
            yield from value.values()


def quoted(value: Any) -> str:
    """Returns the caller's own text, shortened if it is long."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _MAX_QUOTED_CHARACTERS else text[:_MAX_QUOTED_CHARACTERS] + "…"


class _Translator:
    def __init__(self, schema: dict[str, Any]) -> None:
        self._references = References(schema)
        self._definitions: dict[str, str] = {}
        """The names of referenced schemas, by their pointers."""
        self._waiting: list[tuple[str, Place]] = []
        self._result = Translation({})

    def translate(self) -> Translation:
        root = self._references.root
        schema = self._schema(root)
        definitions = {name: schema if place is root else self._schema(place) for name, place in self._waiting}
        if schema is False:
            raise SchemaRefused("#", "no answer satisfies it")
        if root.pointer in self._definitions:
            schema = {"$ref": _DEFINITION + self._definitions[root.pointer]}
        self._result.schema.update(schema | ({"$defs": definitions} if definitions else {}))
        return self._result

    def _schema(self, place: Place) -> Any:
        if isinstance(place.schema, bool):
            return place.schema
        if not isinstance(place.schema, dict):
            raise SchemaRefused(place.pointer, f"{quoted(place.schema)} is not a schema")
        result = self._keywords(place)
        if "propertyNames" in place.schema:
            self._restrict_names(result, place)
        if "not" in place.schema and _says_nothing(place.schema["not"]):
            return False
        if "oneOf" in result:  # beside another keyword, the library resolves references to see what parts exclude
            result.setdefault("type", list(_TYPES))
        self._result.origins[id(result)] = place
        return result

    def _keywords(self, place: Place) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for keyword, value in place.schema.items():
            self._add(result, keyword, value, place)
        return result

    def _add(self, result: dict[str, Any], keyword: str, value: Any, place: Place) -> None:
        """Translates a keyword. Keywords not handled here are annotations."""
        if keyword in _TAKEN:
            _check_taken(keyword, value, place)
            result[keyword] = value
        elif keyword in _BOUNDS:
            result[keyword] = _bound(keyword, value, place)
        elif keyword == "pattern":
            self._add_pattern(result, self._pattern(value, place))
        elif keyword == "format":
            self._add_format(result, value, place)
        elif keyword == "$ref":
            result["$ref"] = self._reference(place)
        elif keyword in _SCHEMA or keyword in _SCHEMAS or keyword in _NAMED or keyword == "additionalItems":
            self._add_subschemas(result, keyword, value, place)
        elif keyword in _REFUSED:
            _check_refused(keyword, value, place)

    def _add_subschemas(self, result: dict[str, Any], keyword: str, value: Any, place: Place) -> None:
        before = keyword
        if isinstance(place.schema.get("items"), list):  # as before 2020-12
            keyword = {"items": "prefixItems", "additionalItems": "items", "prefixItems": ""}.get(keyword, keyword)
        if keyword in _SCHEMAS and isinstance(value, list):
            result[keyword] = [self._schema(place.below(before, i)) for i in range(len(value))]
        elif keyword in _NAMED and isinstance(value, dict):
            translated = {name: self._schema(place.below(before, name)) for name in value}
            if keyword == "patternProperties":
                translated = {self._pattern(name, place): one for name, one in translated.items()}
            result[keyword] = translated
        elif keyword in _SCHEMA:
            result[keyword] = self._schema(place.below(before))
        elif keyword != "additionalItems":
            raise SchemaRefused(place.pointer, f"{before} {quoted(value)} is wrong here")

    def _pattern(self, pattern: Any, place: Place) -> str:
        if not isinstance(pattern, str):
            raise SchemaRefused(place.pointer, f"pattern {quoted(pattern)} is not a string")
        try:
            exact = exact_pattern(pattern)
        except ValueError as error:
            raise SchemaRefused(place.pointer, f"pattern {quoted(pattern)}: {error}") from error
        self._result.patterns[exact] = pattern
        return exact

    def _add_format(self, result: dict[str, Any], value: Any, place: Place) -> None:
        if not isinstance(value, str):
            raise SchemaRefused(place.pointer, f"format {quoted(value)} is not a string")
        if pattern := _FORMAT_PATTERNS.get(value):
            self._add_pattern(result, pattern)
        elif value in FORMATS:
            result["format"] = value

    def _add_pattern(self, result: dict[str, Any], pattern: str) -> None:
        """Adds a pattern; a second one applies in addition to the first."""
        if "pattern" in result:
            result.setdefault("allOf", []).append({"pattern": pattern})
        else:
            result["pattern"] = pattern

    def _reference(self, place: Place) -> str:
        target = self._target(place)
        if target.pointer not in self._definitions:
            self._definitions[target.pointer] = str(len(self._definitions))
            self._waiting.append((self._definitions[target.pointer], target))
        return _DEFINITION + self._definitions[target.pointer]

    def _target(self, place: Place) -> Place:
        reference = place.schema["$ref"]
        target = self._references.find(reference, place.base) if isinstance(reference, str) else None
        if target is None:
            raise SchemaRefused(place.pointer, f"$ref {quoted(reference)} is not in this schema")
        return target

    def _restrict_names(self, result: dict[str, Any], place: Place) -> None:
        names, seen = place.below("propertyNames"), set[str]()
        while _is_reference(names.schema):
            if names.pointer in seen:
                raise SchemaRefused(place.pointer, "propertyNames refers to itself")
            seen.add(names.pointer)
            names = self._target(names)
        if not isinstance(names.schema, bool | dict):
            raise SchemaRefused(names.pointer, f"{quoted(names.schema)} is not a schema")
        if others := [] if isinstance(names.schema, bool) else sorted(_constraining(names.schema) - _OF_NAMES):
            raise SchemaRefused(place.pointer, f"propertyNames with {others[0]} is not enforced")
        asked = names.schema if isinstance(names.schema, bool) else self._keywords(names)
        try:
            restrict_names(result, asked)
        except ValueError as error:
            raise SchemaRefused(place.pointer, f"propertyNames {error}") from error


def _constraining(schema: dict[str, Any]) -> set[str]:
    keywords = schema.keys() & _VOCABULARY
    return keywords if schema.get("format") in FORMATS else keywords - {"format"}


def _says_nothing(schema: Any) -> bool:
    return schema is True or (isinstance(schema, dict) and not _constraining(schema))


def _is_reference(schema: Any) -> bool:
    """Whether a schema for names is a reference and nothing else."""
    return (
        isinstance(schema, dict)
        and _constraining(schema) - {"type"} == {"$ref"}
        and schema.get("type", "string") == "string"
    )


def _check_refused(keyword: str, value: Any, place: Place) -> None:
    if keyword == "if" and not place.schema.keys() & {"then", "else"}:
        return
    if keyword == "not" and _says_nothing(value):
        return
    if not any(value == nothing and type(value) is type(nothing) for nothing in _REFUSED[keyword]):
        raise SchemaRefused(place.pointer, f"{keyword} is not enforced")


def _check_taken(keyword: str, value: Any, place: Place) -> None:
    """Keeps wrong values from the library, which panics if it truncates a quotation within a character."""
    types = value if keyword == "type" and isinstance(value, list) else [value]
    if keyword == "type" and not all(isinstance(one, str) and one in (*_TYPES, "integer") for one in types):
        raise SchemaRefused(place.pointer, f"type {quoted(value)} is not a type or a list of types")
    if keyword == "required" and not (isinstance(value, list) and all(isinstance(name, str) for name in value)):
        raise SchemaRefused(place.pointer, f"required {quoted(value)} is not a list of names")
    if keyword == "enum" and not isinstance(value, list):
        raise SchemaRefused(place.pointer, f"enum {quoted(value)} is not a list")
    if keyword in ("enum", "const"):
        _check_numbers(value, place)


def _bound(keyword: str, value: Any, place: Place) -> float:
    """Returns a bound that is exact, or that narrows the range to exact numbers."""
    if keyword.startswith("exclusive") and isinstance(value, bool):  # as in draft 4
        return value
    if not _is_number(value):
        raise SchemaRefused(place.pointer, f"{keyword} {quoted(value)} is not a number")
    if keyword in _COUNTS and (value < 0 or value != int(value)):
        raise SchemaRefused(place.pointer, f"{keyword} {quoted(value)} is not a non-negative integer")
    if keyword == "multipleOf" and value <= 0:
        raise SchemaRefused(place.pointer, f"multipleOf {quoted(value)} is not above 0")
    return _exact(keyword, int(value) if keyword in _COUNTS else value, place)


def _exact(keyword: str, value: float, place: Place) -> float:
    if keyword in ("maximum", "exclusiveMaximum") and value > _MAX_EXACT:
        return _MAX_EXACT
    if keyword in ("minimum", "exclusiveMinimum") and value < -_MAX_EXACT:
        return -_MAX_EXACT
    if abs(value) > _MAX_EXACT or (abs(value) == _MAX_EXACT and keyword.startswith("exclusive")):
        raise SchemaRefused(place.pointer, f"{keyword} is beyond 2^53")
    return value


def _check_numbers(value: Any, place: Place) -> None:
    if isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            _check_numbers(one, place)
    elif isinstance(value, int) and abs(value) > _MAX_EXACT:
        raise SchemaRefused(place.pointer, f"{value} is beyond 2^53")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
