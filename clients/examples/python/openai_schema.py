"""Constrains an answer to a JSON schema, over HTTP with the openai package."""

import os

from openai import OpenAI

client = OpenAI(
    base_url=f"http://{os.environ.get('SPYGLASS_HTTP', '127.0.0.1:8000')}/v1/openai",
    api_key=os.environ["SPYGLASS_API_KEY"],
)

completion = client.chat.completions.create(
    model=os.environ.get("SPYGLASS_CHAT_MODEL", "spyglass-demo"),
    messages=[{"role": "user", "content": "Bob is 5 years old. Tell his name and his age as JSON."}],
    response_format={
        "type": "json_schema",
        "json_schema": {
            "name": "person",
            "strict": True,
            "schema": {
                "type": "object",
                "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
                "required": ["name", "age"],
                "additionalProperties": False,
            },
        },
    },
    max_tokens=64,
    temperature=0,
)

print(completion.choices[0].message.content)
