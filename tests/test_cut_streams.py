"""What a client joins from a stream is what it would have got at once, wherever the stream is cut.

The way of an answer from its tokens on, through the server's and the bridge's parts: stop strings, emoji, combining
characters and calls of tools, in frames that end anywhere.
"""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spyglass.v1 import inference_pb2 as pb
from spyglass_bridge.openai.choices import ChatChoices
from spyglass_bridge.openai.serialization import AnswerHead, ChunkEncoder, CompletionBuilder, UsageForm
from spyglass_bridge.remote_generation import RemoteGeneration
from spyglass_server.choices import Choices
from spyglass_server.codec import events
from spyglass_server.engine.messages import FinishReason, TokenOutput
from spyglass_server.prompt.detokenizer import Detokenizer
from spyglass_server.prompt.tokenizer import TextTokenizer

STOPS = ("STOP", "ST👩🏽‍🚀", "\n\n##")
PIECES = st.sampled_from(
    [
        *"STOP#\n{}[]<>\"',:;\\",
        "👩🏽‍🚀",
        "e\u0301",
        "é",
        "한국",
        '{"name": "f", "parameters": {"a": "👩🏽‍🚀 \\" }"}}',
        "[f(a='é'), g()]",
        "<function=f>{}</function>",
        "<tool_call>",
        '"name": "f"',
        " words ",
    ]
)


@pytest.fixture(scope="module")
def tokenizer(tiny_checkpoint: Path) -> TextTokenizer:
    return TextTokenizer(tiny_checkpoint / "tokenizer.json")


def events_of(tokenizer: TextTokenizer, text: str, tools: tuple[str, ...]) -> list[pb.Event]:
    """The server's events of an answer, a byte a token."""
    choices = Choices([Detokenizer(tokenizer)], STOPS, tools)
    tokens = tokenizer.encode_text(text)
    found: list[pb.Event] = []
    for number, token in enumerate(tokens):
        finish = FinishReason.LENGTH if number == len(tokens) - 1 else None
        if (delta := choices.push(TokenOutput(1, 0, token, finish=finish))) is not None:
            found.append(events.new_delta(1, 0))
            events.fill(found[-1].delta, *delta)
    return found


def test_stop_strings_are_looked_for_in_text_only(tokenizer: TextTokenizer) -> None:
    call = '{"name": "look", "parameters": {"at": "STOP"}}'
    choices = Choices([Detokenizer(tokenizer)], ["STOP", "}", "name"], ["look"])
    deltas = [choices.push(TokenOutput(1, 0, token)) for token in tokenizer.encode_text(call)]
    assert choices.push(TokenOutput(1, 0, 0, finish=FinishReason.STOP)).finish is FinishReason.TOOL_CALLS  # type: ignore[union-attr]
    arguments = "".join(piece.arguments for delta in deltas if delta for piece in delta.calls)
    assert arguments == '{"at": "STOP"}'
    for after in ("STOP", " words STOP more"):  # also where a call's end and a stop string come together
        choices = Choices([Detokenizer(tokenizer)], ["STOP"], ["look"])
        tokens = tokenizer.encode_text('{"name": "look", "parameters": {}}' + after)
        told = [delta for token in tokens if (delta := choices.push(TokenOutput(1, 0, token)))]
        assert "".join(piece.arguments for delta in told for piece in delta.calls) == "{}"
        assert told[-1].finish is FinishReason.TOOL_CALLS
    choices = Choices([Detokenizer(tokenizer)], ["STOP"], ["look"])
    deltas = [choices.push(TokenOutput(1, 0, token)) for token in tokenizer.encode_text("some STOP " + call)]
    told = [delta for delta in deltas if delta]
    assert "".join(delta.text for delta in told) == "some "
    assert (told[-1].finish, told[-1].stop_string, choices.is_done) == (FinishReason.STOP, "STOP", True)


async def read_in_frames(events: list[pb.Event], cuts: list[int]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The message at once and the message joined from chunks, when frames end before these events."""
    head = AnswerHead.new("m", "x")
    encoder, builder = ChunkEncoder(head, 1, ChatChoices(1), UsageForm.NONE), CompletionBuilder(head, 1, ChatChoices(1))
    generation = RemoteGeneration(pb.Start(), lambda returned: None)
    chunks = encoder.begin()
    for number, event in enumerate(events, 1):
        generation.on_event(event)
        if number in cuts or number == len(events):
            update = await generation.next()
            builder.add(update.deltas)
            chunks += encoder.deltas(update.deltas)
    chunks += encoder.end(pb.Finished(usage=pb.Usage()))
    return builder.build(pb.Finished(usage=pb.Usage()))["choices"][0], joined(
        [json.loads(chunk)["choices"][0] for chunk in chunks]
    )


def joined(choices: list[dict[str, Any]]) -> dict[str, Any]:
    """What a client makes of chunks."""
    content = "".join(choice["delta"].get("content", "") for choice in choices)
    assert all(len(choice["delta"].get("tool_calls", ())) <= 1 for choice in choices)  # as OpenAI sends them
    calls: list[dict[str, Any]] = []
    for piece in (piece for choice in choices for piece in choice["delta"].get("tool_calls", ())):
        if "id" in piece:
            assert piece["index"] == len(calls)
            calls.append({"id": piece["id"], "type": "function", "function": dict(piece["function"], arguments="")})
        calls[piece["index"]]["function"]["arguments"] += piece["function"]["arguments"]
    message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
    if calls:
        message |= {"content": content or None, "tool_calls": calls}
    return {"index": 0, "message": message, "finish_reason": choices[-1]["finish_reason"], "logprobs": None}


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.lists(PIECES, min_size=1, max_size=8).map("".join), tools=st.sampled_from([(), ("f", "g")]))
def test_deltas_join_to_the_answer_wherever_they_are_cut(
    tokenizer: TextTokenizer, text: str, tools: tuple[str, ...]
) -> None:
    events = events_of(tokenizer, text, tools)
    whole = None
    for cut in range(len(events) + 1):
        at_once, from_chunks = asyncio.run(read_in_frames(events, [cut]))
        assert from_chunks == at_once
        assert whole is None or at_once == whole
        whole = at_once
    assert whole is not None
    for stop in STOPS:
        assert stop not in (whole["message"]["content"] or "")
    assert "\ufffd" not in json.dumps(whole, ensure_ascii=False)
