"""OpenAI's Agents SDK on chat completions: a tool, cut-off calls, a type as the answer, plain and streamed."""

import asyncio
from typing import Any

from agents import Agent, ModelSettings, OpenAIChatCompletionsModel, Runner, function_tool, set_tracing_disabled
from agents.exceptions import ModelBehaviorError
from agents.items import ToolCallItem, ToolCallOutputItem
from common import BOB, KEY, MODEL, QUESTION, URL, Person, weather
from openai import AsyncOpenAI

WHOLE = 24
CUT = (5, 12)

set_tracing_disabled(True)  # it would be sent to OpenAI
client = AsyncOpenAI(base_url=URL, api_key=KEY, max_retries=0)
model = OpenAIChatCompletionsModel(MODEL, openai_client=client)


async def run(agent: Agent[None], messages: Any, is_streaming: bool) -> Any:
    if not is_streaming:
        return await Runner.run(agent, messages, max_turns=3)
    result = Runner.run_streamed(agent, messages, max_turns=3)
    async for _ in result.stream_events():
        pass
    return result


async def check() -> None:
    for is_streaming in (False, True):
        for max_tokens in (WHOLE, *CUT):
            settings = ModelSettings(temperature=0, max_tokens=max_tokens, tool_choice="required")
            agent = Agent(name="here", model=model, tools=[function_tool(weather)], model_settings=settings)
            try:
                first = await run(agent, QUESTION, is_streaming)
            except ModelBehaviorError as error:  # how it says that the limit left neither text nor a call
                if max_tokens not in CUT or "length" not in str(error):
                    raise
                continue
            again = [*first.to_input_list(), {"role": "user", "content": QUESTION}]
            for result in (first, await run(agent, again, is_streaming)):
                assert '"name"' not in result.final_output, result
                if max_tokens == WHOLE:
                    assert {ToolCallItem, ToolCallOutputItem} <= {type(item) for item in result.new_items}

        settings = ModelSettings(temperature=0, max_tokens=60)
        agent = Agent(name="here", model=model, output_type=Person, model_settings=settings)
        assert isinstance((await run(agent, BOB, is_streaming)).final_output, Person)


asyncio.run(check())
