"""Turns an output constraint into a grammar in llguidance's notation, or refuses it.

Grammars are only checked here; the engine process compiles them for the model's vocabulary.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from llguidance import LLMatcher

from spyglass_server.constraints import lark
from spyglass_server.constraints.enforcement import enforced
from spyglass_server.constraints.library import JSON_FORM, fault, one_line, schema_grammar, syntax_fault, without_text
from spyglass_server.constraints.patterns import ascii_classes
from spyglass_server.constraints.schemas import SchemaRefused, quoted
from spyglass_server.errors import InvalidRequest
from spyglass_server.json_object import MAX_JSON_DEPTH, read_json_object
from spyglass_server.prompt.conversation import Tool

_MAX_CHARACTERS = 256 << 10
_MAX_REASON_CHARACTERS = 300
_FREE = r"/[ \t\r\n]*([^{\[< \t\r\n](.|\n)*)?/"
"""Text that does not begin as a call can."""
_MAX_CALLS = 16
"""Maximum number of calls in one answer under a calls grammar."""


class ConstraintKind(Enum):
    """How an answer's shape is described; the value is the field that holds the description."""

    JSON_OBJECT = "format.json_object"
    JSON_SCHEMA = "format.json_schema.schema_json"
    REGEX = "format.regex"
    LARK = "format.grammar"


@dataclass(frozen=True, slots=True)
class OutputConstraint:
    """The shape of an answer, in the notation of its kind."""

    kind: ConstraintKind
    source: str = ""


def to_grammar(shape: OutputConstraint) -> str:
    """Returns the grammar of a shape, in llguidance's notation.

    Raises:
        InvalidRequest: the shape is wrong, or cannot be enforced.
    """
    try:
        if len(shape.source) > _MAX_CHARACTERS:
            raise ValueError(f"it has more than {_MAX_CHARACTERS} characters")
        match shape.kind:
            case ConstraintKind.JSON_OBJECT:
                return schema_grammar({"type": "object"})
            case ConstraintKind.JSON_SCHEMA:
                return schema_grammar(enforced(_read_schema(shape.source)))
            case ConstraintKind.REGEX:
                return _of_regex(shape.source)
            case ConstraintKind.LARK:
                return _of_lark(shape.source)
    except ValueError as error:
        raise _refuse(str(error), shape.kind.value) from error


def calls_grammar(tools: Sequence[Tool], must_call: bool, several: bool) -> str:
    """Returns the grammar of answers that call one of `tools`, or with `several` make one or more calls.

    Without `must_call`, it only constrains the calls that answers may make: they follow the schemas of strict tools.

    Raises:
        InvalidRequest: the schema of a strict tool cannot be enforced.
    """
    reason = ""
    for narrow in (must_call, False):  # schemas of tools that are not strict may be too costly together
        grammar = _calls(tools, must_call, several, narrow)
        reason = fault(grammar)
        if not reason:
            return grammar
    raise _refuse(f"the tools are too much together ({without_text(reason)})", "chat.tools")


def _calls(tools: Sequence[Tool], must_call: bool, several: bool, narrow: bool) -> str:
    """`narrow`: if possible, arguments also follow the schemas of tools that are not strict."""
    rules = ["start: calls" if must_call else f"start: calls | free\nfree: {_FREE}"]
    rules.append(f'calls: call ("; " call){{0,{_MAX_CALLS - 1}}}' if several else "calls: call")
    rules.append("call: " + " | ".join(f"call_{i}" for i in range(len(tools))))
    for i, tool in enumerate(tools):
        before = json.dumps(f'{{"name": {json.dumps(tool.name)}, "parameters": ')
        rules.append(f'call_{i}: {before} {_arguments(tool, i, narrow)} "}}"')
    return LLMatcher.grammar_from_lark("\n".join(rules))


def _arguments(tool: Tool, number: int, narrow: bool) -> str:
    """Returns the rule for a call's arguments: the schema or, if it is neither required nor enforceable, any object."""
    if tool.is_strict or narrow:
        try:
            schema = enforced({**tool.parameters, "type": "object"})
            return "%json " + json.dumps({**schema, "x-guidance": JSON_FORM})
        except SchemaRefused as refused:
            if tool.is_strict:
                raise _refuse(str(refused), f"chat.tools[{number}].parameters_json") from refused
    return "%json " + json.dumps({"type": "object", "x-guidance": JSON_FORM})


def _read_schema(source: str) -> dict[str, Any]:
    schema = read_json_object(source)
    if schema is None:
        raise ValueError(f"it is not a JSON object, at most {MAX_JSON_DEPTH} deep")
    return schema


def _of_regex(source: str) -> str:
    grammar = LLMatcher.grammar_from_regex(ascii_classes(source))
    if reason := fault(grammar):
        raise ValueError(f"{quoted(source)}: {without_text(reason)}")
    return grammar


def _of_lark(source: str) -> str:
    lark.check(source)
    if reason := syntax_fault(LLMatcher.grammar_from_lark(source)):
        raise ValueError(reason)
    grammar = LLMatcher.grammar_from_lark(lark.without_forcing(source))
    if reason := fault(grammar):
        raise ValueError(reason)
    return grammar


def constraint_failed(field: str) -> InvalidRequest:
    """Returns the error for a running answer that can no longer follow its shape, or only at too high a cost."""
    return _refuse("the answer cannot continue in it at an acceptable cost", field)


def _refuse(reason: str, field: str) -> InvalidRequest:
    return InvalidRequest(
        f"this format cannot be enforced: {one_line(reason)[:_MAX_REASON_CHARACTERS]}",
        field=field,
        reason="invalid_format",
    )
