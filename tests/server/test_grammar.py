"""ThreadedGrammarCompiler of JSON schemas: what they let through holds to the schema."""

import itertools
import json
import re
import threading
from random import Random
from typing import Any, Literal

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from grammars import lets_through, random_answer
from random_schemas import DEFINITIONS, OBJECTS, SCHEMAS, VALUES
from spyglass_server.constraints.grammar import ConstraintKind, OutputConstraint, to_grammar
from spyglass_server.errors import InvalidRequest


@given(SCHEMAS, DEFINITIONS, DEFINITIONS, st.lists(VALUES | OBJECTS, min_size=20, max_size=20))
def test_what_is_let_through_holds_to_the_schema(
    schema: dict[str, Any], one: dict[str, Any], other: dict[str, Any], values: list[Any]
) -> None:
    whole = schema | {"$defs": {"one": one, "other": other}}
    try:
        grammar = to_grammar(OutputConstraint(ConstraintKind.JSON_SCHEMA, json.dumps(whole)))
    except InvalidRequest:
        return
    schema_holds = jsonschema.Draft202012Validator(whole).is_valid
    for value in values:
        assert schema_holds(value) or not lets_through(grammar, json.dumps(value)), (whole, value)


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: int


class Dog(BaseModel):
    kind: Literal["dog"]
    name: str


class Owner(BaseModel):
    pet: Cat | Dog = Field(discriminator="kind")


def test_a_union_that_a_property_tells_apart() -> None:
    grammar = to_grammar(OutputConstraint(ConstraintKind.JSON_SCHEMA, json.dumps(Owner.model_json_schema())))
    assert lets_through(grammar, '{"pet": {"kind": "cat", "lives": 9}}')
    assert not lets_through(grammar, '{"pet": {"kind": "dog", "lives": 9}}')
    assert not lets_through(grammar, '{"pet": {"kind": "cat", "lives": 9, "more": 1}}')


@pytest.mark.parametrize(
    "parts",
    [
        [{"type": "integer"}, {"type": "number"}],
        [{"type": "object", "properties": {"a": {}}, "required": ["a"]}, {"type": "object", "properties": {"b": {}}}],
        [{"type": [{}, 5]}, {"type": 7}],
        [{"type": "object", "required": [[]]}, {"type": "object", "required": [{}]}],
    ],
)
def test_parts_that_may_not_exclude_each_other_are_refused(parts: list[Any]) -> None:
    with pytest.raises(InvalidRequest, match="cannot be enforced"):
        to_grammar(OutputConstraint(ConstraintKind.JSON_SCHEMA, json.dumps({"oneOf": parts})))


@pytest.mark.parametrize(
    "wrong", ['{"properties": {"a": {}}, "required": [{}]}', '{"properties": 5, "required": ["a"]}']
)
def test_schemas_that_are_wrong_are_refused(wrong: str) -> None:
    with pytest.raises(InvalidRequest, match="cannot be enforced"):
        to_grammar(OutputConstraint(ConstraintKind.JSON_SCHEMA, wrong))


@pytest.mark.parametrize(
    "pattern",
    [
        r'^[^"\\]{1,3}$',
        r'^[^"]{1,3}$',
        r"^[^\\]{1,3}$",
        r'^[^\w\\"]{1,2}$',
        r"^[\x00-\x1fb]{1,2}$",
        r"^[\n\t]{1,2}$",
        r"^[^\]a]{1,2}$",
        r"^\[[ab]\]$",
        r"^a|[^b]+$",
        r"^.{2}$",
    ],
)
def test_a_string_that_is_let_through_has_its_pattern(pattern: str) -> None:
    grammar = to_grammar(
        OutputConstraint(ConstraintKind.JSON_SCHEMA, json.dumps({"type": "string", "pattern": pattern}))
    )
    letters = ["", *'"\\/ab[]é\n\x01']
    found = 0
    for text in map("".join, itertools.product(letters, repeat=3)):
        if lets_through(grammar, json.dumps(text, ensure_ascii=False)):
            assert re.search(pattern, text, re.ASCII), text
            found += 1
    assert found


@pytest.mark.parametrize("pattern", [r"^\P{P}+$", r"^\PP$", r"^\p{Cc}+$", r"^(\p{gc=Control}|b)$", r"^[\p{Cc}b]+$"])
def test_classes_by_name_let_no_quotes_through(pattern: str) -> None:
    grammar = to_grammar(
        OutputConstraint(ConstraintKind.JSON_SCHEMA, json.dumps({"type": "string", "pattern": pattern}))
    )
    for text in map("".join, itertools.product(["", "b", '"', "\\"], repeat=2)):
        assert not (set(text) & {'"', "\\"} and lets_through(grammar, json.dumps(text)))


def test_a_pattern_with_free_space_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="free space"):
        to_grammar(
            OutputConstraint(ConstraintKind.JSON_SCHEMA, json.dumps({"type": "string", "pattern": "(?x)^a # [\nb$"}))
        )


@pytest.mark.parametrize(
    "name", ["default", "examples", "enum", "const", "pattern", "patternProperties", "maximum", "properties", "$defs"]
)
def test_properties_may_be_named_like_keywords(name: str) -> None:
    inner = {"type": "string", "pattern": '^[^"]+$'}
    schema = {"type": "object", "properties": {name: inner}, "required": [name], "$defs": {name: inner}}
    grammar = to_grammar(OutputConstraint(ConstraintKind.JSON_SCHEMA, json.dumps(schema)))
    assert lets_through(grammar, json.dumps({name: "a"}))
    assert not lets_through(grammar, json.dumps({name: 'a"'}))
    assert not lets_through(grammar, json.dumps({name: 1}))


def test_names_that_are_let_through_have_their_pattern() -> None:
    schema = {"type": "object", "patternProperties": {'^[^"]+$': {"type": "null"}}, "additionalProperties": False}
    grammar = to_grammar(OutputConstraint(ConstraintKind.JSON_SCHEMA, json.dumps(schema)))
    assert lets_through(grammar, '{"a": null}')
    assert not lets_through(grammar, r'{"\"": null}')


@pytest.mark.parametrize(
    "schema",
    [
        {"const": 2**53 + 1},
        {"enum": [{"id": 2**60}]},
        {"type": "integer", "minimum": 2**53 + 1},
        {"type": "integer", "maximum": -(2**60)},
        {"type": "integer", "exclusiveMinimum": 2**53},
        {"type": "integer", "exclusiveMaximum": -(2**53)},
        {"type": "integer", "minimum": 1e17, "maximum": 1e18},
        {"type": "string", "minLength": 10**20},
        {"properties": {"a": {"const": 10**30}}},
    ],
)
def test_numbers_that_would_be_rounded_are_refused(schema: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match="is beyond 2\\^53"):
        to_grammar(OutputConstraint(ConstraintKind.JSON_SCHEMA, json.dumps(schema)))


def test_a_range_of_64_bits_is_narrowed() -> None:
    schema = {"type": "integer", "minimum": -(2**63), "maximum": 2**64 - 1, "default": 2**70, "example": 2**60}
    grammar = to_grammar(OutputConstraint(ConstraintKind.JSON_SCHEMA, json.dumps(schema)))
    assert lets_through(grammar, str(2**53))
    assert not lets_through(grammar, str(2**64))


@pytest.mark.parametrize(
    "shape",
    [
        OutputConstraint(ConstraintKind.JSON_SCHEMA, '{"$ref": "#"}'),
        OutputConstraint(
            ConstraintKind.JSON_SCHEMA,
            '{"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}',
        ),
        OutputConstraint(ConstraintKind.REGEX, r"[^\s\S]"),
        OutputConstraint(ConstraintKind.LARK, "start: start"),
    ],
)
def test_a_shape_that_no_answer_has_is_refused(shape: OutputConstraint) -> None:
    with pytest.raises(InvalidRequest, match="no answer satisfies it"):
        to_grammar(shape)


@pytest.mark.parametrize(
    ("regex", "text", "holds"),
    [
        (r"\d{2}", "12", True),
        (r"\d{2}", "١٢", False),
        (r"\w+", "a_1", True),
        (r"\w+", "é", False),
        (r"[\d-]+", "1-2", True),
        (r"[^\d]+", "é", True),
        (r"\D", "1", False),
        (r"a\sb", "a b", True),
        (r"a\sb", "a\u2003b", False),
        (r"\\d", r"\d", True),
    ],
)
def test_classes_of_regular_expressions_are_of_ascii(regex: str, text: str, holds: bool) -> None:
    assert lets_through(to_grammar(OutputConstraint(ConstraintKind.REGEX, regex)), text) is holds


_ENDLESS = [
    "start: /a+/ /a+/",
    "start: /a+/ start",
    "start: /[bc]/ /a+/ /a+/",
    "start: x\nx: %lark {\nstart: /a+/ /a+/\n}",
    'start: /a+/ /a+/\n%llguidance {"no_forcing": false}',
    "start: /a+/ /a+/ # a comment",
]


@pytest.mark.parametrize("source", _ENDLESS)
def test_an_answer_that_is_forced_to_go_on_for_ever_is_looked_at_token_by_token(source: str) -> None:
    answers: list[str | None] = []

    def answer() -> None:
        grammar = to_grammar(OutputConstraint(ConstraintKind.LARK, source))
        answers.append(random_answer(grammar, Random(1), max_bytes=100))

    thread = threading.Thread(target=answer, daemon=True)  # the library cannot be interrupted
    thread.start()
    thread.join(20)
    assert answers == [None]


def test_a_grammar_in_the_librarys_own_json_is_refused() -> None:
    source = json.dumps({"grammars": [{"lark_grammar": 'start: "a"'}]})
    with pytest.raises(InvalidRequest, match="not Lark's notation"):
        to_grammar(OutputConstraint(ConstraintKind.LARK, source))
