"""Validation of chat requests: what is refused, by which name."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge_setup import CHAT, BridgeUnderTest, ask
from spyglass_bridge.errors import ApiError
from spyglass_bridge.openai.requests import ChatRequest, CompletionRequest
from spyglass_bridge.openai.translation import CallContext, translate_chat
from spyglass_bridge.openai.validation import parse

CONTEXT = CallContext(request_id="r", caller_key="k", timeout_s=0, max_image_bytes=1000)


def refusal_of(**fields: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        translate_chat(parse(json.dumps(ask(**fields)).encode(), ChatRequest), CONTEXT)
    assert caught.value.http_status == 400
    return caught.value


@contextmanager
def suppress_refusal() -> Iterator[list[ApiError]]:
    """Collects the refusal, if there is one."""
    refusals: list[ApiError] = []
    try:
        yield refusals
    except ApiError as error:
        refusals.append(error)


def user(content: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content}]


IMAGE = {"type": "image_url", "image_url": {"url": "https://example.com/x.png"}}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": "1"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"temperature": 2.1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"min_p": 1.5}, "min_p"),
        ({"top_k": 1000}, "top_k"),
        ({"top_k": 1.0}, "top_k"),
        ({"n": 10**9}, "n"),
        ({"n": True}, "n"),
        ({"seed": 2**64}, "seed"),
        ({"seed": -(2**63) - 1}, "seed"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 2**31}, "max_tokens"),
        ({"max_tokens": 2**63}, "max_tokens"),
        ({"max_completion_tokens": 2**31}, "max_completion_tokens"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "max_completion_tokens"),
        ({"stop": ["x"] * 10_000}, "stop"),
        ({"stop": [""]}, "stop[0]"),
        ({"stop": 3}, "stop"),
        ({"stream": 1}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        (
            {"stream": True, "stream_options": {"include_usage": False, "continuous_usage_stats": True}},
            "stream_options.continuous_usage_stats",
        ),
        ({"model": ""}, "model"),
        ({"model": None}, "model"),
        ({"presence_penalty": 2.5}, "presence_penalty"),
        ({"presence_penalty": False}, "presence_penalty"),
        ({"frequency_penalty": "1"}, "frequency_penalty"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"logit_bias": {"x": 1}}, "logit_bias.x"),
        ({"logit_bias": {"05": 1}}, "logit_bias.05"),
        ({"logit_bias": {"4294967296": 1}}, "logit_bias.4294967296"),
        ({"logit_bias": {"1": 101}}, "logit_bias.1"),
        ({"logit_bias": {str(i): 1 for i in range(1025)}}, "logit_bias"),
        ({"logprobs": 1}, "logprobs"),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"min_tokens": -1}, "min_tokens"),
        ({"response_format": "json"}, "response_format"),
        ({"response_format": {"type": "yaml"}}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
            "response_format.json_schema.schema",
        ),
        ({"response_format": {"type": "regex"}}, "response_format.regex"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": []}}]},
            "tools[0].function.parameters",
        ),
        ({"tool_choice": "always"}, "tool_choice"),
        ({"tool_choice": {"type": "function"}}, "tool_choice.function"),
        ({"tool_choice": 1}, "tool_choice"),
        ({"parallel_tool_calls": "yes"}, "parallel_tool_calls"),
        ({"messages": []}, "messages"),
        ({"messages": {}}, "messages"),
        ({"messages": [1]}, "messages[0]"),
        ({"messages": [{"role": "king", "content": "x"}]}, "messages[0]"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
        ({"messages": [{"role": "assistant", "content": None}]}, "messages[0].content"),
        ({"messages": user(None)}, "messages[0].content"),
        ({"messages": user([])}, "messages[0].content"),
        ({"messages": user([{"type": "text", "text": "a"}, {"type": "text"}])}, "messages[0].content[1].text"),
        ({"messages": user([{"type": "video"}])}, "messages[0].content[0]"),
        (
            {"messages": user([{"type": "image_url", "image_url": {"url": 1}}])},
            "messages[0].content[0].image_url.url",
        ),
        (
            {"messages": user([{"type": "image_url", "image_url": {"url": "data:image/png;base64,!"}}])},
            "messages[0].content[0].image_url.url",
        ),
        ({"messages": [{"role": "system", "content": [IMAGE]}]}, "messages[0].content[0].type"),
    ],
)
def test_bad_values_are_refused_at_their_place(fields: dict[str, Any], param: str) -> None:
    assert refusal_of(**fields).param == param


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"echo": True}, "echo"),
        ({"audio": {"voice": "x"}}, "audio"),
        ({"best_of": 2}, "best_of"),
        ({"function_call": "auto"}, "function_call"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"modalities": ["audio"]}, "modalities"),
        ({"service_tier": "flex"}, "service_tier"),
        ({"suffix": "x"}, "suffix"),
        ({"verbosity": "high"}, "verbosity"),
        ({"web_search_options": {}}, "web_search_options"),
        ({"stream": True, "stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation"),
        ({"store": True}, "store"),
        ({"reasoning_effort": "high"}, "reasoning_effort"),
        ({"messages": [{"role": "user", "content": "x", "audio": {}}]}, "messages[0].audio"),
    ],
)
def test_what_is_not_honoured_yet_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    refusal = refusal_of(**fields)
    assert (refusal.code, refusal.param) == ("unsupported_parameter", param)
    assert param in refusal.message


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"chat_template": "x"}, "chat_template"),
        ({"chat_template_kwargs": {}}, "chat_template_kwargs"),
        ({"temprature": 1}, "temprature"),
        ({"<odd>": 1}, "<odd>"),
        ({"messages": [{"role": "user", "content": "x", "colour": 1}]}, "messages[0].colour"),
    ],
)
def test_unknown_parameters_are_refused_by_name(fields: dict[str, Any], param: str) -> None:
    refusal = refusal_of(**fields)
    assert (refusal.code, refusal.param) == ("unknown_parameter", param)


def start_of(*messages: dict[str, Any]) -> Any:
    return translate_chat(parse(json.dumps(ask(messages=list(messages))).encode(), ChatRequest), CONTEXT)


def called(arguments: str | None = "{}", **fields: Any) -> dict[str, Any]:
    function = {"name": "f"} | ({} if arguments is None else {"arguments": arguments})
    return {"role": "assistant", "tool_calls": [{"id": "c1", "type": "function", "function": function} | fields]}


ECHOED: list[tuple[dict[str, Any], dict[str, Any]]] = [
    (
        {"role": "assistant", "content": "Hi"},
        {
            "refusal": None,
            "tool_calls": None,
            "annotations": [],
            "audio": None,
            "function_call": None,
            "parsed": {"a": 1},
        },
    ),
    ({"role": "assistant", "content": "Hi"}, {"refusal": "", "reasoning_content": "", "what_comes_next_year": None}),
    ({"role": "assistant", "content": "Hi"}, {"provider_specific_fields": {"refusal": None}, "name": "bob"}),
    (called(), {"content": None}),
    (called(), {"content": []}),
    (called(), {"tool_calls": called(index=0)["tool_calls"]}),
    (called(""), {"tool_calls": called(None)["tool_calls"]}),
    (
        called(),
        {
            "tool_calls": called(function={"name": "f", "arguments": "{}", "parsed_arguments": {}, "new": None})[
                "tool_calls"
            ]
        },
    ),
    (called('{"a'), {"tool_calls": [{"id": "c1", "function": {"name": "f", "arguments": '{"a'}}]}),
    (
        {"role": "user", "content": [{"type": "text", "text": "x"}]},
        {"content": [{"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}, "annotations": None}]},
    ),
]


@pytest.mark.parametrize(("plain", "beside"), ECHOED)
def test_what_cannot_change_the_prompt_is_taken_in_messages(plain: dict[str, Any], beside: dict[str, Any]) -> None:
    assert start_of(plain | beside) == start_of(plain)


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "assistant", "content": "Hi", "refusal": "no"}, "messages[0].refusal"),
        ({"role": "assistant", "content": "Hi", "reasoning_content": "so"}, "messages[0].reasoning_content"),
        ({"role": "assistant", "content": "Hi", "annotations": [{}]}, "messages[0].annotations"),
        ({"role": "assistant", "content": "Hi", "index": 0}, "messages[0].index"),
        ({"role": "user", "content": [{"type": "text", "text": "x", "parsed": 1}]}, "messages[0].content[0].parsed"),
        (called(parsed_arguments={}), "messages[0].tool_calls[0].parsed_arguments"),
    ],
)
def test_what_would_change_the_prompt_is_refused_in_messages(message: dict[str, Any], param: str) -> None:
    assert refusal_of(messages=[message]).param == param


def test_labels_have_no_effect() -> None:
    labels = dict.fromkeys(("user", "metadata", "prompt_cache_key", "safety_identifier"), "x")
    named = ask(messages=[{"role": "user", "content": "Hi", "name": "bob"}], **labels)
    plain = ask(messages=[{"role": "user", "content": "Hi"}])
    starts = [translate_chat(parse(json.dumps(body).encode(), ChatRequest), CONTEXT).start for body in (named, plain)]
    assert starts[0] == starts[1]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[1]",
        b"null",
        b"{",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b'{"model":"m","messages":[{"role":"user","content":"\\ud800"}]}',
        b'{"model":"m","messages":[{"role":"user","content":"x"}],"temperature":NaN}',
        b'{"model":"m","messages":[{"role":"user","content":"x"}],"temperature":-Infinity}',
        b'{"model":"m","messages":[{"role":"user","content":"x"}],"temperature":1e999}',
        b'{"model":"m","messages":[{"role":"user","content":"x"}],"seed":' + b"9" * 5000 + b"}",
    ],
)
async def test_hostile_bodies_are_400(bridge: BridgeUnderTest, body: bytes) -> None:
    async with bridge.http.post(CHAT, data=body, headers={"Content-Type": "application/json"}) as response:
        assert response.status == 400
        assert (await response.json())["error"]["type"] == "invalid_request_error"
    assert not bridge.server.turns


def test_of_duplicate_keys_the_last_one_counts() -> None:
    body = b'{"model":"a","model":"b","messages":[{"role":"user","content":"x"}]}'
    assert parse(body, ChatRequest).model == "b"


def test_messages_far_over_any_context_are_refused_before_they_are_sent() -> None:
    refusal = refusal_of(messages=user("x" * (5 << 20)))
    assert (refusal.code, refusal.param) == ("context_length_exceeded", "messages")
    assert refusal.message.startswith("This model's maximum context length is ")


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_max_tokens_may_be_far_more_than_fits(field: str) -> None:
    body = json.dumps(ask(**{field: 2**31 - 1})).encode()
    assert translate_chat(parse(body, ChatRequest), CONTEXT).start.stopping.max_tokens == 2**31 - 1


@given(seed=st.integers(-(2**63), 2**64 - 1))
def test_seeds_keep_their_bits(seed: int) -> None:
    start = translate_chat(parse(json.dumps(ask(seed=seed)).encode(), ChatRequest), CONTEXT).start
    assert (start.sampling.seed - seed) % 2**64 == 0


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=8), children, max_size=3),
    max_leaves=8,
)


@given(
    key=st.sampled_from(["messages", "stop", "stream_options", "tools", "seed", "temperature", "model", "n"]),
    value=json_values,
)
def test_any_value_is_taken_or_refused_with_400(key: str, value: Any) -> None:
    with suppress_refusal() as refusals:
        translate_chat(parse(json.dumps(ask(**{key: value})).encode(), ChatRequest), CONTEXT)
    for refusal in refusals:
        assert refusal.http_status == 400
        assert refusal.param is None or refusal.param.startswith(key)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": 5}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ["x"] * 33}, "prompt"),
        ({"prompt": [1, -1]}, "prompt[1]"),
        ({"prompt": [[1], []]}, "prompt[1]"),
        ({"logprobs": True}, "logprobs"),
        ({"echo": True, "logprobs": 0, "n": 2}, "n"),
        ({"echo": True, "logprobs": 0, "prompt": "x" * 70_000}, "prompt"),
    ],
)
def test_bad_completions_are_refused_at_their_place(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as caught:
        parse(json.dumps({"model": "m", "prompt": "x"} | fields).encode(), CompletionRequest)
    assert caught.value.param == param
