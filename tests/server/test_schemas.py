"""JSON schemas: what constrains is enforced or refused, annotations change nothing, refusals say where and quote."""

import json
import re
import time
from collections.abc import Callable
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grammars import lets_through, schema_grammar, valid_answers
from random_schemas import ANNOTATIONS, DEFINITIONS, SCHEMAS, annotated
from spyglass_server.constraints.grammar import ConstraintKind, OutputConstraint, calls_grammar, to_grammar
from spyglass_server.errors import InvalidRequest
from spyglass_server.prompt.conversation import Tool

VALIDATOR = jsonschema.Draft202012Validator
DRAFTS = [
    "http://json-schema.org/draft-04/schema#",
    "http://json-schema.org/draft-07/schema#",
    "https://json-schema.org/draft/2019-09/schema",
    "https://json-schema.org/draft/2020-12/schema",
]


def outcome(schema: Any) -> str:
    """The grammar of a schema, or why it is refused."""
    try:
        return schema_grammar(schema)
    except InvalidRequest as error:
        return error.message


def refusal(schema: Any) -> str:
    """What is said of a schema that is refused, after the words that are always the same."""
    with pytest.raises(InvalidRequest) as caught:
        schema_grammar(schema)
    assert caught.value.field == "format.json_schema.schema_json"
    return caught.value.message.removeprefix("this format cannot be enforced: ")


def takes(schema: Any, value: Any) -> bool:
    return lets_through(schema_grammar(schema), json.dumps(value, ensure_ascii=False))


# --- annotations -------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.data(), SCHEMAS, DEFINITIONS, DEFINITIONS)
def test_annotations_change_nothing(
    data: st.DataObject, schema: dict[str, Any], one: dict[str, Any], other: dict[str, Any]
) -> None:
    bare = schema | {"$defs": {"one": one, "other": other}}
    assert outcome(data.draw(annotated(bare))) == outcome(bare)


@pytest.mark.parametrize("name", ANNOTATIONS)
def test_an_annotation_is_taken_and_constrains_nothing(name: str) -> None:
    schema = {"type": "object", "properties": {"a": {name: ANNOTATIONS[name], "type": ["string", "array"]}}}
    for value in ({"a": "x"}, {"a": [1, 1]}, {}):
        assert takes(schema, value)
    assert not takes(schema, {"a": 1})


NAMES = [
    *("format", "title", "examples", "default", "propertyNames", "x-guidance", "not", "if", "$ref", "$id", "$defs"),
    *("type", "enum", "required", "allOf", "oneOf", "uniqueItems", "properties", "additionalProperties", "items"),
]


@pytest.mark.parametrize("name", NAMES)
def test_a_property_may_have_the_name_of_a_keyword(name: str) -> None:
    inner = {"type": "string", "enum": ["a", "b"]}
    schema = {"type": "object", "properties": {name: inner, "other": inner}, "required": [name]}
    assert takes(schema, {name: "a"})
    for value in ({name: "c"}, {"other": "a"}, {name: "a", "more": 1}):
        assert not takes(schema, value)


@pytest.mark.parametrize("keyword", ["const", "enum"])
def test_values_are_data(keyword: str) -> None:
    value = {
        "format": "no-format",
        "pattern": "[^a]",
        "uniqueItems": True,
        "x-guidance": {"lenient": True},
        "allOf": [{"$ref": "https://example.com"}],
        "properties": {"title": 1},
    }
    schema = {"type": "object", "properties": {"a": {keyword: value if keyword == "const" else [value, 1]}}}
    assert takes(schema, {"a": value})
    assert not takes(schema, {"a": value | {"format": "other"}})
    assert not takes(schema, {"b": 1})


# --- formats -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["date", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "time", "uri", "uuid"]
)
def test_formats_are_enforced(name: str) -> None:
    assert len(valid_answers({"type": "string", "format": name}, 200)) > 50
    assert not takes({"format": name}, "no such thing!")
    assert takes({"format": name}, 5)


@pytest.mark.parametrize(
    ("name", "text", "is_valid"),
    [
        ("date", "2024-02-29", True),
        ("date", "2000-02-29", True),
        ("date", "2023-02-29", False),
        ("date", "1900-02-29", False),
        ("date", "0000-01-01", False),
        ("date", "2023-04-31", False),
        ("date-time", "2024-02-29T23:59:59.5+05:30", True),
        ("date-time", "2023-02-29T00:00:00Z", False),
        ("date-time", "2023-02-28T00:00:60Z", False),
        ("time", "23:59:60Z", False),
        ("time", "23:59:59Z", True),
    ],
)
def test_dates_are_those_of_the_calendar(name: str, text: str, is_valid: bool) -> None:
    assert takes({"type": "string", "format": name}, text) is is_valid


def test_a_format_holds_beside_a_pattern_and_a_length() -> None:
    for name, valid in {"date": "2024-05-06", "ipv4": "20.24.0.1"}.items():
        schema = {"type": "string", "format": name, "pattern": "^20", "maxLength": 10}
        assert takes(schema, valid)
        assert not takes(schema, "20")
        assert not takes(schema, valid.replace("20", "19", 1))
        assert all(value.startswith("20") for value in valid_answers(schema))
    objects = {"type": "object", "properties": {"a": {"format": "date", "pattern": "^20"}, "b": {}}}
    assert not takes(objects, {"c": 1})  # still closed


# --- what is refused ---------------------------------------------------------------------------

UNENFORCED = [
    ("contains", {"type": "null"}),
    ("dependencies", {"a": ["b"]}),
    ("dependentRequired", {"a": ["b"]}),
    ("dependentSchemas", {"a": {"required": ["b"]}}),
    ("disallow", ["string"]),
    ("divisibleBy", 2),
    ("extends", {"type": "string"}),
    ("not", {"type": "string"}),
    ("unevaluatedItems", False),
    ("unevaluatedProperties", False),
    ("uniqueItems", True),
    ("$dynamicRef", "#a"),
    ("$recursiveRef", "#"),
]
PLACES: dict[str, Any] = {
    "#": lambda one: one,
    "#/properties/a~1b": lambda one: {"type": "object", "properties": {"ok": {}, "a/b": one}},
    "#/anyOf/1/items": lambda one: {"anyOf": [{"type": "null"}, {"type": "array", "items": one}]},
    "#/items/1": lambda one: {"type": "array", "items": [{}, one]},
    "#/additionalItems": lambda one: {"type": "array", "items": [{}], "additionalItems": one},
    "#/definitions/x": lambda one: {"properties": {"a": {"$ref": "#/definitions/x"}}, "definitions": {"x": one}},
    "#/patternProperties/^a": lambda one: {"type": "object", "patternProperties": {"^a": one}},
    "#/parts/0": lambda one: {"allOf": [{"$ref": "#/parts/0"}], "parts": [one]},
}


@pytest.mark.parametrize("draft", DRAFTS)
@pytest.mark.parametrize(("keyword", "value"), UNENFORCED)
def test_what_constrains_and_is_not_enforced_is_refused_at_its_place(draft: str, keyword: str, value: Any) -> None:
    for pointer, place in PLACES.items():
        assert refusal({"$schema": draft} | place({keyword: value})) == f"{pointer}: {keyword} is not enforced"


def test_conditions_are_refused_where_there_are_any() -> None:
    assert refusal({"if": {"type": "string"}, "else": False}) == "#: if is not enforced"
    assert takes({"if": {"type": "string"}}, 1)
    assert takes({"then": False, "else": False}, 1)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"type": "string", "pattern": "^[a-z]  (?=b)"}, 'pattern "^[a-z]  (?=b)": look-around'),
        ({"type": "string", "pattern": r"[^\d"}, r'pattern "[^\\d": unclosed character class'),
        ({"type": "string", "pattern": "(?x)[a] "}, 'pattern "(?x)[a] ": free space'),
        ({"patternProperties": {"[a-c": {}}}, 'pattern "[a-c": unclosed'),
        ({"patternProperties": {"^[^a]": {}, "^[b]": False}}, "patternProperty regexes /^[^a]/ and /^[b]/"),
        ({"propertyNames": {"pattern": "[^a](?<=b)"}, "type": "object"}, 'pattern "[^a](?<=b)": look-around'),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "oneOf is enforced only where its parts visibly"),
        ({"type": "strin"}, 'type "strin" is not a type'),
        ({"type": ["string", 5]}, 'type ["string", 5] is not a type'),
        ({"required": ["a", 5]}, 'required ["a", 5] is not a list of names'),
        ({"minLength": -1}, "minLength -1 is not a non-negative integer"),
        ({"maxItems": 1.5}, "maxItems 1.5 is not a non-negative integer"),
        ({"maximum": True}, "maximum true is not a number"),
        ({"multipleOf": 0}, "multipleOf 0 is not above 0"),
        ({"format": 7}, "format 7 is not a string"),
        ({"const": 2**60}, f"{2**60} is beyond 2^53"),
        ({"$ref": "https://example.com/a"}, '$ref "https://example.com/a" is not in this schema'),
        ({"enum": 5}, "enum 5 is not a list"),
    ],
)
def test_a_refusal_names_the_place_and_quotes_the_callers_own_text(
    place: str, schema: dict[str, Any], reason: str
) -> None:
    assert refusal(PLACES[place](schema)).startswith(f"{place}: {reason}")


def test_a_place_is_found_in_a_large_schema() -> None:
    properties: dict[str, Any] = {f"p{i}": {"type": "object", "properties": {"a": {}}} for i in range(500)}
    properties["p250"]["properties"]["zip"] = {"type": "string", "pattern": "[0-9](?=a)"}
    assert refusal({"type": "object", "properties": properties}).startswith(
        '#/properties/p250/properties/zip: pattern "[0-9](?=a)"'
    )


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"type": "integer", "minimum": 5, "maximum": 3}, "minimum (5) is greater than maximum (3)"),
        ({"type": "string", "format": "date", "pattern": "^[^0-9]"}, "no string is valid"),
        ({"enum": []}, "it allows no value"),
    ],
)
def test_where_there_is_no_answer_is_said(schema: dict[str, Any], said: str) -> None:
    place = "#/properties/a/properties/b"
    inner = {"type": "object", "properties": {"b": schema}, "required": ["b"]}
    outer = {"type": "object", "properties": {"a": inner}, "required": ["a"]}
    assert refusal(outer) == f"{place}: no answer satisfies it: {said}"


def test_a_strict_tool_is_refused_in_the_same_words() -> None:
    schema = {"type": "object", "properties": {"zip": {"type": "string", "pattern": "^[0-9](?=a)"}}}
    tools = [Tool("stop", "", {"type": "object"}), Tool("send", "", schema, is_strict=True)]
    with pytest.raises(InvalidRequest) as caught:
        calls_grammar(tools, must_call=True, several=True)
    assert caught.value.field == "chat.tools[1].parameters_json"
    assert '#/properties/zip: pattern "^[0-9](?=a)": look-around' in caught.value.message


def test_the_librarys_instructions_are_none_in_a_tools_schema() -> None:
    schema = {"type": "object", "x-guidance": {"lenient": True}, "not": {"required": ["a"]}}
    with pytest.raises(InvalidRequest, match="#: not is not enforced"):
        calls_grammar([Tool("f", "", schema, is_strict=True)], must_call=True, several=True)


@pytest.mark.parametrize("regex", [r"\d  (?=b)", r"[\w", "[^a](", r"(\d)\1"])
def test_a_regular_expression_is_quoted_as_it_is(regex: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        to_grammar(OutputConstraint(ConstraintKind.REGEX, regex))
    assert f"cannot be enforced: {json.dumps(regex)}: " in caught.value.message
    assert "0-9" not in caught.value.message


# --- references --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#/$defs/a~1b%25", "$defs": {"a/b%": {"type": "null"}}},
        {"$ref": "#/components/schemas/A", "components": {"schemas": {"A": {"type": "null"}}}},
        {"$ref": "#here", "$defs": {"a": {"$anchor": "here", "type": "null"}}},
        {"$ref": "#here", "definitions": {"a": {"$id": "#here", "type": "null"}}},
        {
            "$id": "https://example.com/a",
            "$ref": "b#/$defs/c",
            "$defs": {"x": {"$id": "b", "$defs": {"c": {"type": "null"}}}},
        },
        {"$id": "urn:example:a", "$ref": "urn:example:a#/$defs/c", "$defs": {"c": {"type": "null"}}},
        {"$id": "no uri", "$ref": "#/$defs/c", "$defs": {"c": {"$ref": "#/$defs/d"}, "d": {"type": "null"}}},
    ],
)
def test_references_lead_anywhere_in_the_document(schema: dict[str, Any]) -> None:
    assert takes(schema, None)
    assert not takes(schema, 1)


def test_a_schema_may_refer_to_itself() -> None:
    schema = {
        "type": "object",
        "properties": {"next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}},
        "required": ["next"],
    }
    assert takes(schema, {"next": {"next": None}})
    assert not takes(schema, {"next": {"next": {}}})
    calls = calls_grammar([Tool("f", "", schema, is_strict=True)], must_call=True, several=False)
    assert lets_through(calls, '{"name": "f", "parameters": {"next": {"next": null}}}')
    assert not lets_through(calls, '{"name": "f", "parameters": {"next": {}}}')


@pytest.mark.parametrize("reference", ["https://example.com/a", "#/$defs/none", "#none", "other.json", "http://[", 5])
def test_what_is_not_in_the_document_is_refused(reference: Any) -> None:
    expected = f"#/properties/a: $ref {json.dumps(reference)} is not in this schema"
    assert refusal({"properties": {"a": {"$ref": reference}}, "$defs": {}}) == expected


def test_definitions_that_nothing_refers_to_constrain_nothing() -> None:
    assert takes({"type": "null", "$defs": {"a": {"not": {"type": "null"}}, "b": 5}}, None)


def test_numbers_that_the_library_cannot_read_are_refused_where_none_belong() -> None:
    schema = {"type": "object", "properties": {"a": {"type": [{"b": 2**64}]}}}
    with pytest.raises(InvalidRequest, match="18446744073709551616") as refused:
        calls_grammar([Tool("f", "", schema, is_strict=True)], must_call=True, several=True)
    assert refused.value.field == "chat.tools[0].parameters_json"
    assert lets_through(
        calls_grammar([Tool("f", "", schema)], must_call=True, several=False), '{"name": "f", "parameters": {"a": 1}}'
    )


NO_STRING = (
    *(
        "minimum",
        "exclusiveMaximum",
        "multipleOf",
        "maxLength",
        "minItems",
        "maxProperties",
        "type",
        "required",
        "enum",
    ),
    *("items", "allOf", "prefixItems", "properties", "patternProperties"),
)
NO_LIST = tuple({*NO_STRING, "pattern", "format", "$ref"} - {"enum", "items", "allOf", "prefixItems"})


@pytest.mark.parametrize(
    ("keyword", "value"),
    [(keyword, wrong) for keyword in NO_STRING for wrong in ("é" * 80, "x" + "é" * 80)]
    + [(keyword, wrong) for keyword in sorted(NO_LIST) for wrong in ([{"a": "é" * 80}], [{"a": "x" + "é" * 80}])],
)
def test_what_is_wrong_never_makes_the_library_panic(
    keyword: str, value: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    """It would quote what is wrong up to the middle of a character, and write all of it to the log."""
    schema = {keyword: value}
    for place in (schema, {"$ref": "#/default", "default": schema}, {"properties": {"a": schema}}):
        said = refusal(place)
        assert said.startswith("#")
        with pytest.raises(InvalidRequest, match=re.escape(said[:40])):
            to_grammar(OutputConstraint(ConstraintKind.LARK, f"start: %json {json.dumps(place)}"))
    assert capfd.readouterr().err == ""


def numbers(*multiples: float) -> dict[str, Any]:
    """An object of numbers, each a multiple of one of these."""
    return {"type": "object", "properties": {f"p{i}": {"multipleOf": one} for i, one in enumerate(multiples)}}


COSTLY = (
    {"type": "integer", "multipleOf": 2**31},
    {"type": "number", "minimum": -1.5, "exclusiveMaximum": 1e300, "multipleOf": 9_765_625},
    {"multipleOf": 99983.7},
    {"multipleOf": 1e-300},
    {"type": "integer", "multipleOf": 5 * 10**8},
    {"allOf": [{"multipleOf": 9973}, {"multipleOf": 101}]},
    {"anyOf": [{"multipleOf": 997}, {"multipleOf": 991}]},
    numbers(9973, 9967),
)


@pytest.mark.parametrize("schema", COSTLY)
def test_multiples_that_would_take_all_memory_are_refused(schema: dict[str, Any]) -> None:
    assert "multipleOf" in refusal(schema)
    written = json.dumps(schema).replace("multipleOf", "multipl\\u0065Of")
    for source in (f"start: %json {json.dumps(schema)}", f"start: %json {written}"):
        with pytest.raises(InvalidRequest, match="multipleOf"):
            to_grammar(OutputConstraint(ConstraintKind.LARK, source))
    tools = [Tool(f"f{i}", "", numbers(9973 - i), is_strict=True) for i in range(3)]
    with pytest.raises(InvalidRequest, match="multipleOf"):
        calls_grammar(tools, must_call=True, several=True)


@pytest.mark.parametrize(
    "schema",
    [
        {"anyOf": [{"multipleOf": number} for number in range(9_000_000, 9_004_000)]},
        {"type": "array", "prefixItems": [{"multipleOf": number} for number in range(9000, 9100)]},
    ],
)
def test_checking_many_multiples_is_cheap(schema: dict[str, Any]) -> None:
    began = time.process_time()
    assert "multipleOf" in refusal(schema)
    assert time.process_time() - began < 5


def test_multiples_that_people_use_are_enforced() -> None:
    text = '"multipleOf": 1e99999999999999999999'
    assert takes({"enum": [text]}, text)
    for multiple, right, wrong in ((0.01, 12.34, 12.345), (0.5, 1.5, 1.4), (60, 360, 361), (10**8, 3 * 10**9, 10**7)):
        schema = {"type": "number", "multipleOf": multiple}
        assert (takes(schema, right), takes(schema, wrong)) == (True, False)
    assert takes({"anyOf": [numbers(0.01, 60, 7, 25), {"type": "null"}]}, {"p0": 0.25, "p1": 120, "p2": 21, "p3": 75})


def test_a_count_may_be_written_as_a_number_with_a_point() -> None:
    schema = {"type": "string", "minLength": 2.0, "maxLength": 3.0}
    assert [takes(schema, "a" * count) for count in range(1, 5)] == [False, True, True, False]


@pytest.mark.parametrize("kind", ["pure", "properties", "items", "allOf"])
def test_references_that_lead_very_deep_are_refused(kind: str) -> None:
    shapes: dict[str, Callable[[Any], Any]] = {
        "pure": lambda one: one,
        "properties": lambda one: {"properties": {"a": one}},
        "items": lambda one: {"items": {"items": {"items": one}}},
        "allOf": lambda one: {"allOf": [one]},
    }
    inside = shapes[kind]
    definitions = {str(i): inside({"$ref": f"#/$defs/{i + 1}"}) for i in range(3000)} | {"3000": {"type": "null"}}
    assert "schemas deep" in refusal({"$ref": "#/$defs/0", "$defs": definitions})
    short = {name: definitions[name] for name in map(str, range(2900, 3001))}
    schema_grammar({"$ref": "#/$defs/2900", "$defs": short})


@pytest.mark.parametrize(
    "grammar",
    [
        "start: r0\n" + "\n".join(f"r{i}: r{i + 1}" for i in range(5000)) + '\nr5000: "a"',
        "start: R0\n" + "\n".join(f"R{i}: ((((((((R{i + 1}))))))))" for i in range(500)) + '\nR500: "a"',
        "start: %json "
        + json.dumps({"$ref": "#/0"} | {str(i): {"items": {"$ref": f"#/{i + 1}"}} for i in range(3000)}),
    ],
)
def test_grammars_of_very_many_rules_are_refused(grammar: str) -> None:
    with pytest.raises(InvalidRequest, match="too many rules"):
        to_grammar(OutputConstraint(ConstraintKind.LARK, grammar))


def test_a_grammar_of_ordinary_size_is_taken() -> None:
    rules = [f'r{i}: "a{i}" ("x" r{i + 1})? // (((((' for i in range(200)]
    grammar = to_grammar(
        OutputConstraint(ConstraintKind.LARK, "start: r0\n" + "\n".join(rules) + '\nr200: "((((" | /[(]+/')
    )
    assert lets_through(grammar, "a0xa1")


# --- names of properties -----------------------------------------------------------------------

STRINGS = st.sampled_from(
    [
        {},
        True,
        False,
        {"type": "string"},
        {"type": "integer"},
        {"type": ["string", "null"], "description": "names"},
        {"enum": ["a", "b", 5]},
        {"type": "string", "const": "ab"},
        {"pattern": "^a"},
        {"pattern": '^[^"]b?$'},
        {"minLength": 2},
        {"minLength": 1, "maxLength": 1},
        {"format": "no-format"},
        {"format": "date"},
        {"$ref": "#/$defs/name"},
    ]
)


@settings(deadline=None)
@given(
    STRINGS,
    st.sampled_from([{"enum": ["a", "c"]}, {"pattern": "b$"}, {"$ref": "#/$defs/other"}]),
    st.sampled_from([{}, {"additionalProperties": {"type": "null"}}, {"properties": {"a": {"type": "null"}, "c": {}}}]),
    st.sampled_from([{}, {"required": ["a"]}]),
)
def test_names_of_properties_are_constrained(
    names: Any, definition: dict[str, Any], properties: dict[str, Any], more: dict[str, Any]
) -> None:
    definitions = {"$defs": {"name": definition, "other": {"type": "string", "title": "any"}}}
    schema = {"type": "object", "propertyNames": names} | properties | more | definitions
    grammar = outcome(schema)
    if not grammar.startswith("{"):
        assert "no answer satisfies it" in grammar or "beside properties" in grammar
        return
    valid = VALIDATOR(schema, format_checker=VALIDATOR.FORMAT_CHECKER).is_valid
    closed = "properties" in properties
    for keys in ("", "a", "b", "c", "d", '"', "ab", "2024-01-01", "xyz"):
        for value in ({keys: None}, {keys: 1}, {"a": None, keys: None}):
            if lets_through(grammar, json.dumps(value)):
                assert valid(value), (schema, value)
            elif list(value) == sorted(value) and not closed:
                assert not valid(value), (schema, value)


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        ({"pattern": "^a", "format": "date"}, "with several constraints"),
        ({"anyOf": [{"const": "a"}, {"const": "b"}]}, "with anyOf"),
        ({"not": {"const": "a"}}, "with not"),
        ({"format": "email"}, "with format"),
        ({"$ref": "#/$defs/a", "maxLength": 3}, "with $ref"),
        ({"propertyNames": {"maxLength": 3}}, "with propertyNames"),
    ],
)
def test_constraints_of_names_that_are_not_enforced_are_refused(names: dict[str, Any], reason: str) -> None:
    schema = {"properties": {"a": {"type": "object", "propertyNames": names}}, "$defs": {"a": {}}}
    assert refusal(schema) == f"#/properties/a: propertyNames {reason} is not enforced"
