"""Routes over HTTP, against the whole stack: what they answer is what the API's description says."""

import base64
import json
from base64 import b64decode
from collections.abc import Iterator
from typing import Any

import httpx
import jsonschema
import pytest
from PIL import Image

from pictures import data_uri
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
PICTURES = [
    {"type": "image_url", "image_url": {"url": data_uri(Image.new("RGB", size, "red"))}}
    for size in ((60, 50), (20, 20))
]
LOOKING = CHAT | {
    "messages": [{"role": "user", "content": [*PICTURES, {"type": "text", "text": "What?"}]}],
    "include": ["image_attention"],
}
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


def assert_alike(found: Any, wanted: Any) -> None:
    """Up to rounding: the second time the prompt is there already, and less of it is computed at once."""
    match wanted:
        case {"scale": scale, "data": data}:
            assert found["scale"] == pytest.approx(scale, rel=1e-4)
            pairs = zip(base64.b64decode(found["data"]), base64.b64decode(data), strict=True)
            assert all(abs(one - other) <= 1 for one, other in pairs)
        case dict():
            assert found.keys() == wanted.keys()
            for name in wanted:
                assert_alike(found[name], wanted[name])
        case list():
            assert len(found) == len(wanted)
            for one, other in zip(found, wanted, strict=True):
                assert_alike(one, other)
        case _:
            assert found == wanted


def test_where_the_model_looked_is_told_to_those_who_ask(http: httpx.Client, description: dict[str, Any]) -> None:
    """A map of each picture for each token, the same in a stream; the answer is the same as without."""
    whole = check(description, http.post("/v1/chat/completions", json=LOOKING | {"n": 2}).json(), "ChatCompletion")
    plain = http.post("/v1/chat/completions", json=LOOKING | {"n": 2, "include": []}).json()
    assert [one["message"] for one in plain["choices"]] == [one["message"] for one in whole["choices"]]
    assert all("image_attention" not in one for one in plain["choices"])
    told: list[list[Any]] = [[], []]
    for event in events(http.post("/v1/chat/completions", json=LOOKING | {"n": 2, "stream": True})):
        for choice in check(description, event, "ChatCompletionChunk")["choices"]:
            if "image_attention" in choice:
                told[choice["index"]] += choice["image_attention"]["tokens"]
                assert choice["image_attention"]["images"] == whole["choices"][0]["image_attention"]["images"]
    assert_alike(told, [one["image_attention"]["tokens"] for one in whole["choices"]])
    assert sum(map(len, told)) == whole["usage"]["completion_tokens"]
    first, second = whole["choices"][0]["image_attention"]["images"]
    assert (first["covered_rows"] / first["rows"], first["covered_columns"] / first["columns"]) == pytest.approx(
        (46 / 56, 1), abs=0.02
    )
    for token in told[0] + told[1]:
        sizes = [len(b64decode(one["data"])) for one in token["maps"]]
        assert sizes == [grid["rows"] * grid["columns"] for grid in (first, second)]
        assert all(0 < one["scale"] <= 1 for one in token["maps"])
    refused = http.post("/v1/chat/completions", json=LOOKING | {"include": ["feelings"]}).json()
    assert refused["error"]["param"] == "include[0]"
    nothing = http.post("/v1/chat/completions", json=CHAT | {"include": ["image_attention"]}).json()
    assert nothing["choices"][0]["image_attention"]["images"] == []


def test_the_status_is_told(http: httpx.Client, description: dict[str, Any]) -> None:
    told = check(description, http.get("/v1/status").json(), "ServerStatus")
    assert (told["status"], told["running"], told["waiting"]) == ("ready", 0, 0)
    assert httpx.get(f"{http.base_url}/v1/status").status_code == 401


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
    assert len(set(completions)) > 1  # what a busy machine brings late comes together
    for event in found:
        check(description, event, "Completion" if "prompt" in body else "ChatCompletionChunk")
        if any(choice["finish_reason"] for choice in event["choices"]):
            assert event["usage"] is not None
    whole = http.post(route, json=body).json()["usage"]
    varying = dict.fromkeys(("prompt_tokens_details", "completion_tokens_details", "estimated_cost"))
    assert {**used[-1], **varying} == {**whole, **varying}


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
    sized = [{"type": "image_url", "image_url": {"width": 300, "height": 200, "detail": d}} for d in ("high", "low")]
    asked = {"model": "tiny", "messages": [{"role": "user", "content": sized}]}
    counted = check(description, http.post("/tokenize", json=asked).json(), "Tokens")
    assert [(one["columns"], one["rows"]) for one in counted["images"]] == [(2, 2), (1, 1)]
    assert counted["images"][0]["picture_height"] == 37
    assert counted["estimated_cost"] == pytest.approx(0.35e-6 * counted["count"])
    assert (
        http.post("/v1/chat/completions", json=asked).json()["error"]["param"] == "messages[0].content[0].image_url.url"
    )
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
