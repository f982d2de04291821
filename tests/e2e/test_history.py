"""What a route answered is taken by it again as history, unmodified, turn after turn."""

from collections.abc import Iterator
from typing import Any

import openai
import pydantic
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from pictures import data_uri, disc
from stack import Stack

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")]

TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": name,
            "strict": True,
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "maxLength": 12}},
                "required": ["city"],
                "additionalProperties": False,
            },
        },
    }
    for name in ("weather", "time")
]


class Town(pydantic.BaseModel):
    """What `parse` and `stream` are to read answers as."""

    name: str = pydantic.Field(max_length=8)


TURNS = st.lists(
    st.fixed_dictionaries(
        {
            "way": st.sampled_from(["create", "chunks", "stream", "parse", "completion"]),
            "ask": st.sampled_from(["plain", "auto", "required", "weather", "schema"]),
            "max_tokens": st.sampled_from([1, 5, 20, 40, 60, 150]),
            "picture": st.booleans(),
        }
    ),
    min_size=5,
    max_size=5,
)


@pytest.fixture(scope="module")
def client(tiny: Stack) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=tiny.openai_url, api_key=tiny.key, max_retries=0) as client:
        yield client


def options(turn: dict[str, Any]) -> dict[str, Any]:
    match turn["ask"]:
        case "plain":
            return {}
        case "schema":
            return {"response_format": Town}
        case "weather":
            return {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "weather"}}}
        case mode:
            return {"tools": TOOLS, "tool_choice": mode}


def joined(chunks: Any) -> dict[str, Any]:
    """The message that a client without a library would put together from chunks."""
    content, calls = "", []
    for delta in (choice.delta for chunk in chunks for choice in chunk.choices):
        content += delta.content or ""
        for piece in delta.tool_calls or ():
            if piece.id:
                calls.append(piece.model_dump())
            else:
                calls[piece.index]["function"]["arguments"] += piece.function.arguments
    return {"role": "assistant", "content": content or None if calls else content} | (
        {"tool_calls": calls} if calls else {}
    )


def answer(client: openai.OpenAI, messages: list[Any], turn: dict[str, Any]) -> Any:
    """The message of an answer, as the library's way of asking gives it."""
    asked: dict[str, Any] = {"model": "tiny", "messages": messages, "max_tokens": turn["max_tokens"], "seed": 1}
    asked |= options(turn)
    way = turn["way"]
    try:
        if way == "stream":
            with client.chat.completions.stream(**asked) as events:
                return events.get_final_completion().choices[0].message
        if way == "parse":
            return client.chat.completions.parse(**asked).choices[0].message
    except openai.LengthFinishReasonError as error:
        return error.completion.choices[0].message
    if asked.get("response_format") is Town:
        schema = {"name": "town", "schema": Town.model_json_schema()}
        asked["response_format"] = {"type": "json_schema", "json_schema": schema}
    if way == "chunks":
        return joined(client.chat.completions.create(**asked, stream=True))
    message = client.chat.completions.create(**asked).choices[0].message
    return message if way == "create" else message.model_dump()


def results(message: Any) -> list[dict[str, Any]]:
    """What the tools answer to the calls of a message."""
    calls = message["tool_calls"] if isinstance(message, dict) and "tool_calls" in message else None
    if not isinstance(message, dict):
        calls = message.tool_calls
    ids = [call["id"] if isinstance(call, dict) else call.id for call in calls or ()]
    return [{"role": "tool", "tool_call_id": call_id, "content": "sunny"} for call_id in ids]


@settings(max_examples=8, deadline=None, phases=[Phase.generate])  # to shrink takes minutes
@given(turns=TURNS)
def test_whatever_was_answered_is_taken_again(client: openai.OpenAI, turns: list[dict[str, Any]]) -> None:
    messages: list[Any] = []
    for turn in turns:
        text = {"type": "text", "text": "And now?"}
        picture = {"type": "image_url", "image_url": {"url": data_uri(disc("red"))}}
        messages.append({"role": "user", "content": [picture, text] if turn["picture"] else "And now?"})
        message = answer(client, messages, turn)
        messages += [message, *results(message)]


@settings(max_examples=4, deadline=None, phases=[Phase.generate])
@given(sizes=st.lists(st.tuples(st.booleans(), st.integers(1, 30)), min_size=5, max_size=5))
def test_a_completion_can_be_continued(client: openai.OpenAI, sizes: list[tuple[bool, int]]) -> None:
    prompt = "Once"
    for is_stream, max_tokens in sizes:
        asked: dict[str, Any] = {"model": "tiny", "prompt": prompt, "max_tokens": max_tokens, "seed": 1}
        if is_stream:
            chunks = client.completions.create(**asked, stream=True)
            prompt += "".join(choice.text for chunk in chunks for choice in chunk.choices)
        else:
            prompt += client.completions.create(**asked).choices[0].text


@pytest.mark.parametrize("arguments", ["", " ", '{"city": "Par', "[1]", "null", "no JSON", '{"city": "<|eot_id|>'])
def test_arguments_of_a_call_are_taken_as_they_were_written(client: openai.OpenAI, arguments: str) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": arguments}}
    messages: list[Any] = [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "wrong arguments"},
    ]
    answered = client.chat.completions.create(model="tiny", messages=messages, tools=TOOLS, max_tokens=4)
    assert answered.usage is not None
