"""The shapes that answers may be asked to have, as grammars.

Owns what may be asked for and the refusals. Compiles nothing to keep: a grammar is checked here, and compiled for the
vocabulary where answers are made.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cache
from typing import TYPE_CHECKING, Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from spyglass_server.engine.types import GRAMMAR_LIMITS
from spyglass_server.errors import InvalidRequest
from spyglass_server.prompt.schemas import ascii_classes, exact
from spyglass_server.prompt.template import Tool

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

_LIMITS = LLParserLimits(**GRAMMAR_LIMITS)
MAX_JSON_DEPTH = 64
_MAX_CHARACTERS = 256 << 10
_JSON_FORM: "JsonCompileOptions" = {
    "whitespace_flexible": False,
    "whitespace_pattern": None,
    "item_separator": ", ",
    "key_separator": ": ",
    "coerce_one_of": False,
    "lenient": False,
}
"""JSON as models write it on one line: free white space is a place where an answer can go on for ever. All of a schema
holds, whatever it says of that itself."""
_MAX_REASON_CHARACTERS = 300
_NOTHING = "NoExtensionBias"
"""What the library says where no text holds to a grammar."""
_FREE = r"/[ \t\r\n]*([^{\[< \t\r\n](.|\n)*)?/"
"""Text that begins in no way in which a call can begin."""
_MOST_CALLS = 16
"""In one answer that must call tools."""


class Kind(Enum):
    """What an answer's shape is described by; the value is the field that holds it."""

    JSON_OBJECT = "format.json_object"
    JSON_SCHEMA = "format.json_schema.schema_json"
    REGEX = "format.regex"
    LARK = "format.grammar"


@dataclass(frozen=True, slots=True)
class Shape:
    """A shape for answers, in the notation of its kind."""

    kind: Kind
    source: str = ""


def to_grammar(shape: Shape) -> str:
    """The grammar of a shape, in llguidance's notation.

    Raises:
        InvalidRequest: the shape is wrong, or asks for something that could not be held to.
    """
    if len(shape.source) > _MAX_CHARACTERS:
        raise _refusal(shape, f"it has more than {_MAX_CHARACTERS} characters")
    match shape.kind:
        case Kind.JSON_OBJECT:
            grammar = _of_schema({"type": "object"})
        case Kind.JSON_SCHEMA:
            try:
                grammar = _of_schema(_narrowed(_read_schema(shape)))
            except ValueError as error:
                raise _refusal(shape, str(error)) from error
        case Kind.REGEX:
            grammar = LLMatcher.grammar_from_regex(ascii_classes(shape.source))
        case Kind.LARK:
            grammar = LLMatcher.grammar_from_lark(shape.source)
    if reason := _fault(grammar):
        raise _refusal(shape, reason)
    return grammar


def calls_grammar(tools: Sequence[Tool], must_call: bool, several: bool) -> str:
    """The grammar of answers that call one of `tools`, or several times some of them.

    Where they need not, it says only how calls look if there are any: that they hold to the schemas of strict tools.

    Raises:
        InvalidRequest: the schema of a strict tool asks for something that could not be held to.
    """
    reason = ""
    for narrow in (must_call, False):  # schemas that nobody insists on may be too much together
        grammar = _calls(tools, must_call, several, narrow)
        reason = _fault(grammar)
        if not reason:
            return grammar
    raise _refuse(reason, "chat.tools")


def _calls(tools: Sequence[Tool], must_call: bool, several: bool, narrow: bool) -> str:
    """`narrow`: arguments hold to the schemas of tools that are not strict, too, where they can."""
    rules = ["start: calls" if must_call else f"start: calls | free\nfree: {_FREE}"]
    rules.append(f'calls: call ("; " call){{0,{_MOST_CALLS - 1}}}' if several else "calls: call")
    rules.append("call: " + " | ".join(f"call_{i}" for i in range(len(tools))))
    for i, tool in enumerate(tools):
        before = json.dumps(f'{{"name": {json.dumps(tool.name)}, "parameters": ')
        rules.append(f'call_{i}: {before} {_arguments(tool, i, narrow)} "}}"')
    return LLMatcher.grammar_from_lark("\n".join(rules))


def _arguments(tool: Tool, number: int, narrow: bool) -> str:
    """What the arguments of a call hold to: the schema, or where that is neither asked for nor possible any object."""
    if tool.is_strict or narrow:
        try:
            schema = {**_narrowed(tool.parameters), "type": "object", "x-guidance": _JSON_FORM}
            written = "%json " + json.dumps(schema)
            reason = _fault(LLMatcher.grammar_from_lark(f"start: {written}"))
        except ValueError as error:
            reason = str(error)
        if not reason:
            return written
        if tool.is_strict:
            raise _refuse(reason, f"chat.tools[{number}].parameters_json")
    return "%json " + json.dumps({"type": "object", "x-guidance": _JSON_FORM})


def read_json_object(text: str) -> dict[str, Any] | None:
    """Reads an object that can be written again: no NaN, no infinity, no lone surrogate, not too deep."""
    try:
        found = json.loads(text)
        json.dumps(found, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and not _is_deeper(found, MAX_JSON_DEPTH) else None


def _is_deeper(value: Any, depth: int) -> bool:
    """Whether objects and lists stand in each other more than `depth` times."""
    if not isinstance(value, dict | list):
        return False
    return depth == 0 or any(
        _is_deeper(item, depth - 1) for item in (value.values() if isinstance(value, dict) else value)
    )


def _of_schema(schema: dict[str, Any]) -> str:
    return LLMatcher.grammar_from_json_schema(schema, overrides=_JSON_FORM)


@cache
def _bytes() -> LLTokenizer:
    return LLTokenizer("byte")


def _fault(grammar: str) -> str:
    """Why answers cannot be held to a grammar; nothing where they can at least begin to be."""
    if reason := LLMatcher.validate_grammar(grammar, limits=_LIMITS):
        return reason
    matcher = LLMatcher(_bytes(), grammar, log_level=0, limits=_LIMITS)
    matcher.compute_bitmask()
    found = matcher.get_error()
    return "there is no such answer" if found.startswith(_NOTHING) else found


def _narrowed(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema that is held exactly, and whose objects have no properties but those that it names, where it leaves that
    open.

    What holds to it holds to the schema too; a model that may add properties seldom knows when to stop. A schema that
    has objects of several parts stays open: each part knows the properties of its own only. So does one with a `oneOf`
    that is refused: once closed, its parts could seem to exclude each other.

    Raises ValueError for one that asks for what could hold only roughly.
    """
    schema = exact(schema)
    if any(map(_is_in_parts, _objects(schema))):
        return schema
    has_choice = any("oneOf" in found for found in _objects(schema))
    if has_choice and LLMatcher.validate_grammar(_of_schema(schema), limits=_LIMITS):
        return schema
    return _close(schema)


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    """All objects of a document."""
    if isinstance(value, list):
        for one in value:
            yield from _objects(one)
    elif isinstance(value, dict):
        yield value
        for one in value.values():
            yield from _objects(one)


def _is_in_parts(schema: dict[str, Any]) -> bool:
    return "allOf" in schema or ("properties" in schema and bool(schema.keys() & {"anyOf", "oneOf", "$ref"}))


def _close(schema: dict[str, Any]) -> dict[str, Any]:
    result = {key: _closed_in(key, value) for key, value in schema.items()}
    properties, required = schema.get("properties"), schema.get("required")
    if isinstance(properties, dict) and not schema.keys() & {"additionalProperties", "patternProperties"}:
        names = [name for name in required if isinstance(name, str)] if isinstance(required, list) else []
        if properties.keys() >= set(names):
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


def _read_schema(shape: Shape) -> dict[str, Any]:
    schema = read_json_object(shape.source)
    if schema is None:
        raise _refusal(shape, f"it is no JSON object, at most {MAX_JSON_DEPTH} deep")
    return schema


def _refusal(shape: Shape, reason: str) -> InvalidRequest:
    return _refuse(reason, shape.kind.value)


def shape_failed(field: str) -> InvalidRequest:
    """For an answer that has begun and can have its shape no more: it costs too much, or cannot go on."""
    return _refuse("the answer cannot go on in it, or not at a bearable cost", field)


def _refuse(reason: str, field: str) -> InvalidRequest:
    return InvalidRequest(
        f"answers cannot be held to this shape: {' '.join(reason.split())[:_MAX_REASON_CHARACTERS]}",
        field=field,
        reason="invalid_format",
    )
