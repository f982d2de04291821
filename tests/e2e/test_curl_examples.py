"""The examples of DeepInfra's page, typed into a shell: only host and key are our own."""

import asyncio
import json
import shutil
from typing import Any

import pytest

from e2e.conftest import LLAMA
from stack import Stack

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed"),
]

HELLO = """
curl "https://api.deepinfra.com/v1/openai/chat/completions" \\
  -H "Content-Type: application/json" \\
  -H "Authorization: Bearer $DEEPINFRA_TOKEN" \\
  -d '{
      "model": "meta-llama/Llama-3.2-90B-Vision-Instruct",
      "messages": [
        {
          "role": "user",
          "content": "Hello!"
        }
      ]
    }'
"""
CHEF = """
curl "https://api.deepinfra.com/v1/openai/chat/completions" \\
  -H "Content-Type: application/json" \\
  -H "Authorization: Bearer $DEEPINFRA_TOKEN" \\
  -d '{
      "model": "meta-llama/Llama-3.2-90B-Vision-Instruct",
      "messages": [
        {
          "role": "system",
          "content": "Respond like a michelin starred chef."
        },
        {
          "role": "user",
          "content": "Can you name at least two different techniques to cook lamb?"
        },
        {
          "role": "assistant",
          "content": "Bonjour! Let me tell you, my friend, cooking lamb is an art form, and I am more than happy to share with you not two, but three of my favorite techniques to coax out the rich, unctuous flavors and tender textures of this majestic protein. First, we have the classic \\"Sous Vide\\" method. Next, we have the ancient art of \\"Sous le Sable\\". And finally, we have the more modern technique of \\"Hot Smoking.\\""
        },
        {
          "role": "user",
          "content": "Tell me more about the second method."
        }
      ]
    }'
"""  # noqa: E501
STREAM = """
curl "https://api.deepinfra.com/v1/openai/chat/completions" \\
  -H "Content-Type: application/json" \\
  -H "Authorization: Bearer $DEEPINFRA_TOKEN" \\
  -d '{
      "model": "meta-llama/Llama-3.2-90B-Vision-Instruct",
      "stream": true,
      "messages": [
        {
          "role": "user",
          "content": "Hello!"
        }
      ]
    }'
"""
EXAMPLES = {"hello": HELLO, "chef": CHEF, "stream": STREAM}


@pytest.fixture(scope="module")
def printed(demo: Stack) -> dict[str, str]:
    """What each example printed; all are run at once, because answers take their time."""

    async def run() -> list[str]:
        return await asyncio.gather(*(run_in_shell(demo, example) for example in EXAMPLES.values()))

    return dict(zip(EXAMPLES, asyncio.run(run()), strict=True))


async def run_in_shell(demo: Stack, example: str) -> str:
    """Runs an example with our host and key, and returns what it printed."""
    process = await asyncio.create_subprocess_shell(
        example.replace("https://api.deepinfra.com", demo.http).replace('curl "', 'curl --fail-with-body -sS "'),
        env=demo.environ(DEEPINFRA_TOKEN=demo.key),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode == 0, (out, err)
    return out.decode()


def assert_usage(usage: dict[str, Any]) -> None:
    """The figures agree with each other and with the prices of the page."""
    prompt, completion = usage["prompt_tokens"], usage["completion_tokens"]
    assert min(prompt, completion) > 0
    assert usage["total_tokens"] == prompt + completion
    assert usage["estimated_cost"] == pytest.approx(prompt * 0.35 / 1e6 + completion * 0.40 / 1e6, rel=1e-12)


@pytest.mark.parametrize("example", ["hello", "chef"])
def test_an_answer_has_the_documented_shape(printed: dict[str, str], example: str) -> None:
    answer = json.loads(printed[example])
    assert set(answer) == {"id", "object", "created", "model", "choices", "usage"}
    assert (answer["object"], answer["model"]) == ("chat.completion", LLAMA)
    assert answer["id"].startswith("chatcmpl-")
    [choice] = answer["choices"]
    assert set(choice) == {"index", "message", "finish_reason", "logprobs"}
    assert choice["index"] == 0
    assert choice["finish_reason"] in ("stop", "length")
    assert choice["message"]["role"] == "assistant"
    assert choice["message"]["content"].strip()
    assert_usage(answer["usage"])


def test_a_stream_has_the_documented_shape(printed: dict[str, str]) -> None:
    out = printed["stream"]
    assert out.endswith("data: [DONE]\n\n")
    *events, done = out.removesuffix("\n\n").split("\n\n")
    assert done == "data: [DONE]"
    chunks = [json.loads(event.removeprefix("data: ")) for event in events]
    assert {(chunk["object"], chunk["model"]) for chunk in chunks} == {("chat.completion.chunk", LLAMA)}
    assert len({chunk["id"] for chunk in chunks}) == 1
    first, *middle, last = (chunk["choices"][0] for chunk in chunks)
    assert first["delta"]["role"] == "assistant"
    assert "".join(choice["delta"]["content"] for choice in middle).strip()
    assert {choice["finish_reason"] for choice in (first, *middle)} == {None}
    assert last["finish_reason"] in ("stop", "length")
    assert [index for index, chunk in enumerate(chunks) if "usage" in chunk] == [len(chunks) - 1]
    assert_usage(chunks[-1]["usage"])
    assert chunks[-1]["usage"]["completion_tokens"] >= len(middle)
