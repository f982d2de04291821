"""Turns an output constraint into a grammar in llguidance's notation, or refuses it.

Grammars are only checked here; the engine process compiles them for the model's vocabulary.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from llguidance import LLMatcher

from spyglass_server.constraints.enforcement import enforced
from spyglass_server.constraints.lark import check_nesting, check_schemas, without_forcing
from spyglass_server.constraints.library import JSON_FORM, fault, one_line, schema_grammar, syntax_fault, without_text
from spyglass_server.constraints.patterns import ascii_classes
from spyglass_server.constraints.schemas import SchemaRefused, quoted
from spyglass_server.errors import InvalidRequest
from spyglass_server.json_object import MAX_JSON_DEPTH, read_json_object
from spyglass_server.prompt.conversation import Tool

_MAX_CHARACTERS = 256 << 10
_MAX_REASON_CHARACTERS = 300
_FREE = r"/[ \t\r\n]*([^{\[< \t\r\n](.|\n)*)?/"
"""Text that begins in no way in which a call can begin."""
_MAX_CALLS = 16
"""In one answer that must call tools."""


class ConstraintKind(Enum):
    """What an answer's shape is described by; the value is the field that holds it."""

    JSON_OBJECT = "format.json_object"
    JSON_SCHEMA = "format.json_schema.schema_json"
    REGEX = "format.regex"
    LARK = "format.grammar"


@dataclass(frozen=True, slots=True)
class OutputConstraint:
    """A shape for answers, in the notation of its kind."""

    kind: ConstraintKind
    source: str = ""


def to_grammar(shape: OutputConstraint) -> str:
    """The grammar of a shape, in llguidance's notation.

    Raises:
        InvalidRequest: the shape is wrong, or asks for something that could not be held to.
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
    """The grammar of answers that call one of `tools`, or several times some of them.

    Where they need not, it says only how calls look if there are any: that they hold to the schemas of strict tools.

    Raises:
        InvalidRequest: the schema of a strict tool asks for something that could not be held to.
    """
    reason = ""
    for narrow in (must_call, False):  # schemas that nobody insists on may be too much together
        grammar = _calls(tools, must_call, several, narrow)
        reason = fault(grammar)
        if not reason:
            return grammar
    raise _refuse(f"the tools are too much together ({without_text(reason)})", "chat.tools")


def _calls(tools: Sequence[Tool], must_call: bool, several: bool, narrow: bool) -> str:
    """`narrow`: arguments hold to the schemas of tools that are not strict, too, where they can."""
    rules = ["start: calls" if must_call else f"start: calls | free\nfree: {_FREE}"]
    rules.append(f'calls: call ("; " call){{0,{_MAX_CALLS - 1}}}' if several else "calls: call")
    rules.append("call: " + " | ".join(f"call_{i}" for i in range(len(tools))))
    for i, tool in enumerate(tools):
        before = json.dumps(f'{{"name": {json.dumps(tool.name)}, "parameters": ')
        rules.append(f'call_{i}: {before} {_arguments(tool, i, narrow)} "}}"')
    return LLMatcher.grammar_from_lark("\n".join(rules))


def _arguments(tool: Tool, number: int, narrow: bool) -> str:
    """What the arguments of a call hold to: the schema, or where that is neither asked for nor possible any object."""
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
    check_nesting(source)
    check_schemas(source)
    if reason := syntax_fault(LLMatcher.grammar_from_lark(source)):
        raise ValueError(reason)
    grammar = LLMatcher.grammar_from_lark(without_forcing(source))
    if reason := fault(grammar):
        raise ValueError(reason)
    return grammar


def constraint_failed(field: str) -> InvalidRequest:
    """For an answer in progress that can no longer have its shape: it costs too much, or cannot go on."""
    return _refuse("the answer cannot continue in it at an acceptable cost", field)


def _refuse(reason: str, field: str) -> InvalidRequest:
    return InvalidRequest(
        f"this format cannot be enforced: {one_line(reason)[:_MAX_REASON_CHARACTERS]}",
        field=field,
        reason="invalid_format",
    )
