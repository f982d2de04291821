"""litellm: completion, stream, tools, and fallbacks for prompts over the context."""

import json
import os

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # it would ask the internet

import litellm
import pytest
from common import ADD, KEY, MODEL, TOO_LONG, URL

ask = {"model": f"openai/{MODEL}", "api_base": URL, "api_key": KEY, "temperature": 0, "max_tokens": 40}
hello = [{"role": "user", "content": "Hello!"}]
plain = litellm.completion(**ask, messages=hello)
assert plain.choices[0].message.content
stream = litellm.completion(**ask, messages=hello, stream=True)
assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == plain.choices[0].message.content
question = [{"role": "user", "content": "What is 1 + 2?"}]
called = litellm.completion(**ask, messages=question, tools=[ADD], tool_choice="required").choices[0].message
call = called.tool_calls[0]
assert set(json.loads(call.function.arguments)) == {"a", "b"}

long = [{"role": "user", "content": TOO_LONG}]
for is_stream in (False, True):
    with pytest.raises(litellm.ContextWindowExceededError):
        list(litellm.completion(**ask, messages=long, stream=is_stream))

models = {"small": ask, "large": ask | {"mock_response": "the large one"}}
router = litellm.Router(
    model_list=[{"model_name": name, "litellm_params": params} for name, params in models.items()],
    context_window_fallbacks=[{"small": ["large"]}],
    num_retries=0,
)
assert router.completion(model="small", messages=long).choices[0].message.content == "the large one"
