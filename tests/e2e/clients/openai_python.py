"""The openai package: chat, streams, parsing, tools, completions, models."""

import json

import openai
from common import ADD, BOB, KEY, MODEL, URL, Person, which_colour

client = openai.OpenAI(base_url=URL, api_key=KEY, max_retries=0)
chat = client.chat.completions
ask = {"model": MODEL, "temperature": 0, "max_tokens": 60}
hello = [{"role": "user", "content": "Hello!"}]

plain = chat.create(**ask, messages=hello)
stream = list(chat.create(**ask, messages=hello, stream=True, stream_options={"include_usage": True}))
assert "".join(c.choices[0].delta.content or "" for c in stream if c.choices) == plain.choices[0].message.content
assert stream[-1].usage.completion_tokens == plain.usage.completion_tokens

seen = chat.create(**ask, messages=[{"role": "user", "content": which_colour()}])
assert "red" in seen.choices[0].message.content

told = chat.create(**ask, messages=hello, logprobs=True, top_logprobs=3).choices[0].logprobs.content
assert "".join(token.token for token in told if token.bytes) == plain.choices[0].message.content
assert all(len(token.top_logprobs) == 3 for token in told)

parsed = chat.parse(**ask, messages=[{"role": "user", "content": BOB}], response_format=Person)
assert parsed.choices[0].message.parsed == Person(name="Bob", age=5)

question = [{"role": "user", "content": "What is 1 + 2?"}]
called = chat.create(**ask, messages=question, tools=[ADD], tool_choice="required").choices[0]
assert called.finish_reason == "tool_calls"
call = called.message.tool_calls[0]
assert call.function.name == "add"
assert set(json.loads(call.function.arguments)) == {"a", "b"}
pieces = [
    piece
    for chunk in chat.create(**ask, messages=question, tools=[ADD], tool_choice="required", stream=True)
    for piece in chunk.choices[0].delta.tool_calls or ()
    if piece.index == 0
]
assert "".join(piece.function.arguments for piece in pieces) == call.function.arguments
answers = [{"role": "tool", "tool_call_id": one.id, "content": "3"} for one in called.message.tool_calls]
turns = [*question, called.message.model_dump(exclude_none=True), *answers]
assert chat.create(**ask, messages=turns, tools=[ADD]).usage.prompt_tokens > 100

text = client.completions.create(**ask, prompt=["Once upon a time", "The sky is"], logprobs=1, echo=True)
assert text.choices[0].text.startswith("Once upon a time")
assert text.choices[1].text.startswith("The sky is")
assert text.choices[0].logprobs.token_logprobs[0] is None

assert MODEL in [model.id for model in client.models.list()]
assert client.models.retrieve(MODEL).id == MODEL
