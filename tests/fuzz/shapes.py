"""Shapes of answers: schemas, regular expressions and grammars are taken or refused, soon, whatever they are."""

import json
import multiprocessing
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from random import Random
from typing import Any

from hypothesis import strategies as st
from pebble import ProcessPool

from fuzz.mutations import json_values, mutated_json
from fuzz.target import property_target
from grammars import random_answer
from random_schemas import DEFINITIONS, SCHEMAS
from spyglass_server.constraints.grammar import ConstraintKind, OutputConstraint, calls_grammar, to_grammar
from spyglass_server.errors import InvalidRequest
from spyglass_server.json_object import read_json_object
from spyglass_server.panics import LibraryPanicked
from spyglass_server.prompt.conversation import Tool

_MAX_CPU_S = 2.0
"""So soon a shape must be taken or refused, of the processor's time: other programs run beside."""
_HANGS_S = 20.0
_ANSWER_BYTES = 40
"""So far an answer goes in a shape that is taken."""

_KEYWORDS: list[Any] = [
    {"type": "string", "pattern": "^(a+)+b{0,99}$", "minLength": 2, "maxLength": 2000},
    {"type": "array", "items": {"type": "integer"}, "minItems": 3, "maxItems": 5000},
    {"type": "number", "minimum": -1.5, "exclusiveMaximum": 1e300, "multipleOf": 0.01},
    {
        "type": "object",
        "patternProperties": {"^[a-z]{1,9}$": {"type": "null"}},
        "minProperties": 1,
        "maxProperties": 99,
    },
    {
        "$ref": "#/$defs/a",
        "$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}, {"type": "string", "format": "date-time"}]}},
    },
    {"allOf": [{"$ref": "#"}, {"properties": {"a": {"$ref": "#/properties/b"}, "b": {"prefixItems": [{}, True]}}}]},
    {"oneOf": [{"const": 1}, {"enum": [2, "3", None, {"a": []}]}], "propertyNames": {"pattern": "^.{1,3}$"}},
    {"type": ["object", "null"], "required": ["a", "b"], "additionalProperties": False, "if": {}, "not": False},
]
_REGEX = (
    *(
        "a",
        "(",
        ")",
        "(?:",
        "[",
        "]",
        "[^",
        "|",
        "*",
        "+",
        "?",
        "{0,9999}",
        "{3}",
        "{",
        "}",
        ".",
        "\\d",
        "\\w",
        "\\p{L}",
        "\\b",
    ),
    *(
        "^",
        "$",
        "(?i)",
        "(?=",
        "(?<!",
        "\\1",
        "\\",
        "&&",
        "~",
        "--",
        "a-z",
        "\\x00",
        "é",
        "😀",
        "\n",
        '"',
        "(?P<n>",
        "{,5}",
    ),
)
_LARK = (
    *(
        "start: ",
        "a",
        "b: ",
        "A: ",
        "\n",
        '"x"',
        "/a+/",
        "/(a+)+b/",
        "|",
        "*",
        "+",
        "?",
        "(",
        ")",
        "{1,9999}",
        "[",
        "]",
        "%json ",
    ),
    *(
        '{"type": "string"}',
        "%ignore /x/",
        "%import common.INT",
        "%regex ",
        "[lazy]",
        "[capture]",
        "<|eot_id|>",
        "&",
        "~",
        "#",
        "//",
        "~ 5",
    ),
    *("start", "%llguidance {}", "\x00", '"', "/", "é", "..", "->", "%grammar {}"),
)

_Shape = tuple[str, str]
"""The name of a kind, and the source."""


def _dumped(value: Any) -> str:
    return json.dumps(value)


_defined = st.builds(
    lambda schema, one, other: schema | {"$defs": {"one": one, "other": other}}, SCHEMAS, DEFINITIONS, DEFINITIONS
)
_schemas = (
    _defined | mutated_json(_KEYWORDS) | _defined.flatmap(lambda one: mutated_json([one, *_KEYWORDS])) | json_values
)
_regexes = st.lists(st.sampled_from(_REGEX), max_size=12).map("".join) | st.text(max_size=20)
_larks = st.one_of(
    st.lists(st.sampled_from(_LARK), max_size=14).map("".join),
    st.lists(st.sampled_from(_LARK), max_size=14).map(lambda words: "start: " + "".join(words)),
    _schemas.map(lambda schema: "start: %json " + _dumped(schema)),
    st.text(max_size=20),
)
_shapes = st.one_of(
    st.tuples(st.just("JSON_SCHEMA"), _schemas.map(_dumped)),
    st.tuples(st.just("JSON_SCHEMA"), _schemas.map(_dumped)),
    st.tuples(st.just("JSON_SCHEMA"), st.text(max_size=30)),
    st.tuples(st.just("REGEX"), _regexes),
    st.tuples(st.just("LARK"), _larks),
    st.tuples(st.just("tools"), st.lists(_schemas, min_size=1, max_size=3).map(_dumped)),
)


def _judge(shape: _Shape) -> tuple[str, float]:
    """Runs in a process of its own. What became of a shape, and how much of the processor's time that took."""
    kind, source = shape
    began = time.process_time()
    try:
        grammar = _tools(source) if kind == "tools" else to_grammar(OutputConstraint(ConstraintKind[kind], source))
    except InvalidRequest as refusal:
        assert refusal.field
        assert "\n" not in refusal.message
        refusal.message.encode()
        assert not _is_panic(refusal), "the library panics, and writes what it was given to the log"
        outcome = "refused"
    else:
        outcome = "taken"
        random_answer(grammar, Random(source), _ANSWER_BYTES)
    return f"{kind} {outcome}", time.process_time() - began


def _is_panic(error: BaseException | None) -> bool:
    while error is not None and not isinstance(error, LibraryPanicked):
        error = error.__cause__
    return error is not None


def _tools(source: str) -> str:
    """As the codec makes tools of what a caller sends."""
    tools = []
    for number, schema in enumerate(json.loads(source)):
        parameters = read_json_object(json.dumps(schema))
        if parameters is None or parameters.get("type", "object") != "object":
            raise InvalidRequest("a tool's parameters are the schema of an object", field="chat.tools")
        tools.append(Tool(f"f{number}", "", parameters, is_strict=number % 2 == 0))
    return calls_grammar(tools, must_call=len(tools) != 2, several=len(tools) != 1)


@contextmanager
def _opened() -> Iterator[Callable[[_Shape], str]]:
    """What hangs can only be ended with its process."""
    with ProcessPool(max_workers=1, context=multiprocessing.get_context("spawn")) as pool:

        def check(shape: _Shape) -> str:
            outcome, took_s = pool.schedule(_judge, args=(shape,), timeout=_HANGS_S).result()
            assert took_s < _MAX_CPU_S, f"it took {took_s:.1f} s"
            return str(outcome)

        try:
            yield check
        finally:
            pool.stop()  # type: ignore[no-untyped-call]


SHAPES = property_target("shapes", _shapes, _opened, batch_size=2000, smoke_size=150)
