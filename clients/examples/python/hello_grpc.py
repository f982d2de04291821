"""Asks one question over gRPC."""

import os

from spyglass_client import Client

with Client() as client:  # reads SPYGLASS_GRPC and SPYGLASS_API_KEY
    answer = client.generate("Hello!", model=os.environ.get("SPYGLASS_CHAT_MODEL"), max_tokens=64, temperature=0)

print(answer.text)
print(f"{answer.usage.total_tokens} tokens, ${answer.usage.estimated_cost:.6f}")
