"""JSON schemas at random: in what the grammar's library enforces, and the same with annotations."""

from typing import Any

from hypothesis import strategies as st

SCALARS = st.sampled_from([None, True, False, 0, 1, 1.5, "", "a"])
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
    max_leaves=4,
)
OBJECTS = st.dictionaries(st.sampled_from("ab"), SCALARS, max_size=2)
TYPES = st.sampled_from(["null", "boolean", "integer", "number", "string", "array", "object"])
LEAVES = st.one_of(
    st.builds(lambda kind: {"type": kind}, TYPES),
    st.builds(lambda kinds: {"type": kinds}, st.lists(TYPES, min_size=1, max_size=2, unique=True)),
    st.builds(lambda value: {"const": value}, VALUES),
    st.builds(lambda values: {"enum": values}, st.lists(VALUES, min_size=1, max_size=3)),
)
REFERENCES = st.sampled_from([{"$ref": "#/$defs/one"}, {"$ref": "#/$defs/other"}])


def objects(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    return st.builds(
        lambda properties, required, more: {"type": "object", "properties": properties, "required": required} | more,
        st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
        st.lists(st.sampled_from("ab"), unique=True),
        st.sampled_from([{}, {}, {"additionalProperties": False}, {"additionalProperties": {"type": "null"}}]),
    )


def combined(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    return st.one_of(
        objects(inner),
        st.builds(
            lambda word, parts, more: {word: parts} | more,
            st.sampled_from(["oneOf", "oneOf", "anyOf", "allOf"]),
            st.lists(inner, min_size=1, max_size=3),
            st.sampled_from([{}, {}, {"type": "object"}, {"properties": {"a": {}}}]),
        ),
        st.builds(lambda items: {"type": "array", "items": items}, inner),
    )


CHOICES = st.lists(objects(LEAVES) | LEAVES, min_size=2, max_size=3).map(lambda parts: {"oneOf": parts})
DEFINITIONS = st.recursive(LEAVES, combined, max_leaves=4)
SCHEMAS = CHOICES | st.recursive(LEAVES | REFERENCES, combined, max_leaves=6)

ANNOTATIONS = {
    "title": "a title",
    "description": "pattern: ^[a-z]$",
    "default": {"$ref": "https://example.com/elsewhere", "uniqueItems": True},
    "examples": [{"not": {}}, 2**70],
    "deprecated": True,
    "readOnly": True,
    "writeOnly": False,
    "$comment": "none",
    "$schema": "https://example.com/no-schema",
    "$vocabulary": {"https://example.com/vocabulary": True},
    "$anchor": "anchor",
    "contentEncoding": "base64",
    "contentMediaType": "image/png",
    "contentSchema": {"uniqueItems": True},
    "format": "int64",
    "discriminator": {"propertyName": "a"},
    "nullable": True,
    "example": 2**60,
    "enumNames": ["a"],
    "x-guidance": {"lenient": True, "coerce_one_of": True},
    "x-order": 1,
    "xml": {"name": "a"},
    "then": {"not": {}},
    "minContains": 3,
    "uniqueItems": False,
    "propertyNames": {"type": "string", "format": "name"},
    "dependentRequired": {},
}
"""Keywords that constrain nothing, with values that would be refused or misread if they were schemas."""


@st.composite
def annotated(draw: st.DrawFn, schema: dict[str, Any]) -> dict[str, Any]:
    """The same schema, with annotations in it and in every schema within."""
    found = draw(st.lists(st.sampled_from(sorted(ANNOTATIONS)), max_size=3, unique=True))
    before = {name: ANNOTATIONS[name] for name in found}
    return before | {keyword: _annotated_in(draw, keyword, value) for keyword, value in schema.items()}


def _annotated_in(draw: st.DrawFn, keyword: str, value: Any) -> Any:
    if keyword in ("properties", "$defs"):
        return {name: draw(annotated(one)) for name, one in value.items()}
    if keyword in ("allOf", "anyOf", "oneOf"):
        return [draw(annotated(one)) for one in value]
    if keyword in ("items", "additionalProperties") and isinstance(value, dict):
        return draw(annotated(value))
    return value
