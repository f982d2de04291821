"""Asks one question over HTTP with the openai package."""

import os

from openai import OpenAI

client = OpenAI(
    base_url=f"http://{os.environ.get('SPYGLASS_HTTP', '127.0.0.1:8000')}/v1/openai",
    api_key=os.environ["SPYGLASS_API_KEY"],
)
model = os.environ.get("SPYGLASS_CHAT_MODEL", "spyglass-demo")

completion = client.chat.completions.create(
    model=model,
    messages=[{"role": "user", "content": "Hello!"}],
    max_tokens=64,
    temperature=0,
)

print(completion.choices[0].message.content)
assert completion.usage is not None
print(f"{completion.usage.prompt_tokens} + {completion.usage.completion_tokens} tokens")
