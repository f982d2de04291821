"""Lets the model call a function over gRPC, and prints the call with its result."""

import os

from spyglass_client import Client, Tool, user


def add(a: int, b: int) -> int:
    """Adds two numbers."""
    return a + b


with Client() as client:
    answer = client.chat(
        [user("What is 1 + 2?")],
        model=os.environ.get("SPYGLASS_CHAT_MODEL"),
        tools=[Tool.of(add)],
        tool_choice="required",
        max_tokens=100,
        temperature=0,
    )
    for call in answer.tool_calls:
        print(call.name, call.arguments, "=", add(**call.parsed()))
