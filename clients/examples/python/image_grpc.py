"""Asks about a picture over gRPC."""

import os
import sys
from pathlib import Path

from spyglass_client import Client

picture = sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parents[1] / "pictures" / "red_circle.png"

with Client() as client:
    answer = client.generate(
        "What is in the picture?",
        images=[picture],
        model=os.environ.get("SPYGLASS_CHAT_MODEL"),
        max_tokens=64,
        temperature=0,
    )

print(answer.text)
