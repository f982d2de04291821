"""Tools, types and tool loops of the client."""

import json
from typing import Literal, Self

import pytest

from fake_service import FakeService, Script, Turn
from spyglass.v1 import chat_pb2
from spyglass.v1 import inference_pb2 as pb
from spyglass_client import AsyncClient, Tool, ToolCall, assistant, tool, user


def weather(
    city: str, days: int = 1, unit: Literal["C", "F"] = "C", places: list[str] | None = None
) -> dict[str, object]:
    """Tells the weather."""
    return {"city": city, "sun": True, "days": days}


async def later(question: str) -> str:
    """Answers later."""
    return f"so: {question}"


def test_a_function_describes_itself() -> None:
    found = Tool.of(weather)
    assert (found.name, found.description, found.strict) == ("weather", "Tells the weather.", True)
    assert found.parameters == {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer"},
            "unit": {"enum": ["C", "F"]},
            "places": {"anyOf": [{"type": "array", "items": {"type": "string"}}, {"type": "null"}]},
        },
        "required": ["city"],
        "additionalProperties": False,
    }


def test_a_function_that_cannot_be_described_is_refused() -> None:
    def untyped(x):  # type: ignore[no-untyped-def]
        return x

    def strange(x: set[int]) -> None: ...

    def many(*x: int) -> None: ...

    for function in (untyped, strange, many):
        with pytest.raises(TypeError):
            Tool.of(function)


async def test_tools_and_calls_reach_the_server(client: AsyncClient, service: FakeService) -> None:
    turns = [user("hi"), assistant("wait", [ToolCall("1", "weather", '{"city": "x"}')]), tool("1", "sun"), user("so?")]
    for choice in ("auto", "none", "required", "weather"):
        await client.chat(turns, tools=[Tool.of(weather)], tool_choice=choice, parallel_tool_calls=False)
    chats = [turn.start.chat for turn in service.turns]
    assert chats[0].tools[0].name == "weather"
    assert json.loads(chats[0].tools[0].parameters_json) == Tool.of(weather).parameters
    assert [chat.tool_choice.mode for chat in chats[:3]] == [
        chat_pb2.TOOL_CHOICE_MODE_AUTO,
        chat_pb2.TOOL_CHOICE_MODE_NONE,
        chat_pb2.TOOL_CHOICE_MODE_REQUIRED,
    ]
    assert chats[3].tool_choice.name == "weather"
    assert chats[0].HasField("parallel_tool_calls")
    assert not chats[0].parallel_tool_calls
    called, result = chats[0].messages[1:3]
    assert called.tool_calls[0] == chat_pb2.ToolCall(id="1", name="weather", arguments_json='{"city": "x"}')
    assert (result.role, result.tool_call_id) == (chat_pb2.ROLE_TOOL, "1")


def call_pieces(turn: Turn, number: int, name: str, *pieces: str) -> None:
    for place, piece in enumerate(pieces):
        call = pb.ToolCallDelta(index=number, arguments_json=piece)
        if not place:
            call.id, call.name = f"call-{number}", name
        turn.stream.send(pb.Event(id=turn.id, delta=pb.Delta(tool_calls=[call])))


async def two_rounds(turn: Turn) -> None:
    """Calls three tools, one of which is not there, then answers."""
    turn.accept()
    turn.begin()
    if turn.start.chat.messages[-1].role == chat_pb2.ROLE_USER:
        call_pieces(turn, 0, "weather", '{"ci', 'ty": "Paris"}')
        call_pieces(turn, 1, "later", '{"question": "why"}')
        call_pieces(turn, 2, "weather", "{wrong: 1}")
        turn.say("", reason=pb.FINISH_REASON_TOOL_CALLS)
    else:
        turn.say("done", reason=pb.FINISH_REASON_STOP)
    turn.finish()


async def test_a_loop_runs_tools_until_the_model_answers(client: AsyncClient, service: FakeService) -> None:
    service.script = two_rounds
    answer, turns = await client.run_tools([user("hi")], [Tool.of(weather), Tool.of(later)])
    assert answer.text == "done"
    assert [turn.role for turn in turns] == ["user", "assistant", "tool", "tool", "tool", "assistant"]
    assert [call.arguments for call in turns[1].tool_calls] == [
        '{"city": "Paris"}',
        '{"question": "why"}',
        "{}",
    ]
    assert json.loads(str(turns[2].parts[0])) == {"city": "Paris", "sun": True, "days": 1}
    assert turns[3].parts == ("so: why",)
    assert str(turns[4].parts[0]).startswith("error: ")
    assert turns[4].tool_call_id == "call-2"


def calling(arguments: str, reason: pb.FinishReason.ValueType) -> Script:
    """A script that calls `later` whenever it is asked."""

    async def script(turn: Turn) -> None:
        turn.accept()
        turn.begin()
        call_pieces(turn, 0, "later", arguments)
        turn.say("", reason=reason)
        turn.finish()

    return script


async def test_a_loop_that_does_not_end_is_given_up(client: AsyncClient, service: FakeService) -> None:
    service.script = calling('{"question": "x"}', pb.FINISH_REASON_TOOL_CALLS)
    with pytest.raises(RuntimeError, match="after 3 answers"):
        await client.run_tools([user("hi")], [Tool.of(later)], max_rounds=3, tool_choice="required")
    assert len(service.turns) == 3
    modes = [turn.start.chat.tool_choice.mode for turn in service.turns]
    assert modes == [chat_pb2.TOOL_CHOICE_MODE_REQUIRED, 0, 0]


async def test_a_call_that_was_cut_short_is_not_run(client: AsyncClient, service: FakeService) -> None:
    service.script = calling('{"que', pb.FINISH_REASON_LENGTH)
    with pytest.raises(ValueError, match="max_tokens"):
        await client.run_tools([user("hi")], [Tool.of(later)])


class Person:
    """Reads itself from JSON, as pydantic models do."""

    def __init__(self, name: str) -> None:
        self.name = name

    @classmethod
    def model_json_schema(cls) -> dict[str, object]:
        return {"type": "object", "properties": {"name": {"type": "string"}}}

    @classmethod
    def model_validate_json(cls, json_data: str) -> Self:
        return cls(json.loads(json_data)["name"])


async def test_an_answer_is_read_into_a_type(client: AsyncClient, service: FakeService) -> None:
    assert (await client.parse(Person, [user('{"name":"Bob"}')])).name == "Bob"
    assert json.loads(service.turns[0].start.format.json_schema.schema_json) == Person.model_json_schema()


async def test_an_answer_that_was_cut_short_is_no_value(client: AsyncClient, service: FakeService) -> None:
    async def cut(turn: Turn) -> None:
        turn.accept()
        turn.begin()
        turn.say('{"na', reason=pb.FINISH_REASON_LENGTH)
        turn.finish()

    service.script = cut
    with pytest.raises(ValueError, match="max_tokens"):
        await client.parse(Person, [user("hi")])
