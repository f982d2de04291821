"""Routes over HTTP, against the whole stack: what they answer is what the API's description says."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import jsonschema
import pytest

from stack import Stack

pytestmark = pytest.mark.slow


@pytest.fixture
def http(tiny: Stack) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=tiny.http, headers={"Authorization": f"Bearer {tiny.key}"}, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def description(tiny: Stack) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{tiny.http}/openapi.json").raise_for_status().json()
    return found


def check(description: dict[str, Any], answer: Any, name: str) -> Any:
    """Asserts that an answer has the shape that is described under a name."""
    jsonschema.validate(answer, {"$ref": f"#/components/schemas/{name}", "components": description["components"]})
    return answer


def events(answer: httpx.Response) -> list[Any]:
    frames = answer.text.split("\n\n")
    assert frames[-2:] == ["data: [DONE]", ""]
    return [json.loads(frame.removeprefix("data: ")) for frame in frames[:-2]]


CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 8, "seed": 1}
TEXT = {"model": "tiny", "prompt": "Once", "max_tokens": 8, "seed": 1}


@pytest.mark.parametrize("extra", [{}, {"logprobs": True, "top_logprobs": 2, "n": 2}])
def test_chat_completions_are_as_described(
    http: httpx.Client, description: dict[str, Any], extra: dict[str, Any]
) -> None:
    check(description, http.post("/v1/chat/completions", json=CHAT | extra).json(), "ChatCompletion")
    for options in ({}, {"stream_options": {"include_usage": True}}):
        stream = http.post("/v1/chat/completions", json=CHAT | extra | {"stream": True} | options)
        for event in events(stream):
            check(description, event, "ChatCompletionChunk")


@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"logprobs": 2, "echo": True},
        {"echo": True, "n": 2},
        {"logprobs": 2, "n": 2},
        {"prompt": ["a", "b"]},
        {"prompt": [5, 6]},
    ],
)
def test_completions_are_as_described_and_streams_join_to_them(
    http: httpx.Client, description: dict[str, Any], extra: dict[str, Any]
) -> None:
    whole = check(description, http.post("/v1/completions", json=TEXT | extra).json(), "Completion")
    joined = [""] * len(whole["choices"])
    tokens: list[list[str]] = [[] for _ in joined]
    for event in events(http.post("/v1/openai/completions", json=TEXT | extra | {"stream": True})):
        for choice in check(description, event, "Completion")["choices"]:
            joined[choice["index"]] += choice["text"]
            tokens[choice["index"]] += (choice["logprobs"] or {"tokens": []})["tokens"]
    assert joined == [choice["text"] for choice in whole["choices"]]
    if "logprobs" in extra:
        assert tokens == [choice["logprobs"]["tokens"] for choice in whole["choices"]]
        assert (whole["choices"][0]["logprobs"]["token_logprobs"][0] is None) == ("echo" in extra)
    if "echo" in extra:
        assert all(choice["text"].startswith("<|begin_of_text|>Once") for choice in whole["choices"])


def test_what_is_taken_without_an_effect_is_described(http: httpx.Client, description: dict[str, Any]) -> None:
    messages = [
        {"role": "user", "content": "Hi", "name": "me"},
        {"role": "assistant", "content": "Hello", "refusal": None, "annotations": [], "name": "you"},
        {"role": "user", "content": "Bye"},
    ]
    body = CHAT | {"messages": messages, "user": "me", "stream": True, "stream_options": {"include_obfuscation": False}}
    assert http.post("/v1/chat/completions", json=check(description, body, "ChatRequest")).status_code == 200


@pytest.mark.parametrize("include_usage", [None, True])
@pytest.mark.parametrize(
    ("route", "body"),
    [
        ("/v1/chat/completions", CHAT | {"n": 2}),
        ("/v1/chat/completions", CHAT | {"logprobs": True}),
        ("/v1/completions", TEXT | {"prompt": ["a", "longer"], "n": 2, "echo": True}),
    ],
)
def test_a_stream_tells_what_was_used_so_far(
    http: httpx.Client, description: dict[str, Any], route: str, body: dict[str, Any], include_usage: bool | None
) -> None:
    options = {"include_usage": include_usage, "continuous_usage_stats": True}
    found = events(http.post(route, json=body | {"stream": True, "stream_options": options}))
    used = [event["usage"] for event in found if event.get("usage") is not None]
    completions = [usage["completion_tokens"] for usage in used]
    costs = [usage["estimated_cost"] for usage in used]
    assert completions == sorted(completions)
    assert costs == sorted(costs)
    assert len(set(completions)) > 4
    for event in found:
        check(description, event, "Completion" if "prompt" in body else "ChatCompletionChunk")
        if any(choice["finish_reason"] for choice in event["choices"]):
            assert event["usage"] is not None
    whole = http.post(route, json=body).json()["usage"]
    assert {**used[-1], "prompt_tokens_details": None, "estimated_cost": None} == {
        **whole,
        "prompt_tokens_details": None,
        "estimated_cost": None,
    }


def test_errors_name_the_field_as_the_route_does(http: httpx.Client) -> None:
    for route, body, param in [
        ("/v1/completions", TEXT | {"prompt": [5, 10**6]}, "prompt"),
        ("/v1/inference/tiny", {"input": "x", "max_new_tokens": 2**31}, "max_new_tokens"),
        ("/v1/inference/tiny", {"input": "x", "num_responses": 2, "stream": True}, "num_responses"),
        ("/detokenize", {"model": "tiny", "tokens": [10**6]}, "tokens"),
    ]:
        refused = http.post(route, json=body)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)
    for path in ("/v1/models/%FF", "/models/%FF/schema/input", "/v1/models/" + "x" * 300):
        assert http.get(path).status_code == 404
    assert http.post("/v1/inference/%FF", json={"input": "x"}).status_code == 404


def test_the_native_form_is_as_described(http: httpx.Client, description: dict[str, Any]) -> None:
    ask = {"input": "Once", "max_new_tokens": 8, "seed": 1}
    whole = check(description, http.post("/v1/inference/tiny", json=ask).json(), "Inference")
    text = http.post("/v1/completions", json=TEXT).json()["choices"][0]["text"]
    assert whole["results"] == [{"generated_text": text}]
    several = http.post("/v1/inference/tiny", json=ask | {"num_responses": 3}).json()
    assert len(several["results"]) == 3
    found = events(http.post("/v1/inference/tiny", json=ask | {"stream": True}))
    for event in found:
        check(description, event, "InferenceEvent")
    assert found[-1]["generated_text"] == text
    assert len(found) == 1 + found[-1]["details"]["generated_tokens"]
    assert http.post("/v1/inference/unknown", json=ask).status_code == 404


def test_tokens_are_told_and_say_the_prompt(http: httpx.Client, description: dict[str, Any]) -> None:
    told = check(description, http.post("/tokenize", json={"model": "tiny", "prompt": "Grüße"}).json(), "Tokens")
    assert told["count"] == len(told["tokens"]) == 8  # with the begin token
    said = http.post("/detokenize", json={"model": "tiny", "tokens": told["tokens"]}).json()
    assert check(description, said, "TokenizedText")["prompt"] == "<|begin_of_text|>Grüße"
    chat = http.post("/tokenize", json={"model": "tiny", "messages": CHAT["messages"]}).json()
    assert chat["count"] == http.post("/v1/chat/completions", json=CHAT).json()["usage"]["prompt_tokens"]
    refused = http.post("/tokenize", json={"model": "tiny"}).json()
    assert check(description, refused, "ErrorAnswer")["error"]["param"] == "prompt"


@pytest.mark.parametrize(
    ("variant", "title"), [("input", "ChatRequest"), ("output", "ChatCompletion"), ("streaming", "ChatCompletionChunk")]
)
def test_schemas_are_told(http: httpx.Client, variant: str, title: str) -> None:
    schema = http.get(f"/models/tiny/schema/{variant}").json()
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["title"] == title
    assert http.get("/models/tiny/schema/other").status_code == 404
    assert http.get("/models/other/schema/input").status_code == 404


def test_the_reference_tells_every_route(http: httpx.Client, description: dict[str, Any]) -> None:
    page = httpx.get(f"{http.base_url}/docs")
    assert page.headers["content-type"].startswith("text/html")
    for path in description["paths"]:
        assert path in page.text
