"""Common uses of answers: parsing them into a type, and running the tools that the model calls."""

import asyncio
import inspect
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, Self, TypeVar

from spyglass_client.answer import Answer
from spyglass_client.messages import Message, assistant, tool
from spyglass_client.tools import Tool, ToolCall


class Parsed(Protocol):
    """A type that an answer can be read into, such as a pydantic model."""

    @classmethod
    def model_json_schema(cls) -> dict[str, Any]: ...

    @classmethod
    def model_validate_json(cls, json_data: str) -> Self: ...


P = TypeVar("P", bound=Parsed)


def read_into(kind: type[P], answer: Answer) -> P:
    """Parses the first choice into a value. Raises ValueError if it was cut short."""
    if answer.finish_reason != "stop":
        raise ValueError(f"the answer is not whole ({answer.finish_reason}): max_tokens may be too small")
    return kind.model_validate_json(answer.text)


async def run_tools(
    ask: Callable[[Sequence[Message], bool], Awaitable[Answer]],
    messages: Sequence[Message],
    tools: Sequence[Tool],
    max_rounds: int,
) -> tuple[Answer, list[Message]]:
    """Asks, runs the called tools, and asks again with their results, until an answer calls none.

    `ask` gets the conversation and whether this is the first question. Returns the last answer, and the conversation
    including it. Failing tools and invalid JSON arguments are reported to the model.

    Raises:
        RuntimeError: `max_rounds` answers called tools; those of the last answer were not run.
        ValueError: an answer was cut short in a call.
    """
    functions = {one.name: one.run for one in tools}
    turns = list(messages)
    for number in range(max_rounds):
        answer = await ask(turns, number == 0)
        if not answer.tool_calls:
            return answer, [*turns, assistant(answer.text)]
        if answer.finish_reason != "tool_calls":
            raise ValueError(f"a call is not whole ({answer.finish_reason}): max_tokens may be too small")
        if number < max_rounds - 1:
            turns.append(assistant(answer.text, map(_sendable, answer.tool_calls)))
            turns += [tool(call, await _result(call, functions)) for call in answer.tool_calls]
    raise RuntimeError(f"the model still calls tools after {max_rounds} answers")


def _sendable(call: ToolCall) -> ToolCall:
    """Returns a call that the server accepts back, without its arguments if they are not a JSON object."""
    try:
        call.parsed()
    except ValueError:
        return replace(call, arguments="{}")
    return call


async def _result(call: ToolCall, functions: Mapping[str, Callable[..., Any] | None]) -> str:
    function = functions.get(call.name)
    if function is None:
        return f"there is no tool {call.name}"
    try:
        arguments = call.parsed()
        if inspect.iscoroutinefunction(function):
            found = await function(**arguments)
        else:
            found = await asyncio.to_thread(function, **arguments)
        return found if isinstance(found, str) else json.dumps(found, ensure_ascii=False)
    except Exception as error:  # a tool can raise anything, and the model may know what to do about it
        return f"error: {error}"
