"""Asks about a picture over gRPC and draws where the model looked for each word of its answer."""

import os
import sys
import tempfile
from pathlib import Path

from spyglass_client import Client, draw_attention

picture = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1] / "pictures" / "red_circle.png"
folder = Path(sys.argv[2]) if len(sys.argv) > 2 else Path(tempfile.mkdtemp(prefix="spyglass-"))

with Client() as client:
    answer = client.generate(
        "What is in the picture?",
        images=[picture],
        model=os.environ.get("SPYGLASS_CHAT_MODEL"),
        max_tokens=8,
        temperature=0,
        image_attention=True,
    )

for number, token in enumerate(answer.choices[0].attention):
    drawn = draw_attention(picture.read_bytes(), answer.image_grids[0], [token])
    path = folder / f"looked-{number}.png"
    path.write_bytes(drawn)
    print(f"{path}: {token.bytes.decode('utf-8', 'replace')!r}")
