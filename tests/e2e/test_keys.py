"""Keys as operators and callers know them: made by command, limited, charged and revoked, through both doors."""

import csv
import io
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import openai
import pytest

from spyglass.v1 import chat_pb2, inference_pb2, inference_pb2_grpc
from spyglass_client import AdminClient, Client, RateLimitedError
from stack import Stack

pytestmark = pytest.mark.slow

REVOKED_S = 2.0


@pytest.fixture(scope="module")
def stack(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with Stack(tmp_path_factory.mktemp("keys"), "--model", str(tiny_checkpoint)) as one:
        yield one


def spyglass(stack: Stack, *words: str, code: int = 0) -> str:
    """Runs the command beside the server and returns what it prints."""
    command = (sys.executable, "-m", "spyglass_client", *words)
    environ = stack.environ(SPYGLASS_DATA_DIR=str(stack.data_dir))
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60)
    assert done.returncode == code, done.stderr
    return done.stdout if code == 0 else done.stderr


def create(stack: Stack, *words: str) -> tuple[str, str]:
    """A key's id and secret."""
    made = json.loads(spyglass(stack, "keys", "create", "--json", *words))
    return made["key"]["id"], made["secret"]


def ask(stack: Stack, secret: str, **fields: Any) -> httpx.Response:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3, **fields}
    headers = {"Authorization": f"Bearer {secret}"}
    return httpx.post(f"{stack.http}/v1/chat/completions", json=body, headers=headers, timeout=30)


def test_a_key_is_made_listed_shown_changed_and_revoked(stack: Stack) -> None:
    secret = spyglass(stack, "keys", "create", "--name", "alice", "--tenant", "acme", "--usd-per-day", "2").strip()
    assert secret.startswith("sk-spyglass-")
    listed = spyglass(stack, "keys", "list", "--tenant", "acme")
    [line] = listed.splitlines()[1:]
    key_id = line.split()[0]
    assert ("alice" in line, "$2.00/day" in line, secret in listed) == (True, True, False)
    assert ask(stack, secret).status_code == 200
    shown = spyglass(stack, "keys", "update", key_id, "--usd-per-day", "none", "--expires", "1d", "--models", "tiny")
    assert "limits    none" in shown
    assert json.loads(spyglass(stack, "keys", "show", key_id, "--json"))["models"] == ["tiny"]
    assert "revoked" in spyglass(stack, "keys", "revoke", key_id)
    assert key_id not in spyglass(stack, "keys", "list")
    assert key_id in spyglass(stack, "keys", "list", "--all")
    assert spyglass(stack, "keys", "show", "key-none", code=1) == "spyglass: there is no key 'key-none' (id)\n"


def test_a_revoked_key_is_refused_everywhere_within_two_seconds(stack: Stack) -> None:
    key_id, secret = create(stack)
    assert ask(stack, secret).status_code == 200  # the bridge knows it now
    with grpc.insecure_channel(stack.grpc) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        starts: list[inference_pb2.GenerateRequest] = []

        def requests() -> Iterator[inference_pb2.GenerateRequest]:
            yield start(1)
            while not starts:
                time.sleep(0.01)
            yield from starts

        events = (
            event
            for frame in stub.Generate(requests(), metadata=(("authorization", f"Bearer {secret}"),))
            for event in frame.events
        )
        assert not next(event for event in events if event.HasField("finished")).finished.HasField("error")
        spyglass(stack, "keys", "revoke", key_id)
        revoked_s = time.monotonic()
        starts.append(start(2))
        refused = next(event for event in events if event.HasField("finished")).finished.error
        assert refused.code == grpc.StatusCode.UNAUTHENTICATED.value[0]
    while ask(stack, secret).status_code != 401:
        assert time.monotonic() < revoked_s + REVOKED_S


def start(number: int) -> inference_pb2.GenerateRequest:
    parts = [chat_pb2.Part(text="Hi")]
    chat = chat_pb2.Chat(messages=[chat_pb2.Message(role=chat_pb2.ROLE_USER, parts=parts)])
    request = inference_pb2.GenerateRequest(id=number, start=inference_pb2.Start(chat=chat))
    request.start.stopping.max_tokens = 3
    return request


def test_limits_have_openais_headers_and_refusals(stack: Stack) -> None:
    _, secret = create(stack, "--requests-per-minute", "2", "--tokens-per-minute", "10000")
    answer = ask(stack, secret)
    assert answer.headers["x-ratelimit-limit-requests"] == "2"
    assert answer.headers["x-ratelimit-remaining-requests"] == "1"
    assert answer.headers["x-ratelimit-reset-requests"].endswith("s")
    assert 9000 < int(answer.headers["x-ratelimit-remaining-tokens"]) < 10000
    streamed = ask(stack, secret, stream=True)
    assert streamed.headers["x-ratelimit-remaining-requests"] == "0"
    assert streamed.text.endswith("data: [DONE]\n\n")
    refused = ask(stack, secret)
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")
    assert 1 <= int(refused.headers["Retry-After"]) <= 30
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"
    with openai.OpenAI(base_url=f"{stack.http}/v1", api_key=secret, max_retries=0) as client:
        with pytest.raises(openai.RateLimitError) as caught:
            client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "Hi"}])
        assert caught.value.code == "rate_limit_exceeded"
    with Client(stack.grpc, api_key=secret) as grpc_client, pytest.raises(RateLimitedError) as limited:
        grpc_client.generate("Hi", max_tokens=3)
    assert limited.value.reason == "rate_limit_exceeded"
    assert "x-ratelimit-limit-requests" not in ask(stack, stack.key).headers


def test_money_is_never_overspent_and_a_spent_key_is_not_retried(stack: Stack) -> None:
    _, secret = create(stack, "--usd-per-month", "0.00002")
    statuses = [ask(stack, secret).status_code for _ in range(5)]
    assert statuses[0] == 200
    refused = ask(stack, secret)
    error = refused.json()["error"]
    assert (refused.status_code, error["type"], error["code"]) == (429, "insufficient_quota", "insufficient_quota")
    assert refused.headers["x-should-retry"] == "false"
    assert int(refused.headers["Retry-After"]) >= 1
    headers = {"Authorization": f"Bearer {secret}"}
    spent = httpx.get(f"{stack.http}/v1/usage", headers=headers).json()["estimated_cost"]
    assert 0 < spent <= 0.00002


def test_models_and_scopes(stack: Stack) -> None:
    _, secret = create(stack, "--models", "another")
    assert ask(stack, secret).status_code == 404
    headers = {"Authorization": f"Bearer {secret}"}
    assert httpx.get(f"{stack.http}/v1/models", headers=headers).json()["data"] == []
    _, admin_secret = create(stack, "--scope", "admin")
    assert ask(stack, admin_secret).status_code == 403
    with AdminClient(stack.grpc, admin_key=admin_secret) as admin:  # from another machine
        key, _ = admin.create_key(name="far away")
        assert admin.key(key.id).name == "far away"
    refusal = spyglass(stack, "keys", "list", "--admin-key", stack.key, code=1)
    assert refusal == "spyglass: this needs a key with the scope admin\n"


def test_usage_is_told_by_group_as_table_csv_json_and_over_http(stack: Stack) -> None:
    key_id, secret = create(stack, "--tenant", "sums")
    for _ in range(2):
        assert ask(stack, secret).status_code == 200
    headers = {"Authorization": f"Bearer {secret}"}
    query = {"group_by": "day,model", "records": "1"}
    told = httpx.get(f"{stack.http}/v1/usage", headers=headers, params=query).json()
    assert (told["key_id"], told["tenant"], told["generations"]) == (key_id, "sums", 2)
    [group] = told["data"]
    assert (group["model"], group["completion_tokens"]) == ("tiny", told["completion_tokens"])
    assert len(told["records"]) == 1
    for wrong in ({"group_by": "tenant"}, {"since": "yesterday"}, {"records": "1001"}, {"what": "1"}):
        refused = httpx.get(f"{stack.http}/v1/usage", headers=headers, params=wrong)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, next(iter(wrong)))
    table = spyglass(stack, "usage", "--tenant", "sums", "--by", "tenant,key", "--records", "0")
    assert table.splitlines()[1].split()[:3] == ["sums", key_id, "2"]
    [row] = csv.DictReader(io.StringIO(spyglass(stack, "usage", "--tenant", "sums", "--by", "day", "--format", "csv")))
    assert (row["generations"], row["completion_tokens"]) == ("2", str(told["completion_tokens"]))
    whole = json.loads(spyglass(stack, "usage", "--all", "--by", "key", "--json"))
    assert key_id in {each["key_id"] for each in whole["sums"]}
    assert spyglass(stack, "usage", "--api-key", secret, "--by", "model").splitlines()[1].split()[:2] == ["tiny", "2"]
