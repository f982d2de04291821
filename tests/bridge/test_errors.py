"""The translation of the server's statuses to HTTP, before and after an answer has begun."""

import json

import pytest
from google.rpc import code_pb2, status_pb2

from bridge_setup import CHAT, BridgeUnderTest, ask
from fake_service import Reply
from spyglass_bridge.errors import from_status, http_name
from spyglass_common.status import make_status


@pytest.mark.parametrize(
    ("status", "http_status", "kind", "code"),
    [
        (
            make_status(code_pb2.INVALID_ARGUMENT, "as scripted", "invalid_image"),
            400,
            "invalid_request_error",
            "invalid_image",
        ),
        (
            make_status(code_pb2.INVALID_ARGUMENT, "as scripted", "context_length_exceeded"),
            400,
            "invalid_request_error",
            "context_length_exceeded",
        ),
        (make_status(code_pb2.UNIMPLEMENTED, "as scripted"), 400, "invalid_request_error", "unsupported_parameter"),
        (make_status(code_pb2.UNAUTHENTICATED, "as scripted"), 401, "invalid_request_error", "invalid_api_key"),
        (make_status(code_pb2.PERMISSION_DENIED, "as scripted"), 403, "invalid_request_error", "permission_denied"),
        (make_status(code_pb2.NOT_FOUND, "as scripted"), 404, "invalid_request_error", "model_not_found"),
        (make_status(code_pb2.ALREADY_EXISTS, "as scripted"), 409, "invalid_request_error", "conflict"),
        (
            make_status(code_pb2.RESOURCE_EXHAUSTED, "as scripted", "too_many_requests", retry_after_s=2.5),
            429,
            "rate_limit_error",
            "too_many_requests",
        ),
        (make_status(code_pb2.INTERNAL, "as scripted"), 500, "server_error", "internal_error"),
        (make_status(code_pb2.UNKNOWN, "as scripted"), 500, "server_error", "internal_error"),
        (make_status(code_pb2.UNAVAILABLE, "as scripted", "engine_restarted"), 503, "server_error", "engine_restarted"),
        (make_status(code_pb2.CANCELLED, "as scripted"), 503, "server_error", "cancelled"),
        (make_status(code_pb2.DEADLINE_EXCEEDED, "as scripted", "timeout"), 504, "server_error", "timeout"),
    ],
)
async def test_a_refusal_has_its_http_status(
    bridge: BridgeUnderTest, status: status_pb2.Status, http_status: int, kind: str, code: str
) -> None:
    bridge.server.script = Reply(refusal=status)
    for stream in (False, True):
        async with bridge.http.post(CHAT, json=ask(stream=stream)) as response:
            body = await response.json()
        assert response.status == http_status
        assert body["error"].keys() == {"message", "type", "param", "code"}
        assert (body["error"]["type"], body["error"]["code"]) == (kind, code)
        assert body["error"]["message"]
        retry_after = response.headers.get("Retry-After")
        assert retry_after == {429: "3", 503: "1"}.get(http_status)
        assert response.headers.get("x-should-retry") == ("false" if http_status == 504 else None)


async def test_an_error_before_started_but_after_accepted_has_its_http_status(bridge: BridgeUnderTest) -> None:
    failure = make_status(code_pb2.INVALID_ARGUMENT, "not an image", "invalid_image", "chat.messages[0].parts[1].image")
    bridge.server.script = Reply(pieces=(), failure=failure)
    status, body = await bridge.chat()
    assert (status, body["error"]["param"]) == (400, "messages[0].content[1].image_url.url")
    assert body["error"]["message"] == "not an image"


async def test_an_error_in_a_stream_is_one_event_and_no_done(bridge: BridgeUnderTest) -> None:
    bridge.server.script = Reply(
        failure=make_status(code_pb2.UNAVAILABLE, "the engine was restarted", "engine_restarted"), fail_after=2
    )
    text = await bridge.stream()
    last = json.loads(text.strip().split("\n\n")[-1].removeprefix("data: "))
    assert last == {
        "error": {
            "message": "the engine was restarted",
            "type": "server_error",
            "param": None,
            "code": "engine_restarted",
        }
    }
    assert text.count('"error"') == 1
    assert "[DONE]" not in text
    assert '"Hel"' in text
    assert '"finish_reason":"' not in text


async def test_an_error_in_a_plain_answer_gives_no_half_answer(bridge: BridgeUnderTest) -> None:
    bridge.server.script = Reply(failure=make_status(code_pb2.INTERNAL, "as scripted"), fail_after=2)
    status, body = await bridge.chat()
    assert status == 500
    assert body.keys() == {"error"}


def test_messages_name_fields_as_http_does() -> None:
    status = make_status(
        code_pb2.INVALID_ARGUMENT, "sampling.top_p must be above 0", "invalid_request", "sampling.top_p"
    )
    error = from_status(status)
    assert (error.message, error.param) == ("top_p must be above 0", "top_p")


def test_messages_reach_the_caller_only_when_the_server_meant_them_for_people() -> None:
    secret = "failed to connect to 10.1.2.3"
    assert secret not in from_status(make_status(code_pb2.UNAVAILABLE, secret)).message
    assert secret not in from_status(make_status(code_pb2.INTERNAL, secret, "internal_error")).message
    assert from_status(make_status(code_pb2.UNAVAILABLE, "drains", "server_draining")).message == "drains"


@pytest.mark.parametrize(
    ("field", "name"),
    [
        ("chat.messages[0].parts[1].image", "messages[0].content[1].image_url.url"),
        ("chat.messages[2].parts[0].text", "messages[2].content[0].text"),
        ("chat.messages[2].parts", "messages[2].content"),
        ("chat.messages[2].role", "messages[2].role"),
        ("chat.messages[2].tool_calls[0].arguments_json", "messages[2].tool_calls[0].function.arguments"),
        ("chat.messages", "messages"),
        ("chat.tools[1]", "tools[1]"),
        ("sampling.temperature", "temperature"),
        ("sampling.logit_bias", "logit_bias"),
        ("stopping.max_tokens", "max_tokens"),
        ("stopping.strings[3]", "stop[3]"),
        ("output.logprobs", "logprobs"),
        ("format.json_object", "response_format"),
        ("format.json_schema.schema_json", "response_format.json_schema.schema"),
        ("n", "n"),
        ("something.else", "something.else"),
    ],
)
def test_fields_have_their_http_names(field: str, name: str) -> None:
    assert http_name(field) == name


def test_a_field_is_renamed_in_a_message_where_it_is_a_word() -> None:
    status = make_status(code_pb2.INVALID_ARGUMENT, "the context has no room for text", "context_length", field="text")
    assert from_status(status).message == "the context has no room for prompt"
