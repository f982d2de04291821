"""Asks about a picture over HTTP with the openai package; the request contains the picture."""

import base64
import os
import sys
from pathlib import Path

from openai import OpenAI

client = OpenAI(
    base_url=f"http://{os.environ.get('SPYGLASS_HTTP', '127.0.0.1:8000')}/v1/openai",
    api_key=os.environ["SPYGLASS_API_KEY"],
)
model = os.environ.get("SPYGLASS_CHAT_MODEL", "spyglass-demo")

picture = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1] / "pictures" / "red_circle.png"
data_uri = "data:image/png;base64," + base64.b64encode(picture.read_bytes()).decode()

completion = client.chat.completions.create(
    model=model,
    messages=[
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": data_uri}},
                {"type": "text", "text": "What is in the picture?"},
            ],
        }
    ],
    max_tokens=64,
    temperature=0,
)

print(completion.choices[0].message.content)
