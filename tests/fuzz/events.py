"""Streams of server-sent events: whatever the model says, they can be read, and say the same."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from google.rpc import code_pb2
from hypothesis import strategies as st

from bridge_setup import MODEL, ask
from fake_service import USER_KEY, Turn
from fuzz.http_door import running_bridge, send
from fuzz.target import property_target
from spyglass.v1 import inference_pb2 as pb
from spyglass_common.status import make_status

_SAID = (
    "\n",
    "\r",
    "\r\n",
    "\n\n",
    "\u2028",
    "\u2029",
    "\x85",
    "\x0b",
    "\x00",
    "data: [DONE]\n\n",
    "event: x",
    ": x",
    "\ufeff",
)
_texts = st.lists(st.sampled_from(_SAID) | st.text(max_size=5), max_size=4).map("".join)


@dataclass(frozen=True)
class _Answer:
    """What a model says, and how it ends."""

    pieces: tuple[str, ...]
    calls: tuple[tuple[str, str], ...]
    token: bytes
    error: str | None
    is_chat: bool
    has_logprobs: bool


_answers = st.builds(
    _Answer,
    st.lists(_texts, max_size=5).map(tuple),
    st.lists(st.tuples(_texts, _texts), max_size=2).map(tuple),
    st.binary(max_size=6),
    st.none() | st.none() | _texts,
    st.booleans(),
    st.booleans(),
)


async def _play(answer: _Answer, turn: Turn) -> None:
    """Says it, in a script of the fake service."""
    turn.accept()
    turn.begin()
    logprobs = [pb.TokenLogprobs(bytes=answer.token, logprob=-1.0, top=[pb.TokenLogprob(bytes=answer.token)])]
    for piece in answer.pieces:
        turn.send(delta=pb.Delta(text=piece, token_ids=[1], logprobs=logprobs if answer.has_logprobs else ()))
        await turn.stream.outgoing.join()
    for number, (name, arguments) in enumerate(answer.calls if answer.is_chat else ()):
        for call in (
            pb.ToolCallDelta(index=number, id=f"call_{number}", name=name),
            pb.ToolCallDelta(index=number, arguments_json=arguments),
        ):
            turn.send(delta=pb.Delta(tool_calls=[call]))
            await turn.stream.outgoing.join()
    if answer.error is not None:
        turn.finish(make_status(code_pb2.UNAVAILABLE, answer.error, reason="server_draining"))
        return
    turn.say("", reason=pb.FINISH_REASON_STOP)
    turn.finish()


def _request(answer: _Answer) -> bytes:
    tools = [{"type": "function", "function": {"name": "f"}}]
    path, body = "/v1/chat/completions", ask(stream=True, stream_options={"include_usage": True}, tools=tools)
    if not answer.is_chat:
        path, body = "/v1/completions", {"model": MODEL, "prompt": "Once", "stream": True}
    if answer.has_logprobs:
        body["logprobs"] = True if answer.is_chat else 1
    data = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: bridge\r\nAuthorization: Bearer {USER_KEY}\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    )
    return head.encode() + data


def _read(lines: list[str]) -> list[str]:
    """The data of all events, as the standard has them read."""
    events: list[str] = []
    data: list[str] = []
    for line in lines:
        name, _, value = line.partition(":")
        if not line:
            if data:
                events.append("\n".join(data))
            data = []
        elif name == "data":
            data.append(value.removeprefix(" "))
        else:
            assert not name, f"there is a line with {name!r}"
    assert not data, "the last event is cut off"
    return events


def _check(answer: _Answer, body: bytes) -> str:
    text = body.decode()
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    events = _read(lines[:-1])
    assert _read(text.splitlines()) == events, "readers that end lines at other characters read something else"
    if answer.error is None:
        assert events.pop() == "[DONE]"
    chunks: list[dict[str, Any]] = [json.loads(event) for event in events]
    if answer.error is not None:
        error = chunks.pop()["error"]
        assert error["message"] == answer.error or not answer.error
    said: list[str] = []
    calls: list[list[str]] = []
    for choice in (choice for chunk in chunks for choice in chunk["choices"]):
        delta = choice["delta"] if answer.is_chat else {"content": choice["text"]}
        said.append(delta.get("content") or "")
        for call in delta.get("tool_calls", ()):
            if "id" in call:
                calls.append([call["function"]["name"], ""])
            calls[call["index"]][1] += call["function"]["arguments"]
    assert "".join(said) == "".join(answer.pieces)
    assert calls == ([list(call) for call in answer.calls] if answer.is_chat else [])
    return f"{'chat' if answer.is_chat else 'completion'}, {'an error' if answer.error is not None else 'well'}"


@contextmanager
def _opened() -> Iterator[Callable[[_Answer], str]]:
    with running_bridge() as bridge:

        def check(answer: _Answer) -> str:
            bridge.server.script = lambda turn: _play(answer, turn)
            got = send(bridge.port, _request(answer))
            assert got is not None
            assert (got.status, got.kind) == (200, "text/event-stream"), got
            return _check(answer, got.body)

        yield check


EVENTS = property_target("events", _answers, _opened, batch_size=1000, smoke_size=100)
