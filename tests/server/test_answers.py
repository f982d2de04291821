"""What a caller may ask of an answer, over gRPC with a tiny model: sampling, probabilities, shapes."""

import asyncio
import json
import math
import re
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import pytest_asyncio
from google.rpc import code_pb2
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes import Stream, TestServer, chat, image_chat, run_test_server
from pictures import disc, encoded
from spyglass.v1 import chat_pb2, inference_pb2, options_pb2

SHAPE_TOKENS = 600


pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[TestServer]:
    async with run_test_server(tiny_checkpoint, tmp_path_factory.mktemp("data"), max_batch=32) as server:
        yield server


async def answers(server: TestServer, starts: Sequence[inference_pb2.Start]) -> Stream:
    """Answers to all, which have the ids 1, 2, …"""
    stream = server.open_stream()
    for event_id, start in enumerate(starts, 1):
        await stream.start(event_id, start)
    await stream.finish()
    for event_id in range(1, len(starts) + 1):
        assert not stream.finished(event_id).error.code, stream.finished(event_id).error
    return stream


def deltas(stream: Stream, event_id: int = 1, index: int = 0) -> list[inference_pb2.Delta]:
    found = [event.delta for event in stream.events(event_id) if event.HasField("delta")]
    return [delta for delta in found if delta.index == index]


def token_ids(stream: Stream, event_id: int = 1, index: int = 0) -> list[int]:
    return [token for delta in deltas(stream, event_id, index) for token in delta.token_ids]


def ask(text: str = "hi", count: int = 12, **given: Any) -> inference_pb2.Start:
    """A Start; fields of its parts are given as, for example, sampling={…}."""
    parts = {"sampling": options_pb2.Sampling, "output": options_pb2.Output, "format": options_pb2.OutputFormat}
    fields = {name: parts[name](**value) if name in parts else value for name, value in given.items()}
    stopping = options_pb2.Stopping(max_tokens=count, **fields.pop("stopping", {}))
    return chat(text, stopping=stopping, **fields)


async def test_usage_so_far(server: TestServer) -> None:
    stream = await answers(server, [ask(n=2, output={"running_usage": True}), ask()])
    told = [event.delta for event in stream.events(1) if event.HasField("delta")]
    counts = [delta.usage.completion_tokens for delta in told]
    assert counts == sorted(counts)  # a delta that waited is joined with the next
    assert told[-1].usage == stream.finished(1).usage
    assert not any(delta.HasField("usage") for delta in deltas(stream, 2))


# --- sampling ----------------------------------------------------------------------------------


async def test_a_bias_of_100_decides_and_one_of_minus_100_forbids(server: TestServer) -> None:
    plain = token_ids(await answers(server, [ask(sampling={"temperature": 0.0})]))
    forced = ask(sampling={"temperature": 0.0, "logit_bias": {97: 100.0}})
    without = ask(sampling={"temperature": 0.0, "logit_bias": dict.fromkeys(plain, -100.0)})
    stream = await answers(server, [forced, without])
    assert token_ids(stream, 1) == [97] * 12
    assert not set(token_ids(stream, 2)) & set(plain)


async def test_a_frequency_penalty_of_2_varies_what_a_bias_repeats(server: TestServer) -> None:
    given = {"temperature": 0.0, "logit_bias": {97: 12.0}}
    starts = [ask(count=30, sampling=given | {name: 2.0}) for name in ("frequency_penalty", "presence_penalty")]
    stream = await answers(server, [ask(count=30, sampling=given), *starts])
    repeated, frequency, presence = (token_ids(stream, event_id).count(97) for event_id in (1, 2, 3))
    assert repeated == 30
    assert frequency < presence <= 30


async def test_an_answer_has_at_least_min_tokens(server: TestServer) -> None:
    likely = {"temperature": 0.0, "logit_bias": {262: 100.0}}  # <|eot_id|>
    starts = [ask(sampling=likely), ask(sampling=likely, stopping={"min_tokens": 5})]
    stream = await answers(server, starts)
    assert [stream.finished(event_id).usage.completion_tokens for event_id in (1, 2)] == [1, 6]
    assert 262 not in token_ids(stream, 2)[:5]


async def test_the_same_seed_gives_the_same_answer_alone_and_in_a_batch(server: TestServer) -> None:
    penalties = {"frequency_penalty": 0.7, "repetition_penalty": 1.2, "min_p": 0.01, "top_k": 100}
    starts = [
        ask(
            f"question {i}",
            24,
            sampling={"seed": i, "temperature": (1.0, 2.0)[i // 2 % 2]} | (penalties if i % 2 else {}),
        )
        for i in range(20)
    ]
    alone = [token_ids(await answers(server, [start])) for start in starts]
    others = [ask(f"other {i}", 40, sampling={"temperature": 1.5}) for i in range(15)]
    for i, start in enumerate(starts):
        stream = await answers(server, [*others[: i % 15], start, *others[i % 15 :]])
        assert token_ids(stream, i % 15 + 1) == alone[i]


# --- guesses -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given",
    [
        {"sampling": {"temperature": 0.0}},
        {"sampling": {"seed": 5, "temperature": 1.3}, "output": {"logprobs": True, "top_logprobs": 2}},
        {"sampling": {"seed": 6, "frequency_penalty": 0.9, "repetition_penalty": 1.3, "logit_bias": {97: 2.0}}},
        {"sampling": {"seed": 7}, "stopping": {"min_tokens": 20}},
        {"sampling": {"seed": 8}, "format": {"regex": "[a-m]{30,60}"}},
    ],
)
async def test_an_answer_is_the_same_whatever_is_predicted(server: TestServer, given: dict[str, Any]) -> None:
    """A right prediction is found out to be right, and a wrong one to be wrong."""
    plain = await answers(server, [ask(count=60, **given)])
    text, tokens = plain.text(1), token_ids(plain)
    middle = len(text) // 2
    for prediction in (text, text[:middle] + "~~" + text[middle:], "something else " * 20):
        stream = await answers(server, [ask(count=60, prediction=prediction, **given)])
        assert token_ids(stream) == tokens
        assert stream.text(1) == text
        found, expected = ([one.logprob for delta in deltas(s) for one in delta.logprobs] for s in (stream, plain))
        assert found == pytest.approx(expected, abs=1e-4)
        usage = stream.finished(1).usage
        assert usage.completion_tokens == plain.finished(1).usage.completion_tokens
        if prediction == text and "format" in given:  # other answers here are no text
            assert usage.accepted_prediction_tokens > len(tokens) / 2


async def test_several_choices_and_neighbours_are_the_same_with_predictions(server: TestServer) -> None:
    starts = [ask(f"question {i}", 30, sampling={"seed": i}, n=1 + i % 2) for i in range(3)]
    plain = await answers(server, starts)
    for event_id, start in enumerate(starts, 1):
        start.prediction = plain.text(event_id)
    stream = await answers(server, starts)
    for event_id in (1, 2, 3):
        for index in range(1 + (event_id - 1) % 2):
            assert token_ids(stream, event_id, index) == token_ids(plain, event_id, index)


async def test_what_a_grammar_forces_takes_no_steps_of_its_own(server: TestServer) -> None:
    shape = {"regex": "the quick brown fox jumps over [a-c]{2} lazy dogs"}
    stream = await answers(server, [ask(count=80, format=shape)])
    assert re.fullmatch(shape["regex"], stream.text(1))
    assert stream.finished(1).usage.accepted_prediction_tokens > 20


# --- probabilities -----------------------------------------------------------------------------


async def test_probabilities_are_told_for_every_token(server: TestServer) -> None:
    start = ask(output={"logprobs": True, "top_logprobs": 5}, sampling={"temperature": 0.0}, n=2)
    stream = await answers(server, [start])
    for index in (0, 1):
        found = [one for delta in deltas(stream, index=index) for one in delta.logprobs]
        ids = token_ids(stream, index=index)
        assert len(found) == len(ids) == 12
        for token, told in zip(ids, found, strict=True):
            assert told.top[0].token_id == token  # greedy
            assert told.logprob == told.top[0].logprob <= 0
            assert told.bytes == told.top[0].bytes
            assert len(told.top) == 5
            assert sum(math.exp(rival.logprob) for rival in told.top) <= 1 + 1e-6


async def test_told_probabilities_are_the_models_own(server: TestServer) -> None:
    plain = {"temperature": 0.0}
    biased = {"temperature": 2.0, "logit_bias": {97: 100.0}, "presence_penalty": 1.0}
    starts = [ask(count=1, output={"logprobs": True, "top_logprobs": 20}, sampling=s) for s in (plain, biased)]
    stream = await answers(server, starts)
    first, second = (deltas(stream, event_id)[0].logprobs[0] for event_id in (1, 2))
    for one, other in zip(first.top, second.top, strict=True):
        assert one.logprob == pytest.approx(other.logprob, abs=1e-4)


async def test_nothing_is_told_where_nothing_is_asked(server: TestServer) -> None:
    assert not any(delta.logprobs for delta in deltas(await answers(server, [ask()])))


def ready(text: str, **given: Any) -> inference_pb2.Start:
    """A ready prompt instead of a conversation."""
    start = ask(count=3, **given)
    start.text = text
    return start


async def test_a_prompt_is_told_with_its_probabilities(server: TestServer) -> None:
    text = "<|start_header_id|>Grüße, " + "again and again " * 20
    told = {"logprobs": True, "top_logprobs": 3, "prompt_logprobs": True, "echo": True}
    plain = ready(text)
    stream = await answers(server, [plain, plain, ready(text, output=told), ready(text, output=told)])
    for event_id in (3, 4):
        pieces = [event.prompt for event in stream.events(event_id) if event.HasField("prompt")]
        found = [one for piece in pieces for one in piece.logprobs]
        assert pieces[0].text == "<|begin_of_text|>" + text == b"".join(one.bytes for one in found).decode()
        assert len(pieces[0].token_ids) == len(found) == stream.finished(event_id).usage.prompt_tokens
        assert stream.finished(event_id).usage.cached_tokens == 0
        assert found[0].logprob == 0
        assert all(len(one.top) == 3 and one.logprob <= one.top[0].logprob + 1e-6 for one in found[1:])
    assert [event.WhichOneof("kind") for event in stream.events(1)].count("prompt") == 0


async def test_the_probabilities_of_a_prompt_are_those_of_the_same_answer(server: TestServer) -> None:
    told = {"logprobs": True, "prompt_logprobs": True}
    answered = await answers(server, [ask(count=10, output={"logprobs": True}, sampling={"temperature": 0.0})])
    ids = token_ids(answered)
    expected = [one.logprob for delta in deltas(answered) for one in delta.logprobs]
    echoed = await answers(server, [ask(count=1, output={"echo": True})])
    prompt = next(event.prompt.token_ids for event in echoed.events(1) if event.HasField("prompt"))
    start = ask(count=1, output=told)
    start.tokens.ids.extend([*prompt, *ids])
    stream = await answers(server, [start])
    found = [one.logprob for event in stream.events(1) for one in event.prompt.logprobs]
    assert found[-10:] == pytest.approx(expected, abs=1e-4)


# --- shapes ------------------------------------------------------------------------------------

NAMES = st.sampled_from(["a", "b", "name", "ünï", 'with "quotes"', "c d", ""])
LEAVES = st.one_of(
    st.just({"type": "null"}),
    st.just({"type": "boolean"}),
    st.builds(
        lambda low, more: {"type": "integer", "minimum": low, "maximum": low + more},
        st.integers(-99, 99),
        st.integers(0, 1000),
    ),
    st.just({"type": "integer"}),
    st.just({"type": "number", "minimum": 0, "maximum": 10}),
    st.builds(
        lambda low, more: {"type": "string", "minLength": low, "maxLength": low + more},
        st.integers(0, 3),
        st.integers(0, 8),
    ),
    st.sampled_from(["^[a-f]{2,5}$", "^(yes|no)$", "^\\d{3}-\\d{4}$"]).map(lambda p: {"type": "string", "pattern": p}),
    st.sampled_from(["date", "ipv4", "uuid"]).map(lambda f: {"type": "string", "format": f}),
    st.lists(st.one_of(st.integers(-5, 5), st.text(max_size=4), st.booleans(), st.none()), min_size=1, max_size=4).map(
        lambda values: {"enum": values}
    ),
    st.integers(0, 9).map(lambda value: {"const": {"v": value}}),
)


def one_of_tagged(options: list[dict[str, Any]]) -> dict[str, Any]:
    """One of several objects, which a property tells apart."""
    tagged = [object_of({"kind": {"const": str(i)}, "value": one}, True) for i, one in enumerate(options)]
    return {"oneOf": tagged}


def object_of(properties: dict[str, Any], all_required: bool) -> dict[str, Any]:
    required = list(properties) if all_required else list(properties)[:1]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def composed(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    return st.one_of(
        st.builds(
            lambda items, low, more: {"type": "array", "items": items, "minItems": low, "maxItems": low + more},
            inner,
            st.integers(0, 2),
            st.integers(0, 2),
        ),
        st.builds(object_of, st.dictionaries(NAMES, inner, max_size=3), st.booleans()),
        st.lists(inner, min_size=1, max_size=3).map(lambda options: {"anyOf": options}),
        st.lists(inner, min_size=1, max_size=3).map(one_of_tagged),
    )


SCHEMAS = st.recursive(LEAVES, composed, max_leaves=6)


def random_schemas(count: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []

    @settings(max_examples=count, derandomize=True, database=None)
    @given(SCHEMAS)
    def collect(schema: dict[str, Any]) -> None:
        found.append(schema)

    collect()
    return found


def shaped(schema: dict[str, Any], number: int, picture: bytes | None) -> inference_pb2.Start:
    fields: dict[str, Any] = {
        "stopping": options_pb2.Stopping(max_tokens=SHAPE_TOKENS),
        "sampling": options_pb2.Sampling(seed=number),
        "format": options_pb2.OutputFormat(json_schema=options_pb2.JsonSchemaFormat(schema_json=json.dumps(schema))),
    }
    return image_chat("JSON!", [picture], **fields) if picture else chat("JSON!", **fields)


@pytest.mark.parametrize("with_picture", [False, True])
async def test_answers_hold_to_random_schemas(server: TestServer, with_picture: bool) -> None:
    schemas = random_schemas(200)
    assert len(schemas) >= 190
    picture = encoded(disc("red")) if with_picture else None
    stream = await answers(server, [shaped(schema, i, picture) for i, schema in enumerate(schemas)])
    finished = 0
    for event_id, schema in enumerate(schemas, 1):
        if deltas(stream, event_id)[-1].finish_reason == inference_pb2.FINISH_REASON_STOP:
            finished += 1
            jsonschema.validate(
                json.loads(stream.text(event_id)), schema, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER
            )
    assert finished >= 0.9 * len(schemas)


async def test_objects_have_no_properties_that_a_schema_does_not_name(server: TestServer) -> None:
    nothing = {"type": "object", "properties": {}}
    open_schema = {
        "properties": {"a": {"$ref": "#/$defs/b"}, "c": {"items": nothing, "type": "array", "maxItems": 2}},
        "required": ["a", "c"],
        "$defs": {"b": {"type": "object", "properties": {"x": {"type": "null"}}}},
    }
    stream = await answers(server, [shaped({"type": "object"} | open_schema, i, None) for i in range(5)])
    for event_id in range(1, 6):
        found = json.loads(stream.text(event_id))
        assert set(found) == {"a", "c"}
        assert set(found["a"]) <= {"x"}


async def test_schemas_that_are_combined_stay_open(server: TestServer) -> None:
    one, other = ({"type": "object", "properties": {name: {"type": "null"}}, "required": [name]} for name in "ab")
    stream = await answers(server, [shaped({"allOf": [one, other]}, 1, None)])
    assert stream.text(1).startswith('{"a": null, "b": null')


@pytest.mark.parametrize(
    ("shape", "pattern"),
    [
        ({"regex": "[0-9]{3}-[a-f]{2}"}, "[0-9]{3}-[a-f]{2}"),
        ({"grammar": 'start: "yes" | "no" DIGITS\nDIGITS: /[0-9]{2}/'}, "yes|no[0-9]{2}"),
    ],
)
async def test_every_choice_holds_to_its_shape(server: TestServer, shape: dict[str, str], pattern: str) -> None:
    stream = await answers(server, [ask(count=40, format=shape, n=4, sampling={"seed": 1})])
    texts = [stream.text(1, index) for index in range(4)]
    assert all(re.fullmatch(pattern, text) for text in texts), texts
    assert len(set(texts)) > 1


async def test_an_object_may_be_anything_but_is_one(server: TestServer) -> None:
    starts = [ask(count=400, format={"json_object": {}}, sampling={"seed": seed}) for seed in range(20)]
    stream = await answers(server, starts)
    for event_id in range(1, 21):
        text = stream.text(event_id)
        assert text.startswith("{")
        if deltas(stream, event_id)[-1].finish_reason == inference_pb2.FINISH_REASON_STOP:
            assert isinstance(json.loads(text), dict)


async def test_a_shape_that_proves_impossible_later_is_a_callers_fault(server: TestServer) -> None:
    endless = {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}
    costly = {"regex": "a{100000}"}
    schema = {"json_schema": options_pb2.JsonSchemaFormat(schema_json=json.dumps(endless))}
    stream = server.open_stream()
    for event_id, shape in enumerate((schema, costly), 1):
        await stream.start(event_id, ask(format=shape, count=200))
    await stream.finish()
    for event_id in (1, 2):
        assert stream.finished(event_id).error.code == code_pb2.INVALID_ARGUMENT


REFUSED = {
    "format.json_schema.schema_json": [
        "",
        "[]",
        "{",
        '{"type": "strin"}',
        '{"type": "array", "uniqueItems": true}',
        '{"not": {"type": "string"}}',
        '{"oneOf": [{"type": "integer"}, {"type": "number"}]}',
        '{"oneOf": [{"type": "object", "properties": {"a": {}}, "required": ["a"]}, {"type": "object"}]}',
        '{"oneOf": [{"type": [{}, 5]}, {"type": 7}]}',
        '{"$ref": "https://example.com/schema"}',
        '{"type": "array", "uniqueItems": true, "x-guidance": {"lenient": true}}',
        '{"const": NaN}',
        '{"const": "\\ud800"}',
        '{"type": "string", "pattern": "(?=a)b"}',
        '{"a": ' * 5000 + "1" + "}" * 5000,
        json.dumps({"enum": ["x" * 300_000]}),
    ],
    "format.regex": ["(", "a(?=b)", r"(a)\1", "x" * 300_000],
    "format.grammar": ["", 'start: "a', "begin: /a/"],
}


@pytest.mark.parametrize(("field", "source"), [(field, source) for field in REFUSED for source in REFUSED[field]])
async def test_what_cannot_be_held_to_is_refused(server: TestServer, field: str, source: str) -> None:
    name = field.split(".")[1]
    given: dict[str, Any] = {name: {"schema_json": source} if name == "json_schema" else source}
    shape = options_pb2.OutputFormat(**given)
    stream = server.open_stream()
    await stream.start(1, chat("hi", format=shape))
    async with asyncio.timeout(5):
        await stream.finish()
    error = stream.finished(1).error
    assert error.code == 3
    assert field.encode() in error.SerializeToString()
    assert not stream.finished(1).HasField("usage")


# --- tools -------------------------------------------------------------------------------------

WEATHER = {
    "type": "object",
    "properties": {
        "city": {"$ref": "#/$defs/city"},
        "days": {"type": "integer", "minimum": 1, "maximum": 7},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
    "$defs": {"city": {"type": "string", "minLength": 1, "maxLength": 10}},
}
UNIQUE = {"type": "object", "properties": {"x": {"type": "array", "uniqueItems": True}}}


def tool(name: str, schema: dict[str, Any] | None = None, strict: bool = False) -> chat_pb2.Tool:
    return chat_pb2.Tool(name=name, parameters_json=json.dumps(schema) if schema else "", strict=strict)


def asking(
    *tools: chat_pb2.Tool, picture: bytes | None = None, parallel: bool | None = None, **choice: Any
) -> inference_pb2.Start:
    start = image_chat("call!", [picture] if picture else [], stopping=options_pb2.Stopping(max_tokens=800))
    start.chat.messages.insert(0, chat_pb2.Message(role=chat_pb2.ROLE_SYSTEM, parts=[chat_pb2.Part(text="Be brief.")]))
    start.chat.tools.extend(tools)
    if parallel is not None:
        start.chat.parallel_tool_calls = parallel
    if choice:
        start.chat.tool_choice.CopyFrom(chat_pb2.ToolChoice(**choice))
    return start


def calls(stream: Stream, event_id: int) -> list[tuple[str, Any]]:
    return [(name, json.loads("".join(arguments))) for name, arguments in pieces_of_calls(stream, event_id)]


def pieces_of_calls(stream: Stream, event_id: int) -> list[tuple[str, list[str]]]:
    found: list[tuple[str, list[str]]] = []
    for delta in deltas(stream, event_id):
        for call in delta.tool_calls:
            if call.id:
                found.append((call.name, []))
            found[call.index][1].append(call.arguments_json)
    return found


@pytest.mark.parametrize("with_picture", [False, True])
async def test_tools_that_must_be_called_are_called_as_their_schemas_say(
    server: TestServer, with_picture: bool
) -> None:
    picture = encoded(disc("red")) if with_picture else None
    required = chat_pb2.TOOL_CHOICE_MODE_REQUIRED
    offered = (tool("weather", WEATHER), tool("stop"), tool("odd", UNIQUE))
    starts = [
        *(asking(*offered, picture=picture, mode=required) for _ in range(10)),
        *(asking(*offered, picture=picture, mode=required, parallel=False) for _ in range(10)),
        *(asking(*offered, picture=picture, name="weather") for _ in range(10)),
    ]
    stream = await answers(server, starts)
    finished = 0
    for event_id in range(1, 31):
        if deltas(stream, event_id)[-1].finish_reason == inference_pb2.FINISH_REASON_LENGTH:
            continue
        finished += 1
        assert deltas(stream, event_id)[-1].finish_reason == inference_pb2.FINISH_REASON_TOOL_CALLS
        assert stream.text(event_id) == ""
        found = calls(stream, event_id)
        assert 1 <= len(found) <= (16 if event_id <= 10 else 1)
        for name, arguments in found:
            assert name in (["weather"] if event_id > 20 else ["weather", "stop", "odd"])
            jsonschema.validate(arguments, WEATHER if name == "weather" else {"type": "object"})
    assert finished >= 15


async def test_a_call_that_max_tokens_cuts_off_shows_nothing_of_its_form(server: TestServer) -> None:
    braces = options_pb2.Sampling(temperature=1.0, logit_bias={90: 50.0})  # {
    starts = [
        start
        for _ in range(18)
        for start in (
            asking(tool("weather", WEATHER), mode=chat_pb2.TOOL_CHOICE_MODE_REQUIRED),
            asking(tool("weather", WEATHER), name="weather"),
            asking(tool("weather", WEATHER, strict=True)),
        )
    ]
    for number, start in enumerate(starts):
        start.stopping.max_tokens = number // 3 * 3 + 1
        if number % 3 == 2:  # it may answer in text, which does not begin with a brace
            start.sampling.CopyFrom(braces)
    stream = await answers(server, starts)
    cut_in_arguments = 0
    for event_id in range(1, len(starts) + 1):
        assert stream.text(event_id) == ""
        assert deltas(stream, event_id)[-1].finish_reason == inference_pb2.FINISH_REASON_LENGTH
        written = ["".join(arguments) for _, arguments in pieces_of_calls(stream, event_id)]
        assert all(arguments.startswith("{") for arguments in written)  # as far as it came
        cut_in_arguments += bool(written)
    assert cut_in_arguments >= 5


async def test_a_strict_tool_need_not_be_called_but_only_as_its_schema_says(server: TestServer) -> None:
    braces = {"temperature": 1.0, "logit_bias": {90: 8.0}}  # {
    starts = [asking(tool("weather", WEATHER, strict=True)) for _ in range(20)]
    for start in starts[10:]:
        start.sampling.CopyFrom(options_pb2.Sampling(**braces))  # type: ignore[arg-type]
    stream = await answers(server, starts)
    assert any(stream.text(event_id) for event_id in range(1, 11))
    found = [call for event_id in range(11, 21) for call in calls_if_finished(stream, event_id)]
    assert found
    for name, arguments in found:
        assert name == "weather"
        jsonschema.validate(arguments, WEATHER)


def calls_if_finished(stream: Stream, event_id: int) -> list[tuple[str, Any]]:
    ended = deltas(stream, event_id)[-1].finish_reason == inference_pb2.FINISH_REASON_TOOL_CALLS
    return calls(stream, event_id) if ended else []


async def test_one_call_is_enough_where_several_are_not_wanted(server: TestServer) -> None:
    braces = options_pb2.Sampling(temperature=1.0, logit_bias={90: 8.0})  # {
    starts = [asking(tool("stop", {"type": "object", "maxProperties": 0}), parallel=False) for _ in range(10)]
    for start in starts:
        start.sampling.CopyFrom(braces)
    stream = await answers(server, starts)
    assert all(len(calls_if_finished(stream, event_id)) <= 1 for event_id in range(1, 11))


async def test_what_tools_say_is_bounded(server: TestServer) -> None:
    stream = server.open_stream()
    await stream.start(1, asking(*(tool(f"f{i}", {"type": "object", "title": "x" * 20_000}) for i in range(7))))
    await stream.finish()
    assert b"chat.tools" in stream.finished(1).error.SerializeToString()


async def test_a_strict_schema_that_cannot_be_held_to_is_refused(server: TestServer) -> None:
    stream = server.open_stream()
    await stream.start(1, asking(tool("stop"), tool("odd", UNIQUE, strict=True)))
    await stream.finish()
    assert b"chat.tools[1].parameters_json" in stream.finished(1).error.SerializeToString()
