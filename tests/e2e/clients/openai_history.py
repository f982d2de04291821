"""The openai package: messages as it returns them, appended unmodified, over turns with tools and a picture."""

import json
import sys
import warnings
from typing import Any

import openai
from common import BOB, KEY, MODEL, QUESTION, URL, Person, which_colour
from pydantic import BaseModel, Field

# It warns of its own types when it writes what `parse` returned.
warnings.filterwarnings("ignore", "Pydantic serializer warnings")

client = openai.OpenAI(base_url=URL, api_key=KEY, max_retries=0)
chat = client.chat.completions
ask = {"model": MODEL, "temperature": 0}


class Weather(BaseModel):
    """The weather of a city."""

    city: str = Field(max_length=20)


tools = [openai.pydantic_function_tool(Weather, name="weather")]


def created(messages: list[Any], **options: Any) -> Any:
    return chat.create(**ask, messages=messages, **options).choices[0]


def parsed(messages: list[Any], **options: Any) -> Any:
    return chat.parse(**ask, messages=messages, **options).choices[0]


def streamed(messages: list[Any], **options: Any) -> Any:
    with chat.stream(**ask, messages=messages, **options) as events:
        return events.get_final_completion().choices[0]


def cut(messages: list[Any], **options: Any) -> Any:
    """The helpers raise what was cut off, and give the message with it."""
    for helper in (parsed, streamed):
        try:
            helper(messages, **options)
            raise AssertionError("nothing was cut off")
        except openai.LengthFinishReasonError as error:
            found = error.completion.choices[0]
            assert found.finish_reason == "length"
            assert not found.message.content
    return found


def called(messages: list[Any], choice: Any) -> None:
    """Appends a message with calls, and what the tools answer."""
    results = [{"role": "tool", "tool_call_id": call.id, "content": "clear"} for call in choice.message.tool_calls]
    messages += [choice.message, *results]


messages: list[Any] = []
for answer in (created, parsed, streamed):
    messages.append({"role": "user", "content": QUESTION})
    forced = answer(messages, tools=tools, tool_choice="required", parallel_tool_calls=False, max_tokens=60)
    assert forced.finish_reason == "tool_calls"
    [call] = forced.message.tool_calls
    assert set(json.loads(call.function.arguments)) == {"city"}
    if answer is not created:
        assert isinstance(call.function.parsed_arguments, Weather)
    called(messages, forced)
    messages.append(answer(messages, max_tokens=8).message)

    messages.append({"role": "user", "content": which_colour()})
    messages.append(answer(messages, tools=tools, tool_choice="none", max_tokens=8).message)
    assert messages[-1].content

    if answer is not created:
        messages.append({"role": "user", "content": BOB})
        typed = answer(messages, response_format=Person, max_tokens=60)
        assert isinstance(typed.message.parsed, Person)
        messages.append(typed.message)

messages.append({"role": "user", "content": QUESTION})
for max_tokens in (3, 5, 8, 12):
    shortened = cut(messages, tools=tools, tool_choice="required", max_tokens=max_tokens)
    if shortened.message.tool_calls:
        turn = list(messages)
        called(turn, shortened)
        assert created(turn, tools=tools, max_tokens=1).finish_reason == "length"
    else:
        assert created([*messages, shortened.message], max_tokens=1)

sys.stdout.write(f"{len(messages)} messages\n")
