"""Chat completions: what reaches the server and what comes back, plain and streaming."""

import json
from typing import Any

import pytest

from bridge_setup import CHAT, MODEL, BridgeUnderTest, ask
from fake_service import USER_KEY, Reply
from spyglass.v1 import chat_pb2, options_pb2
from spyglass.v1 import inference_pb2 as pb

USAGE = {"prompt_tokens": 11, "completion_tokens": 3, "total_tokens": 14}


def events(text: str) -> list[str]:
    """The payloads of a stream of events, which must be well framed."""
    assert text.endswith("\n\n")
    lines = text[:-2].split("\n\n")
    assert all(line.startswith("data: ") and "\n" not in line for line in lines)
    return [line.removeprefix("data: ") for line in lines]


def chunks(text: str) -> list[dict[str, Any]]:
    """The chunks of a stream that ended well."""
    payloads = events(text)
    assert payloads[-1] == "[DONE]"
    return [json.loads(payload) for payload in payloads[:-1]]


def text_of(chunk_list: list[dict[str, Any]], index: int = 0) -> str:
    choices = [choice for chunk in chunk_list for choice in chunk["choices"] if choice["index"] == index]
    return "".join(choice["delta"].get("content", "") for choice in choices)


@pytest.mark.parametrize("path", [CHAT, "/v1/chat/completions"])
async def test_plain_answer_has_every_field(bridge: BridgeUnderTest, path: str) -> None:
    async with bridge.http.post(path, json=ask()) as response:
        answer = await response.json()
    assert response.status == 200
    assert answer["id"].startswith("chatcmpl-")
    assert answer["object"] == "chat.completion"
    assert isinstance(answer["created"], int)
    assert answer["model"] == MODEL
    assert answer["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Hello!", "refusal": None},
            "finish_reason": "stop",
            "logprobs": None,
        }
    ]
    assert answer["usage"].items() >= USAGE.items()
    assert answer["usage"]["prompt_tokens_details"] == {"cached_tokens": 3}
    assert answer["usage"]["estimated_cost"] == pytest.approx(11 * 0.35e-6 + 3 * 0.40e-6)


async def test_start_holds_the_whole_request(bridge: BridgeUnderTest) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "developer", "content": [{"type": "text", "text": "Be kind."}]},
        {"role": "user", "content": [{"type": "text", "text": "Hi"}, {"type": "text", "text": "!"}]},
        {
            "role": "assistant",
            "content": None,
            "refusal": None,
            "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "42"},
    ]
    status, _ = await bridge.chat(
        messages=messages,
        temperature=0,
        top_p=0.5,
        top_k=40,
        min_p=0.25,
        seed=-1,
        max_tokens=7,
        stop=["a", "b"],
        n=2,
        user="someone",
        presence_penalty=0.5,
        frequency_penalty=-0.5,
        repetition_penalty=1.5,
        logit_bias={"17": -100, "4": 2.5},
        logprobs=True,
        top_logprobs=3,
        min_tokens=2,
        prediction={"type": "content", "content": [{"type": "text", "text": "for"}, {"type": "text", "text": "ty"}]},
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "s", "strict": True, "schema": {"type": "null"}},
        },
        tool_choice="none",
    )
    assert status == 200
    start = bridge.server.turns[0].start
    assert [message.role for message in start.chat.messages] == [
        chat_pb2.ROLE_SYSTEM,
        chat_pb2.ROLE_SYSTEM,
        chat_pb2.ROLE_USER,
        chat_pb2.ROLE_ASSISTANT,
        chat_pb2.ROLE_TOOL,
    ]
    texts = [[part.text for part in message.parts] for message in start.chat.messages]
    assert texts == [["Be brief."], ["Be kind."], ["Hi", "!"], [], ["42"]]
    assert start.chat.messages[3].tool_calls[0] == chat_pb2.ToolCall(id="c1", name="f", arguments_json="{}")
    assert start.chat.messages[4].tool_call_id == "c1"
    sampling = start.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0, 0.5, 40, 0.25)
    assert sampling.HasField("temperature")
    assert sampling.seed == 2**64 - 1
    assert (sampling.presence_penalty, sampling.frequency_penalty, sampling.repetition_penalty) == (0.5, -0.5, 1.5)
    assert dict(sampling.logit_bias) == {17: -100, 4: 2.5}
    assert (start.output.logprobs, start.output.top_logprobs) == (True, 3)
    assert (start.stopping.max_tokens, start.stopping.min_tokens) == (7, 2)
    assert start.prediction == "forty"
    assert start.format.json_schema == options_pb2.JsonSchemaFormat(
        name="s", schema_json='{"type":"null"}', strict=True
    )
    assert list(start.stopping.strings) == ["a", "b"]
    assert start.n == 2
    assert start.model == MODEL
    assert start.caller.bearer_key == USER_KEY
    assert start.timeout.seconds == 600


async def test_absent_parameters_stay_absent(bridge: BridgeUnderTest) -> None:
    await bridge.chat(temperature=None, stop=None, n=None)
    start = bridge.server.turns[0].start
    assert not start.sampling.ListFields()
    assert not start.stopping.ListFields()
    assert not start.HasField("n")


async def test_several_choices(bridge: BridgeUnderTest) -> None:
    _, answer = await bridge.chat(n=3)
    assert [choice["message"]["content"] for choice in answer["choices"]] == ["Hello!"] * 3
    chunk_list = chunks(await bridge.stream(n=3))
    assert [text_of(chunk_list, index) for index in range(3)] == ["Hello!"] * 3
    first_of_each = [next(c for chunk in chunk_list for c in chunk["choices"] if c["index"] == i) for i in range(3)]
    assert all(choice["delta"]["role"] == "assistant" for choice in first_of_each)
    assert sum("usage" in chunk for chunk in chunk_list) == 1
    assert "usage" in chunk_list[-1]


@pytest.mark.parametrize("usage_in_own_frame", [False, True])
async def test_stream_ends_with_finish_reason_and_usage_in_one_chunk(
    bridge: BridgeUnderTest, usage_in_own_frame: bool
) -> None:
    bridge.server.script = Reply(finish_reason=pb.FINISH_REASON_LENGTH, usage_in_own_frame=usage_in_own_frame)
    chunk_list = chunks(await bridge.stream())
    assert text_of(chunk_list) == "Hello!"
    assert chunk_list[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunk_list] == [None] * (len(chunk_list) - 1) + ["length"]
    assert chunk_list[-1]["choices"][0]["delta"] == {}
    assert chunk_list[-1]["usage"].items() >= USAGE.items()
    assert not any("usage" in chunk for chunk in chunk_list[:-1])
    assert {(chunk["id"], chunk["object"], chunk["model"]) for chunk in chunk_list} == {
        (chunk_list[0]["id"], "chat.completion.chunk", MODEL)
    }


async def test_include_usage_true_adds_a_chunk_without_choices(bridge: BridgeUnderTest) -> None:
    chunk_list = chunks(await bridge.stream(stream_options={"include_usage": True}))
    assert chunk_list[-1]["choices"] == []
    assert chunk_list[-1]["usage"].items() >= USAGE.items()
    assert all(chunk["usage"] is None for chunk in chunk_list[:-1])
    assert chunk_list[-2]["choices"][0]["finish_reason"] == "stop"


async def test_include_usage_false_tells_none(bridge: BridgeUnderTest) -> None:
    chunk_list = chunks(await bridge.stream(stream_options={"include_usage": False}))
    assert not any("usage" in chunk for chunk in chunk_list)


async def test_text_is_passed_on_unchanged(bridge: BridgeUnderTest) -> None:
    pieces = ("line\nbreak\r\n", 'quote"\\', "\u2028\u0000", "€😀", "data: [DONE]\n\n")
    bridge.server.script = Reply(pieces=pieces)
    assert text_of(chunks(await bridge.stream())) == "".join(pieces)
    _, answer = await bridge.chat()
    assert answer["choices"][0]["message"]["content"] == "".join(pieces)


async def test_request_id_is_the_callers_when_it_is_sane(bridge: BridgeUnderTest) -> None:
    for given, kept in (("my-id.7:a", True), ("bad id", False), ("x" * 200, False)):
        async with bridge.http.post(CHAT, json=ask(), headers={"x-request-id": given}) as response:
            answered = response.headers["x-request-id"]
        assert (answered == given) is kept
        assert bridge.server.turns[-1].start.request_id == answered


async def test_stream_carries_its_request_id(bridge: BridgeUnderTest) -> None:
    async with bridge.http.post(CHAT, json=ask(stream=True), headers={"x-request-id": "s1"}) as response:
        assert response.headers["x-request-id"] == "s1"
        assert response.headers["Content-Type"].startswith("text/event-stream")
        await response.read()


async def test_all_requests_share_one_stream_with_growing_ids(bridge: BridgeUnderTest) -> None:
    for _ in range(5):
        await bridge.chat()
    assert len(bridge.server.streams) == 1
    assert [call.id for call in bridge.server.turns] == [1, 2, 3, 4, 5]


async def test_models(bridge: BridgeUnderTest) -> None:
    for prefix in ("/v1/openai/models", "/v1/models"):
        async with bridge.http.get(prefix) as response:
            listing = await response.json()
        async with bridge.http.get(f"{prefix}/{MODEL}") as response:
            model = await response.json()
        assert listing == {"object": "list", "data": [model]}
        assert model["id"] == model["root"] == MODEL
        assert (model["object"], model["parent"], model["created"]) == ("model", None, 1_700_000_000)
        assert model["metadata"]["context_length"] == 32768
        assert model["metadata"]["pricing"].items() >= {"input_tokens": 0.35, "output_tokens": 0.40}.items()
        async with bridge.http.get(f"{prefix}/no/such") as response:
            assert response.status == 404
            assert (await response.json())["error"]["code"] == "model_not_found"


async def test_unknown_routes_and_methods_answer_like_openai(bridge: BridgeUnderTest) -> None:
    async with bridge.http.get("/v1/nothing") as response:
        assert response.status == 404
        assert (await response.json())["error"].keys() == {"message", "type", "param", "code"}
    async with bridge.http.get(CHAT) as response:
        assert response.status == 405
        assert response.headers["Allow"] == "POST"
        assert (await response.json())["error"]["code"] == "method_not_allowed"
