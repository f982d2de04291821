"""Validation of a Start: wrong fields are named, and nothing is accepted and ignored."""

import math
from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf import duration_pb2, timestamp_pb2
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

from fakes import chat, image_chat
from spyglass.v1 import admin_pb2, chat_pb2, inference_pb2, options_pb2
from spyglass_server.codec.chat import ImageLimits
from spyglass_server.codec.keys import decode_new_key, encode_key
from spyglass_server.codec.start import Spec, decode_start
from spyglass_server.codec.usage import decode_filter
from spyglass_server.errors import InvalidImage, InvalidRequest, Unsupported
from spyglass_server.prompt.conversation import RawJson
from spyglass_server.prompt.prompt_maker import ChatInput

LIMITS = ImageLimits(max_images=2, max_bytes=100)


def decode(start: inference_pb2.Start) -> Spec:
    return decode_start(start, LIMITS)


def sampling(**fields: Any) -> inference_pb2.Start:
    return chat("hi", sampling=options_pb2.Sampling(**fields))


def stopping(**fields: Any) -> inference_pb2.Start:
    return chat("hi", stopping=options_pb2.Stopping(**fields))


def message(**fields: Any) -> inference_pb2.Start:
    return inference_pb2.Start(chat=chat_pb2.Chat(messages=[chat_pb2.Message(**fields)]))


UNSUPPORTED = {
    "cache_salt": chat("hi", cache_salt="x"),
}


@pytest.mark.parametrize("field", UNSUPPORTED)
def test_what_is_not_honoured_is_refused_by_name(field: str) -> None:
    with pytest.raises(Unsupported) as refusal:
        decode(UNSUPPORTED[field])
    assert refusal.value.field == field
    assert refusal.value.reason == "unsupported_parameter"


def calling(arguments: str) -> inference_pb2.Start:
    return message(role=chat_pb2.ROLE_ASSISTANT, tool_calls=[chat_pb2.ToolCall(arguments_json=arguments)])


def tools(*names: str, parameters: str = "", **choice: Any) -> inference_pb2.Start:
    chat = message(role=chat_pb2.ROLE_USER, parts=[chat_pb2.Part(text="x")]).chat
    chat.tools.extend(chat_pb2.Tool(name=name, parameters_json=parameters) for name in names)
    if choice:
        chat.tool_choice.CopyFrom(chat_pb2.ToolChoice(**choice))
    return inference_pb2.Start(chat=chat)


WRONG = {
    "chat.tools": tools(*(f"f{i}" for i in range(129))),
    "chat.tools[0].name": tools("two words"),
    "chat.tools[1].name": tools("f", "f"),
    "chat.tools[0].parameters_json": tools("f", parameters="[]"),
    "chat.tool_choice.name": tools("f", name="g"),
    "chat.tool_choice.mode": tools(mode=chat_pb2.TOOL_CHOICE_MODE_REQUIRED),
    "format": inference_pb2.Start(chat=tools("f").chat, format=options_pb2.OutputFormat(regex="a")),
    "chat": inference_pb2.Start(),
    "chat.messages": inference_pb2.Start(chat=chat_pb2.Chat()),
    "chat.messages[0].role": message(parts=[chat_pb2.Part(text="x")]),
    "chat.messages[0].parts[0].image": message(role=chat_pb2.ROLE_USER, parts=[chat_pb2.Part()]),
    "chat.messages[0].tool_calls": message(role=chat_pb2.ROLE_USER, tool_calls=[chat_pb2.ToolCall()]),
    "chat.messages[0].tool_call_id": message(role=chat_pb2.ROLE_USER, tool_call_id="x"),
    "n": chat("hi", n=5),
    "sampling.top_p": sampling(top_p=0.0),
    "sampling.min_p": sampling(min_p=1.5),
    "sampling.presence_penalty": sampling(presence_penalty=2.5),
    "sampling.frequency_penalty": sampling(frequency_penalty=math.nan),
    "sampling.repetition_penalty": sampling(repetition_penalty=0.0),
    "sampling.logit_bias": sampling(logit_bias={1: 101.0}),
    "output.prompt_logprobs": chat("hi", output=options_pb2.Output(prompt_logprobs=True)),
    "output.top_logprobs": chat("hi", output=options_pb2.Output(top_logprobs=1)),
    "stopping.min_tokens": stopping(min_tokens=3, max_tokens=2),
    "stopping.ignore_eos": chat(
        "hi", format=options_pb2.OutputFormat(regex="a"), stopping=options_pb2.Stopping(ignore_eos=True)
    ),
    "chat.messages[0].parts[0].image.detail": message(
        role=chat_pb2.ROLE_USER,
        parts=[chat_pb2.Part(image=chat_pb2.Image.FromString(b"\x0a\x01x\x18\x07"))],  # data x, detail 7
    ),
    "stopping.max_tokens": stopping(max_tokens=0),
    "stopping.max_tokens ": stopping(max_tokens=2**31),
    "stopping.min_tokens ": stopping(min_tokens=16385, max_tokens=100_000),
    "stopping.strings": stopping(strings=["x"] * 17),
    "stopping.strings[1]": stopping(strings=["x", ""]),
    "stopping.strings[0]": stopping(strings=["x" * 257]),
    "stopping.token_ids": stopping(token_ids=range(17)),
    "timeout": chat("hi", timeout=duration_pb2.Duration()),
    "request_id": chat("hi", request_id="a\nb"),
}


@pytest.mark.parametrize("field", WRONG)
def test_wrong_fields_are_named(field: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        decode(WRONG[field])
    assert refusal.value.field == field.strip()


PARTS: dict[str, Callable[[inference_pb2.Start], Message]] = {
    "": lambda start: start,
    "format": lambda start: start.format,
    "format.json_schema": lambda start: start.format.json_schema,
    "sampling": lambda start: start.sampling,
    "stopping": lambda start: start.stopping,
    "output": lambda start: start.output,
    "caller": lambda start: start.caller,
    "timeout": lambda start: start.timeout,
    "chat": lambda start: start.chat,
    "chat.tools[0]": lambda start: start.chat.tools.add(),
    "chat.messages[0]": lambda start: start.chat.messages[0],
    "chat.messages[0].parts[0]": lambda start: start.chat.messages[0].parts[0],
    "chat.messages[0].parts[1].image": lambda start: start.chat.messages[0].parts.add().image,
}


@pytest.mark.parametrize("part", PARTS)
def test_what_only_a_later_version_knows_is_refused(part: str) -> None:
    start = chat("hi")
    PARTS[part](start).MergeFromString(b"\xc0\x3e\x01")  # field 1000
    with pytest.raises(InvalidRequest, match=r"field 1000 of \w+ is of a later version") as refused:
        decode(start)
    assert refused.value.field == part


def test_parameters_are_the_schema_of_an_object() -> None:
    for parameters in ('{"type": "string"}', '{"type": ["object", "null"]}'):
        with pytest.raises(InvalidRequest) as refusal:
            decode(tools("f", parameters=parameters))
        assert refusal.value.field == "chat.tools[0].parameters_json"


@pytest.mark.parametrize(
    "arguments",
    [
        "[]",
        "{",
        '{"city": "Par',
        "[" * 100_000,
        '{"a": ' * 100 + "1" + "}" * 100,
        '{"a": NaN}',
        '{"a": 1e999}',
        '{"a": "\\ud800"}',
    ],
)
def test_arguments_in_a_history_are_taken_as_they_were_written(arguments: str) -> None:
    given = decode(calling(arguments)).input
    assert isinstance(given, ChatInput)
    assert given.messages[0].tool_calls[0].arguments == RawJson(arguments)


def test_arguments_that_are_empty_are_none() -> None:
    for arguments in ("", " \n", "{}"):
        given = decode(calling(arguments)).input
        assert isinstance(given, ChatInput)
        assert given.messages[0].tool_calls[0].arguments == {}


def test_a_conversation_has_a_bounded_number_of_messages_and_parts() -> None:
    many = inference_pb2.Start(chat=chat_pb2.Chat(messages=[chat_pb2.Message()] * 5000))
    wide = message(role=chat_pb2.ROLE_USER, parts=[chat_pb2.Part(text="x")] * 5000)
    for start in (many, wide):
        with pytest.raises(InvalidRequest) as refusal:
            decode(start)
        assert refusal.value.field == "chat.messages"


@pytest.mark.parametrize("temperature", [-0.1, 2.1, math.nan, math.inf, -math.inf])
def test_a_temperature_out_of_range_is_refused(temperature: float) -> None:
    with pytest.raises(InvalidRequest):
        decode(sampling(temperature=temperature))


def test_zero_n_is_refused_and_an_absent_one_is_one() -> None:
    with pytest.raises(InvalidRequest):
        decode(chat("hi", n=0))
    assert decode(chat("hi")).n == 1


def test_an_explicit_zero_differs_from_an_absent_field() -> None:
    assert decode(sampling(temperature=0.0)).sampling.temperature == 0.0
    assert decode(chat("hi")).sampling.temperature == 1.0


@given(st.integers(0, 2**64 - 1))
def test_every_seed_arrives(seed: int) -> None:
    assert decode(sampling(seed=seed)).sampling.seed == seed


def test_without_a_seed_answers_differ() -> None:
    assert decode(chat("hi")).sampling.seed != decode(chat("hi")).sampling.seed


def test_images_are_counted_and_measured() -> None:
    assert decode(image_chat("hi", [b"x" * 100, None])).images == (b"x" * 100, None)
    with pytest.raises(InvalidImage, match="3 images; 2 are allowed"):
        decode(image_chat("hi", [None, None, None]))
    with pytest.raises(InvalidImage, match="larger than 100 bytes"):
        decode(image_chat("hi", [b"x" * 101]))


def test_images_stand_only_in_user_messages() -> None:
    part = chat_pb2.Part(image=chat_pb2.Image(data=b"x"))
    with pytest.raises(InvalidImage, match="messages of the user"):
        decode(message(role=chat_pb2.ROLE_SYSTEM, parts=[part]))


def test_tools_that_must_not_be_called_are_not_told() -> None:
    spec = decode(tools("f", mode=chat_pb2.TOOL_CHOICE_MODE_NONE))
    assert spec.tool_use is None
    assert isinstance(spec.input, ChatInput)
    assert spec.input.tools == ()


def test_the_tool_that_must_be_called_is_the_only_one() -> None:
    spec = decode(tools("f", "g", name="g"))
    assert spec.tool_use is not None
    assert [tool.name for tool in spec.tool_use.tools] == ["g"]
    assert spec.tool_use.must_call
    assert not spec.tool_use.several


@pytest.mark.parametrize("seconds", [-(2**63), 2**63 - 1, 253_402_300_800])
def test_times_beyond_the_calendar_are_refused(seconds: int) -> None:
    moment = timestamp_pb2.Timestamp(seconds=seconds)
    with pytest.raises(InvalidRequest) as refusal:
        decode_new_key(admin_pb2.ApiKey(name="a", expires=moment))
    assert refusal.value.field == "key.expires"
    for field, chosen in (
        ("filter.since", inference_pb2.UsageFilter(since=moment)),
        ("filter.until", inference_pb2.UsageFilter(until=moment)),
    ):
        with pytest.raises(InvalidRequest) as refusal:
            decode_filter(chosen)
        assert refusal.value.field == field


def test_a_key_may_end_at_the_end_of_the_calendar() -> None:
    last = timestamp_pb2.Timestamp(seconds=253_402_300_799, nanos=999_999_999)
    assert encode_key(decode_new_key(admin_pb2.ApiKey(name="a", expires=last))).expires.seconds == last.seconds
