"""Prints an answer over gRPC while it is being written."""

import os

from spyglass_client import Client

with (
    Client() as client,
    client.stream(
        "Tell me a short story about a lighthouse.",
        model=os.environ.get("SPYGLASS_CHAT_MODEL"),
        max_tokens=200,
        temperature=0,
        seed=7,
    ) as generation,
):
    for chunk in generation:
        print(chunk.text, end="", flush=True)

print(f"\n[{generation.answer.finish_reason}, {generation.answer.usage.completion_tokens} tokens]")
