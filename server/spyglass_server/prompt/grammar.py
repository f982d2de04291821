"""The shapes that answers may be asked to have, as grammars.

Owns what may be asked for and the refusals. Compiles nothing to keep: a grammar is checked here, and compiled for the
vocabulary where answers are made.
"""

import json
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

from llguidance import LLMatcher, LLParserLimits

from spyglass_server.engine.types import GRAMMAR_LIMITS
from spyglass_server.errors import InvalidRequest

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

_LIMITS = LLParserLimits(**GRAMMAR_LIMITS)
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
            grammar = _of_schema(_read_schema(shape))
        case Kind.REGEX:
            grammar = LLMatcher.grammar_from_regex(shape.source)
        case Kind.LARK:
            grammar = LLMatcher.grammar_from_lark(shape.source)
    if reason := LLMatcher.validate_grammar(grammar, limits=_LIMITS):
        raise _refusal(shape, reason)
    return grammar


def _of_schema(schema: dict[str, Any]) -> str:
    return LLMatcher.grammar_from_json_schema(schema, overrides=_JSON_FORM)


def _read_schema(shape: Shape) -> dict[str, Any]:
    try:
        schema = json.loads(shape.source)
    except (ValueError, RecursionError):
        raise _refusal(shape, "it is not JSON") from None
    if not isinstance(schema, dict):
        raise _refusal(shape, "it is not a JSON object")
    return schema


def _refusal(shape: Shape, reason: str) -> InvalidRequest:
    return InvalidRequest(
        f"answers cannot be held to this shape: {' '.join(reason.split())[:_MAX_REASON_CHARACTERS]}",
        field=shape.kind.value,
        reason="invalid_format",
    )
