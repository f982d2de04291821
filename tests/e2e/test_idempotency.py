"""Idempotency keys over HTTP."""

import base64
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from pictures import encoded, noise
from stack import Stack

pytestmark = pytest.mark.slow

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 12}


@pytest.fixture
def http(tiny: Stack) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=tiny.http, headers={"Authorization": f"Bearer {tiny.key}"}, timeout=60) as client:
        yield client


def post(http: httpx.Client, name: str, path: str = "chat/completions", **fields: Any) -> httpx.Response:
    return http.post(f"/v1/{path}", json=CHAT | fields, headers={"Idempotency-Key": name})


def test_the_same_key_is_one_generation_and_one_charge(tiny: Stack, http: httpx.Client) -> None:
    before = len(tiny.usage())
    first, second = (post(http, "one").json() for _ in range(2))
    assert first["choices"] == second["choices"]
    assert first["usage"] == second["usage"]
    assert len(tiny.usage()) == before + 1
    refused = post(http, "one", max_tokens=13)
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "conflict")
    assert len(tiny.usage()) == before + 1


def test_streams_are_given_again(tiny: Stack, http: httpx.Client) -> None:
    before = len(tiny.usage())

    def text(answer: httpx.Response) -> str:
        assert answer.text.endswith("data: [DONE]\n\n")
        lines = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: {")]
        chunks = [json.loads(line) for line in lines]
        return "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks if chunk["choices"])

    first, second = (text(post(http, "streamed", stream=True)) for _ in range(2))
    assert first == second != ""
    assert len(tiny.usage()) == before + 1


def test_several_prompts_and_pictures_are_given_again(tiny: Stack, http: httpx.Client) -> None:
    before = len(tiny.usage())
    prompts = {"model": "tiny", "prompt": ["Once", "Twice"], "max_tokens": 8}
    headers = {"Idempotency-Key": "two"}
    first, second = (http.post("/v1/completions", json=prompts, headers=headers).json() for _ in range(2))
    assert first["choices"] == second["choices"]
    assert len(tiny.usage()) == before + 2
    for count, size in enumerate(((900, 900), (900, 901)), 3):
        picture = "data:image/png;base64," + base64.b64encode(encoded(noise(size))).decode()
        content = [{"type": "image_url", "image_url": {"url": picture}}, {"type": "text", "text": "?"}]
        answers = [post(http, "seen", messages=[{"role": "user", "content": content}]) for _ in range(2)]
        if count == 3:
            assert answers[0].json()["choices"] == answers[1].json()["choices"]
        else:
            assert {answer.status_code for answer in answers} == {409}
        assert len(tiny.usage()) == before + 3


@pytest.mark.parametrize("name", ["x" * 256, ""])
def test_a_name_that_is_none_is_refused(http: httpx.Client, name: str) -> None:
    assert post(http, name).json()["error"]["code"] == "invalid_idempotency_key"
