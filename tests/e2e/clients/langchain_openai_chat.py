"""langchain-openai: invoke, stream, tools, structured output, a picture, a prompt over the context."""

import pytest
from common import BOB, KEY, MODEL, TOO_LONG, URL, Person, which_colour
from langchain_core.exceptions import ContextOverflowError
from langchain_core.messages import HumanMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI

model = ChatOpenAI(model=MODEL, base_url=URL, api_key=KEY, temperature=0, max_tokens=60, max_retries=0)


@tool
def add(a: int, b: int) -> int:
    """Adds two numbers."""
    return a + b


plain = model.invoke("Hello!")
assert plain.content
assert plain.usage_metadata["output_tokens"] > 0
assert "".join(chunk.content for chunk in model.stream("Hello!")) == plain.content
call = model.bind_tools([add], tool_choice="required").invoke("What is 1 + 2?").tool_calls[0]
assert call["name"] == "add"
assert set(call["args"]) == {"a", "b"}
for method in ("json_schema", "function_calling", "json_mode"):
    assert model.with_structured_output(Person, method=method).invoke(BOB + " Its keys are name and age.").name == "Bob"
assert "red" in model.invoke([HumanMessage(which_colour())]).content
for ask in (model.invoke, lambda text: list(model.stream(text))):
    with pytest.raises(ContextOverflowError):
        ask(TOO_LONG)
