"""Starts: a message that parses is a Spec, or is refused by an error of our own that names a field."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from google.protobuf.message import DecodeError
from hypothesis import strategies as st

from fakes import chat, image_chat
from fuzz.messages import messages
from fuzz.mutations import mutated
from fuzz.target import property_target
from spyglass.v1 import chat_pb2, inference_pb2, options_pb2
from spyglass_server.codec.chat import ImageLimits
from spyglass_server.codec.start import Spec, decode_start, request_digest
from spyglass_server.errors import InvalidRequest

_LIMITS = ImageLimits(max_images=3, max_bytes=100)


def valid_starts() -> list[inference_pb2.Start]:
    """Starts that use what there is."""
    call = chat_pb2.ToolCall(id="1", name="f", arguments_json='{"a": 1}')
    tool = chat_pb2.Tool(name="f", description="does", parameters_json='{"type": "object"}', strict=True)
    talk = chat_pb2.Chat(
        messages=[
            chat_pb2.Message(role=chat_pb2.ROLE_SYSTEM, parts=[chat_pb2.Part(text="Be brief.")]),
            chat_pb2.Message(role=chat_pb2.ROLE_USER, parts=[chat_pb2.Part(text="What?")]),
            chat_pb2.Message(role=chat_pb2.ROLE_ASSISTANT, tool_calls=[call]),
            chat_pb2.Message(role=chat_pb2.ROLE_TOOL, parts=[chat_pb2.Part(text="this")], tool_call_id="1"),
        ],
        tools=[tool],
        tool_choice=chat_pb2.ToolChoice(name="f"),
        parallel_tool_calls=False,
    )
    sampling = options_pb2.Sampling(
        temperature=0.5, top_p=0.5, top_k=3, seed=1, repetition_penalty=1.1, logit_bias={3: 1.0}
    )
    schema = options_pb2.JsonSchemaFormat(name="s", schema_json='{"type": "object"}')
    return [
        inference_pb2.Start(chat=talk, sampling=sampling, n=2, priority=1),
        inference_pb2.Start(text="Once", stopping=options_pb2.Stopping(max_tokens=3, strings=["x"], token_ids=[5])),
        inference_pb2.Start(
            tokens=inference_pb2.TokenIds(ids=[1, 2]), output=options_pb2.Output(logprobs=True, echo=True)
        ),
        chat("hi", format=options_pb2.OutputFormat(json_schema=schema), idempotency_key="a key"),
        chat("hi", format=options_pb2.OutputFormat(regex="a+"), caller=inference_pb2.Caller(bearer_key="key")),
        image_chat("look", [b"picture", None], request_id="mine"),
    ]


_starts = st.one_of(
    messages(inference_pb2.Start).map(lambda start: start.SerializeToString()),
    mutated([start.SerializeToString() for start in valid_starts()]),
    st.binary(max_size=60),
)


def _check(data: bytes) -> str:
    try:
        start = inference_pb2.Start.FromString(data)
    except DecodeError:
        return "is no message"
    before = start.SerializeToString(deterministic=True)
    try:
        spec = decode_start(start, _LIMITS)
    except InvalidRequest as refusal:
        assert refusal.field or "of a later version" in refusal.message, refusal
        refusal.message.encode()
        outcome = f"refused for {str(refusal.field).partition('[')[0]}"
    else:
        assert isinstance(spec, Spec)
        assert spec.request_id
        outcome = "taken"
    digest = request_digest(start)
    assert start.SerializeToString(deterministic=True) == before, "it was changed"
    assert request_digest(inference_pb2.Start.FromString(before)) == digest
    return outcome


@contextmanager
def _opened() -> Iterator[Callable[[bytes], str]]:
    yield _check


STARTS = property_target("starts", _starts, _opened, batch_size=4000, smoke_size=300)
