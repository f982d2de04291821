"""`spyglass status`, once and watched on a terminal, against a fake server."""

import asyncio
import json
import os
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from google.rpc import code_pb2, status_pb2

from client.terminal import terminal
from fake_service import FakeService
from spyglass.v1 import inference_pb2 as pb
from spyglass_client import AsyncClient, Client
from spyglass_client.cli import main

STATUS = pb.GetStatusResponse(
    state=pb.SERVER_STATE_BUSY,
    running=3,
    waiting=5,
    max_pending=8,
    output_tokens_per_second=41.25,
    models=["spyglass-demo", "other\x1b[2J"],
    device="cuda:0",
    dtype="bfloat16",
    quantization="fp8",
    cache=pb.CacheStatus(kv_cache_usage=0.5, prefix_queries=200, prefix_hits=150, preemptions=2),
    engine_restarts=1,
    latest_failures=[pb.Failure(code=code_pb2.UNAVAILABLE, reason="engine_restarted")],
)
STATUS.last_step_age.FromMilliseconds(30)
STATUS.latest_failures[0].time.FromSeconds(1_700_000_000)
REPORT = """\
spyglass-demo, other�[2J on cuda:0, bfloat16, fp8: busy, up 2 h 5 min

generations   3 running, 5 waiting, 8 at most
tokens        41.2 a second, last step 0.0 s ago
KV cache      50% held, 75% of prompts found, 2 preemptions
image cache   0% held, - of images found
engine        1 restarts

latest failures (UTC)
  2023-11-14 22:13:20  UNAVAILABLE  engine_restarted
"""


@pytest.fixture
def environ(service: FakeService) -> dict[str, str]:
    service.status = pb.GetStatusResponse()
    service.status.CopyFrom(STATUS)
    service.status.started.FromSeconds(int(datetime.now(UTC).timestamp()) - 2 * 3600 - 5 * 60 - 20)
    mine = {name: value for name, value in os.environ.items() if not name.startswith("SPYGLASS_")}
    return mine | {"SPYGLASS_GRPC": service.target, "SPYGLASS_API_KEY": "sk-test"}


@pytest.fixture
def run(
    environ: dict[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Any]:
    """Runs the command; returns its exit code, stdout and stderr."""
    for name in ("SPYGLASS_GRPC", "SPYGLASS_API_KEY"):
        monkeypatch.setenv(name, environ[name])

    async def run(*words: str) -> tuple[int, str, str]:
        code = await asyncio.to_thread(main, words)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


async def test_status(run: Callable[..., Any]) -> None:
    assert await run("status") == (0, REPORT, "")


async def test_status_as_json(run: Callable[..., Any]) -> None:
    code, out, _ = await run("status", "--json")
    status = json.loads(out)
    assert (code, status["state"], status["running"], status["last_step_age_s"]) == (0, "busy", 3, 0.03)
    assert status["cache"]["prefix_hit_rate"] == 0.75
    assert status["cache"]["image_hit_rate"] is status["last_token_age_s"] is None
    assert status["latest_failures"] == [
        {"time": "2023-11-14T22:13:20+00:00", "code": "UNAVAILABLE", "reason": "engine_restarted"}
    ]


async def test_watching_as_json_is_refused(run: Callable[..., Any], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        await run("status", "--json", "--watch")
    assert "--json" in capsys.readouterr().err


async def test_watching_follows_the_server_also_through_an_outage(
    service: FakeService, environ: dict[str, str]
) -> None:
    command = [sys.executable, "-m", "spyglass_client", "status", "--watch", "--interval", "0.1"]
    async with terminal(command, environ) as shown:
        await shown.until("3 running, 5 waiting")
        await shown.until("at most 41.2")
        service.status.waiting = 6
        await shown.until("3 running, 6 waiting")
        service.refusal = status_pb2.Status(code=code_pb2.UNAVAILABLE, message="gone")
        await shown.until(lambda text: "running" not in text and len(text.splitlines()) == 1)
        service.refusal = None
        await shown.until("3 running, 6 waiting")
        shown.type("\x03")
        assert await shown.end() == 130


async def test_both_clients_have_it(service: FakeService, environ: dict[str, str]) -> None:
    async with AsyncClient(environ["SPYGLASS_GRPC"], api_key="sk-test") as client:
        status = await client.status()

    def ask() -> Any:
        with Client(environ["SPYGLASS_GRPC"], api_key="sk-test") as client:
            return client.status()

    assert status == await asyncio.to_thread(ask)
    assert (status.state, status.models[0], status.cache.kv_cache_usage) == ("busy", "spyglass-demo", 0.5)
