"""Schemas that are made narrower: whatever holds to the narrower one holds to the one that was asked for."""

from typing import Any, Literal

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from spyglass_server.prompt.schemas import narrowed

SCALARS = st.sampled_from([None, True, False, 0, 1, 1.0, 1.5, "", "a"])
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
    max_leaves=4,
)
TYPES = st.sampled_from(["null", "boolean", "integer", "number", "string", "array", "object"])


def combined(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    names = st.lists(st.sampled_from("ab"), unique=True)
    return st.one_of(
        st.builds(
            lambda properties, required, more: (
                {"type": "object", "properties": properties, "required": required} | more
            ),
            st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
            names,
            st.sampled_from([{}, {}, {"additionalProperties": False}, {"additionalProperties": {"type": "null"}}]),
        ),
        st.builds(
            lambda word, parts, more: {word: parts} | more,
            st.sampled_from(["oneOf", "oneOf", "anyOf", "allOf"]),
            st.lists(inner, min_size=1, max_size=3),
            st.sampled_from([{}, {}, {"type": "object"}, {"properties": {"a": {}}}]),
        ),
        st.builds(lambda items: {"type": "array", "items": items}, inner),
    )


LEAVES = st.one_of(
    st.builds(lambda kind: {"type": kind}, TYPES | st.lists(TYPES, min_size=1, max_size=2, unique=True)),
    st.builds(lambda value: {"const": value}, VALUES),
    st.builds(lambda values: {"enum": values}, st.lists(VALUES, min_size=1, max_size=3)),
)
REFERENCES = st.sampled_from([{"$ref": "#/$defs/one"}, {"$ref": "#/$defs/other"}])
DEFINITIONS = st.recursive(LEAVES, combined, max_leaves=4)
SCHEMAS = st.recursive(LEAVES | REFERENCES, combined, max_leaves=6)
PLAIN_OBJECTS = st.builds(
    lambda properties, required: {"type": "object", "properties": properties, "required": required},
    st.dictionaries(st.sampled_from("ab"), LEAVES, max_size=2),
    st.lists(st.sampled_from("ab"), unique=True),
)
CHOICES = st.lists(PLAIN_OBJECTS | LEAVES, min_size=2, max_size=3).map(lambda parts: {"oneOf": parts})
OBJECTS = st.dictionaries(st.sampled_from("ab"), SCALARS, max_size=2)


@given(SCHEMAS | CHOICES, DEFINITIONS, DEFINITIONS, st.lists(VALUES | OBJECTS, min_size=20, max_size=20))
def test_what_holds_to_the_narrower_one_holds_to_the_schema(
    schema: dict[str, Any], one: dict[str, Any], other: dict[str, Any], values: list[Any]
) -> None:
    whole = schema | {"$defs": {"one": one, "other": other}}
    narrow = jsonschema.Draft202012Validator(narrowed(whole))
    wide = jsonschema.Draft202012Validator(whole)
    for value in values:
        if narrow.is_valid(value):
            assert wide.is_valid(value), (narrowed(whole), value)


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: int


class Dog(BaseModel):
    kind: Literal["dog"]
    name: str


class Owner(BaseModel):
    pet: Cat | Dog = Field(discriminator="kind")


def test_a_union_that_a_property_tells_apart_is_a_choice() -> None:
    found = narrowed(Owner.model_json_schema())
    assert "oneOf" not in found["properties"]["pet"]
    assert found["properties"]["pet"]["anyOf"] == [{"$ref": "#/$defs/Cat"}, {"$ref": "#/$defs/Dog"}]
    assert found["$defs"]["Cat"]["additionalProperties"] is False


@pytest.mark.parametrize(
    ("one", "other", "is_choice"),
    [
        ({"type": "string"}, {"type": ["null", "integer"]}, True),
        ({"type": "integer"}, {"type": "number"}, False),
        ({"const": 1}, {"const": 1.0}, False),
        ({"const": 1}, {"const": True}, True),
        ({"enum": ["a", "b"]}, {"enum": ["c"]}, True),
        ({"enum": [1.5]}, {"type": "integer"}, True),
        ({"const": {"a": 1}}, {"type": "object"}, False),
        ({"anyOf": [{"type": "null"}, {"type": "string"}]}, {"type": "object"}, True),
        ({"anyOf": [{"type": "null"}, {"type": "object"}]}, {"type": "object"}, False),
        ({"type": "string", "maxLength": 3}, {"type": "string", "minLength": 4}, False),
        ({"$ref": "#"}, {"$ref": "#"}, False),
        ({"$ref": "#/oneOf/0"}, {"type": "null"}, False),
        (True, {"type": "null"}, False),
    ],
)
def test_parts_that_exclude_each_other(one: Any, other: Any, is_choice: bool) -> None:
    assert narrowed({"oneOf": [one, other]}) == {"anyOf" if is_choice else "oneOf": [one, other]}


def test_many_parts_take_no_long_time() -> None:
    parts = [{"anyOf": [{"const": f"{i} {j}"} for j in range(30)]} for i in range(300)]
    assert narrowed({"oneOf": parts}) == {"oneOf": parts}
