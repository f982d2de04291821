"""A bridge in front of a fake service, and an HTTP session to talk to it."""

import argparse
import asyncio
import io
import json
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import aiohttp
from google.protobuf import timestamp_pb2

from fake_service import BRIDGE_KEY, PATIENCE_S, USER_KEY, FakeService, Reply, run_fake_service
from spyglass.v1 import inference_pb2 as pb
from spyglass_bridge.config import BridgeConfig
from spyglass_bridge.fetch import Resolve, resolve_by_system
from spyglass_bridge.server import RunningBridge, run_bridge
from spyglass_bridge.settings import SETTINGS
from spyglass_common.settings import add_settings

CHAT = "/v1/openai/chat/completions"
MODEL = "meta-llama/Llama-3.2-90B-Vision-Instruct"

_MODEL = pb.Model(
    id=MODEL,
    description="A model that is not there.",
    created=timestamp_pb2.Timestamp(seconds=1_700_000_000),
    context_length=32768,
    max_tokens=16384,
    pricing=pb.Pricing(input_tokens=0.35, output_tokens=0.40, cached_input_tokens=0.35),
    dtype="bfloat16",
    max_images=16,
    max_image_bytes=20 << 20,
    tags=["vision"],
)


def run_server() -> AbstractAsyncContextManager[FakeService]:
    """Runs a service on a free port, for a bridge, while the context is open."""
    return run_fake_service(Reply(), _MODEL, BRIDGE_KEY)


@dataclass(frozen=True)
class BridgeUnderTest:
    """A running bridge, its server, and a session that holds the user's key."""

    server: FakeService
    running: RunningBridge
    http: aiohttp.ClientSession

    @property
    def url(self) -> str:
        return self.running.address

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    async def chat(self, **fields: Any) -> tuple[int, dict[str, Any]]:
        """Posts a chat request with these fields and returns status and JSON."""
        body = io.BytesIO(json.dumps(ask(**fields)).encode())
        async with self.http.post(CHAT, data=body, headers={"Content-Type": "application/json"}) as response:
            return response.status, await response.json()

    async def stream(self, **fields: Any) -> str:
        """Posts a streaming chat request and returns the whole text of its answer."""
        async with self.http.post(CHAT, json=ask(stream=True, **fields)) as response:
            assert response.status == 200, await response.text()
            return await response.text()

    async def wait_ready(self, status: int = 200) -> None:
        """Returns when /ready answers with this status."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                async with self.http.get("/ready") as response:
                    if response.status == status:
                        return


def ask(**fields: Any) -> dict[str, Any]:
    """The JSON of a chat request."""
    return {"model": MODEL, "messages": [{"role": "user", "content": "Hello!"}], **fields}


def ask_about(*urls: str) -> list[dict[str, Any]]:
    """Messages with one question about images."""
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return [{"role": "user", "content": [{"type": "text", "text": "What is this?"}, *parts]}]


async def until_ready(http: aiohttp.ClientSession, timeout_s: float = PATIENCE_S) -> None:
    """Waits until generations can be served."""
    async with asyncio.timeout(timeout_s):
        while (await http.get("/ready")).status != 200:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.02)


def config_for(target: str, **changes: Any) -> BridgeConfig:
    """Settings of a bridge on a free port, in front of the server at `target`."""
    parser = argparse.ArgumentParser()
    add_settings(parser, SETTINGS, environ={})
    given = {"bridge-key": BRIDGE_KEY, "http": "127.0.0.1:0", "grpc": target, "drain-timeout": "10"}
    options = parser.parse_args([f"--{name}={value}" for name, value in given.items()])
    return replace(BridgeConfig.from_args(options), **changes)


@asynccontextmanager
async def run_bridge_under_test(
    server: FakeService, resolve: Resolve = resolve_by_system, **changes: Any
) -> AsyncIterator[BridgeUnderTest]:
    """Runs a bridge with these changes to its settings while the context is open."""
    headers = {"Authorization": f"Bearer {USER_KEY}"}
    async with (
        run_bridge(config_for(server.target, **changes), resolve) as running,
        aiohttp.ClientSession(base_url=running.address, headers=headers) as http,
    ):
        yield BridgeUnderTest(server, running, http)
