"""pydantic-ai: a tool, and a type as the answer, by a tool and by a schema, plain and streamed."""

import asyncio
from collections.abc import Callable

from common import BOB, KEY, MODEL, QUESTION, URL, Person, weather
from pydantic_ai import Agent, NativeOutput, RunContext, ToolOutput
from pydantic_ai.capabilities import AbstractCapability
from pydantic_ai.messages import ToolReturnPart
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.settings import ModelSettings
from pydantic_ai.usage import UsageLimits

model = OpenAIChatModel(MODEL, provider=OpenAIProvider(base_url=URL, api_key=KEY))
settings = ModelSettings(temperature=0, max_tokens=60)
limits = UsageLimits(request_limit=2)


class WeatherFirst(AbstractCapability[None]):
    """Forces the tool in the first step only: a model this small would call it for ever."""

    def get_model_settings(self) -> Callable[[RunContext[None]], ModelSettings]:
        return lambda context: ModelSettings(tool_choice=["weather"] if context.run_step == 1 else "none")


async def check() -> None:
    for output in (ToolOutput(Person), NativeOutput(Person)):
        agent = Agent(model, output_type=output, model_settings=settings)
        first = await agent.run(BOB, usage_limits=limits)
        assert isinstance(first.output, Person)
        async with agent.run_stream(BOB, message_history=first.all_messages(), usage_limits=limits) as streamed:
            assert isinstance(await streamed.get_output(), Person)

    agent = Agent(model, output_type=Person, tools=[weather], model_settings=settings, capabilities=[WeatherFirst()])
    run = await agent.run(QUESTION, usage_limits=limits)
    assert isinstance(run.output, Person)
    [result, _] = [part for message in run.all_messages() for part in message.parts if isinstance(part, ToolReturnPart)]
    assert result.tool_name == "weather"


asyncio.run(check())
