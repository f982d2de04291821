"""Prints an answer over HTTP while it is being written, with the openai package."""

import os

from openai import OpenAI

client = OpenAI(
    base_url=f"http://{os.environ.get('SPYGLASS_HTTP', '127.0.0.1:8000')}/v1/openai",
    api_key=os.environ["SPYGLASS_API_KEY"],
)
model = os.environ.get("SPYGLASS_CHAT_MODEL", "spyglass-demo")

chunks = client.chat.completions.create(
    model=model,
    messages=[{"role": "user", "content": "Tell me a short story about a lighthouse."}],
    max_tokens=200,
    temperature=0,
    stream=True,
)
for chunk in chunks:
    if chunk.choices:
        print(chunk.choices[0].delta.content or "", end="", flush=True)
print()
