"""What an operator does by hand with grpcurl."""

import base64
import json
import shutil
import subprocess
from typing import Any

import pytest

from pictures import disc, encoded
from stack import Stack, program_path

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("grpcurl", path=program_path()) is None, reason="grpcurl is not installed"),
]

GENERATE = "spyglass.v1.InferenceService/Generate"


def grpcurl(stack: Stack, *words: str, typed: str = "", key: str | None = None) -> subprocess.CompletedProcess[str]:
    """Runs grpcurl with the key of the server, or with another one, and `typed` on its standard input."""
    authorization = ("-H", f"authorization: Bearer {stack.key if key is None else key}")
    options = ("-d", "@") if typed else ()
    return subprocess.run(
        ["grpcurl", "-plaintext", *authorization, *options, stack.grpc, *words],
        env=stack.environ(),
        input=typed,
        capture_output=True,
        text=True,
        timeout=60,
    )


def good(result: subprocess.CompletedProcess[str]) -> str:
    assert result.returncode == 0, result.stderr
    return result.stdout


def events(printed: str) -> list[dict[str, Any]]:
    """The events of all responses, in order."""
    decoder, found = json.JSONDecoder(), []
    while printed := printed.strip():
        response, end = decoder.raw_decode(printed)
        found += response.get("events", [])
        printed = printed[end:]
    return found


def kinds(found: list[dict[str, Any]]) -> list[str]:
    """What happened, with deltas in a row as one."""
    names = [name for event in found for name in event if name != "id"]
    return [name for name, before in zip(names, [None, *names], strict=False) if name != before]


def started(found: list[dict[str, Any]]) -> int:
    """How many tokens the prompt has."""
    [tokens] = [event["started"]["prompt_tokens"] for event in found if "started" in event]
    assert isinstance(tokens, int)
    return tokens


def ask(*messages: dict[str, Any], **fields: Any) -> str:
    """One message that starts a generation of 8 tokens."""
    start = {"chat": {"messages": messages}, "stopping": {"max_tokens": 8}, "sampling": {"temperature": 0}}
    return json.dumps({"id": "1", "start": start | fields})


def turn(role: str, *parts: dict[str, Any]) -> dict[str, Any]:
    return {"role": f"ROLE_{role}", "parts": parts}


def test_services_are_listed_by_reflection(tiny: Stack) -> None:
    assert {"grpc.health.v1.Health", "spyglass.v1.InferenceService"} <= set(good(grpcurl(tiny, "list")).split())


def test_the_service_is_described_by_reflection(tiny: Stack) -> None:
    described = good(grpcurl(tiny, "describe", "spyglass.v1.InferenceService"))
    assert "rpc Generate ( stream .spyglass.v1.GenerateRequest ) returns ( stream .spyglass.v1.GenerateResponse );" in (
        described
    )
    assert "oneof kind" in good(grpcurl(tiny, "describe", "spyglass.v1.GenerateRequest"))


def test_health_needs_no_key(tiny: Stack) -> None:
    for name in ("", "spyglass.v1.InferenceService"):
        asked = grpcurl(tiny, "grpc.health.v1.Health/Check", typed=json.dumps({"service": name}), key="sk-unknown")
        assert json.loads(good(asked)) == {"status": "SERVING"}


def test_a_conversation_by_hand(tiny: Stack) -> None:
    chat = ask(
        turn("SYSTEM", {"text": "Respond like a michelin starred chef."}),
        turn("USER", {"text": "Name two ways to cook lamb."}),
        turn("ASSISTANT", {"text": "Roast it, or braise it."}),
        turn("USER", {"text": "Tell me more about the second."}),
    )
    found = events(good(grpcurl(tiny, GENERATE, typed=chat)))
    assert {event["id"] for event in found} == {"1"}
    assert kinds(found) == ["accepted", "started", "delta", "finished"]
    usage = found[-1]["finished"]["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (started(found), 8)
    assert usage["estimated_cost"] == pytest.approx(started(found) * 0.35e-6 + 8 * 0.40e-6)
    assert found[-2]["delta"]["finish_reason"] == "FINISH_REASON_LENGTH"


def test_two_generations_on_one_stream(tiny: Stack) -> None:
    first = ask(turn("USER", {"text": "One."}))
    second = json.dumps(json.loads(ask(turn("USER", {"text": "Two."}))) | {"id": "2"})
    found = events(good(grpcurl(tiny, GENERATE, typed=first + second)))
    for name in ("1", "2"):
        assert kinds([event for event in found if event["id"] == name])[-1] == "finished"


def test_a_picture_by_hand(tiny: Stack) -> None:
    def look(*parts: dict[str, Any]) -> list[dict[str, Any]]:
        return events(good(grpcurl(tiny, GENERATE, typed=ask(turn("USER", *parts, {"text": "What is it?"})))))

    red, blue = (
        look({"image": {"data": base64.b64encode(encoded(disc(colour))).decode()}}) for colour in ("red", "blue")
    )
    assert started(red) == started(look()) + 1
    deltas = [[event["delta"] for event in found if "delta" in event] for found in (red, blue)]
    assert deltas[0] != deltas[1]


def test_a_stranger_is_refused(tiny: Stack) -> None:
    for key in ("sk-unknown", ""):
        refused = grpcurl(tiny, GENERATE, typed=ask(turn("USER", {"text": "Hello!"})), key=key)
        assert refused.returncode != 0
        assert "Code: Unauthenticated" in refused.stderr
        assert refused.stdout == ""


def test_a_field_that_is_not_honoured_is_refused_by_name(tiny: Stack) -> None:
    [refusal] = events(good(grpcurl(tiny, GENERATE, typed=ask(turn("USER", {"text": "Hello!"}), cacheSalt="x"))))
    assert "cache_salt" in refusal["finished"]["error"]["message"]
