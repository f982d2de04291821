"""LlamaIndex: its FunctionAgent with a call that must be made, whole and cut off, plain and streamed."""

import asyncio

from common import KEY, MODEL, QUESTION, URL, weather
from llama_index.core.agent.workflow import AgentOutput, FunctionAgent, ToolCallResult
from llama_index.llms.openai_like import OpenAILike

WHOLE = 24
CUT = (3, 5, 8, 12)
"""The last one ends within the arguments."""


async def answer(is_streaming: bool, max_tokens: int) -> tuple[AgentOutput, list[ToolCallResult]]:
    """The agent's last output, and the calls that it made."""
    model = OpenAILike(
        model=MODEL,
        api_base=URL,
        api_key=KEY,
        temperature=0,
        max_tokens=max_tokens,
        max_retries=0,
        timeout=120,
        context_window=8192,
        is_chat_model=True,
        is_function_calling_model=True,
    )
    agent = FunctionAgent(tools=[weather], llm=model, initial_tool_choice="required", streaming=is_streaming)
    running = agent.run(QUESTION, max_iterations=4)
    calls = [event async for event in running.stream_events() if isinstance(event, ToolCallResult)]
    return await running, calls


async def check() -> None:
    for is_streaming in (False, True):
        output, [call, *_] = await answer(is_streaming, WHOLE)
        assert call.tool_name == "weather"
        assert set(call.tool_kwargs) == {"city"}
        assert not call.tool_output.is_error
        assert output.response.content
        for max_tokens in CUT:
            output, calls = await answer(is_streaming, max_tokens)
            assert '"name"' not in (output.response.content or ""), output
            assert all(call.tool_name == "weather" for call in calls)
        assert calls  # the last one: begun arguments, which went back to the server


asyncio.run(check())
