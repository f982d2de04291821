"""The openai package: messages as it returns them, appended unmodified, over turns with tools and a picture.

The argument names the way of asking.
"""

import json
import sys
import warnings
from collections.abc import Callable
from typing import Any

import openai
from common import BOB, KEY, MODEL, QUESTION, URL, Person, which_colour
from pydantic import BaseModel, Field

# It warns of its own types when it writes what `parse` returned.
warnings.filterwarnings("ignore", "Pydantic serializer warnings")

client = openai.OpenAI(base_url=URL, api_key=KEY, max_retries=0)
chat = client.chat.completions


class Weather(BaseModel):
    """The weather of a city."""

    city: str = Field(max_length=20)


tools = [openai.pydantic_function_tool(Weather, name="weather")]


def created(**request: Any) -> Any:
    return chat.create(**request)


def parsed(**request: Any) -> Any:
    return chat.parse(**request)


def streamed(**request: Any) -> Any:
    with chat.stream(**request) as events:
        return events.get_final_completion()


def ask(way: Callable[..., Any], messages: list[Any], **options: Any) -> Any:
    """The first choice. Where an answer is cut off, the helpers raise an error that has it."""
    try:
        completion = way(model=MODEL, temperature=0, messages=messages, **options)
    except openai.LengthFinishReasonError as error:
        completion = error.completion
    return completion.choices[0]


def with_results(message: Any) -> list[Any]:
    """A message, and what the tools answer to its calls."""
    results = [{"role": "tool", "tool_call_id": call.id, "content": "clear"} for call in message.tool_calls or ()]
    return [message, *results]


way = {"created": created, "parsed": parsed, "streamed": streamed}[sys.argv[1]]
messages: list[Any] = [{"role": "user", "content": which_colour()}]
messages.append(ask(way, messages, max_tokens=8).message)
assert messages[-1].content

messages.append({"role": "user", "content": BOB})
shape = {} if way is created else {"response_format": Person}
messages.append(ask(way, messages, **shape, max_tokens=40).message)
assert way is created or isinstance(messages[-1].parsed, Person)

for _ in range(2):
    messages.append({"role": "user", "content": QUESTION})
    called = ask(way, messages, tools=tools, tool_choice="required", parallel_tool_calls=False, max_tokens=40)
    assert called.finish_reason == "tool_calls"
    [call] = called.message.tool_calls
    assert set(json.loads(call.function.arguments)) == {"city"}
    assert way is created or isinstance(call.function.parsed_arguments, Weather)
    messages += with_results(called.message)
    messages.append(ask(way, messages, tools=tools, tool_choice="none", max_tokens=8).message)
    assert messages[-1].content

messages = [{"role": "user", "content": QUESTION}]
for max_tokens in (3, 5, 8, 12):
    cut = ask(way, messages, tools=tools, tool_choice="required", max_tokens=max_tokens)
    assert cut.finish_reason == "length"
    assert not cut.message.content, cut
    ask(created, [*messages, *with_results(cut.message), *messages], tools=tools, max_tokens=1)
