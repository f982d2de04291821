"""Haystack: its OpenAIChatGenerator with a tool, whole and cut-off calls, plain and streamed."""

import os

os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"

from common import KEY, MODEL, QUESTION, URL, weather
from haystack.components.generators.chat import OpenAIChatGenerator
from haystack.dataclasses import ChatMessage, StreamingChunk
from haystack.tools import create_tool_from_function
from haystack.utils import Secret

WHOLE = 24
CUT = (5, 12)

tool = create_tool_from_function(weather)
question = [ChatMessage.from_user(QUESTION)]
chunks: list[StreamingChunk] = []


def answer(messages: list[ChatMessage], is_streaming: bool, **options: object) -> ChatMessage:
    generator = OpenAIChatGenerator(
        api_key=Secret.from_token(KEY),
        api_base_url=URL,
        model=MODEL,
        tools=[tool],
        max_retries=0,
        streaming_callback=chunks.append if is_streaming else None,
        generation_kwargs={"temperature": 0, **options},
    )
    [reply] = generator.run(messages)["replies"]
    return reply


for is_streaming in (False, True):
    reply = answer(question, is_streaming, tool_choice="required", max_tokens=WHOLE)
    call = reply.tool_call
    assert call.tool_name == "weather"
    assert set(call.arguments) == {"city"}
    result = ChatMessage.from_tool(tool.invoke(**call.arguments), call)
    assert answer([*question, reply, result], is_streaming, max_tokens=8).text
    for max_tokens in CUT:
        reply = answer(question, is_streaming, tool_choice="required", max_tokens=max_tokens)
        assert reply.meta["finish_reason"] == "length"
        assert not reply.text, reply.text
        answer([*question, reply, *question], is_streaming, max_tokens=1)
# An entry for each index: the first one holds the name, and what arguments are there already.
deltas = [[delta.index for delta in chunk.tool_calls or ()] for chunk in chunks]
assert any(deltas)
assert all(len(set(indexes)) == len(indexes) for indexes in deltas)
