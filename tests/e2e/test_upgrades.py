"""A rolling restart behind one bridge, and bridges and servers of different versions."""

import asyncio
import base64
import itertools
import json
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from PIL import Image

from bridge_setup import CHAT, MODEL, ask_about, config_for, until_ready
from fakes import BRIDGE_KEY, KEY, FakeLoader, run_test_server
from pictures import data_uri
from protocol_filter import NewerProtocol, OlderProtocol, Version, run_filter
from spyglass_bridge.server import run_bridge
from spyglass_client import AsyncClient
from spyglass_server.app import Server
from stack import free_ports

NUM_CALLERS = 12
NUM_ROLLS = 4
LOADER = FakeLoader(step_s=0.002)


class Callers:
    """Clients that ask one question after the other, each in its own way."""

    def __init__(self) -> None:
        self.num_answers = 0
        self.faults: list[str] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._enough = False

    def begin(self, http: aiohttp.ClientSession, client: AsyncClient) -> None:
        for number in range(NUM_CALLERS):
            ask = self._over_grpc(client) if number % 3 == 2 else self._over_http(http, number)
            self._tasks.append(asyncio.create_task(ask))

    async def more(self, count: int) -> None:
        """Waits until so many more have been answered."""
        enough = self.num_answers + count
        while self.num_answers < enough and not self.faults:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.01)

    async def end(self) -> None:
        self._enough = True
        await asyncio.gather(*self._tasks)

    async def _over_http(self, http: aiohttp.ClientSession, number: int) -> None:
        messages = (
            ask_about(data_uri(Image.new("RGB", (30, 20), "red")))
            if number % 4 == 0
            else [{"role": "user", "content": "Hello!"}]
        )
        for turn in itertools.count():
            if self._enough:
                return
            body = {"model": MODEL, "messages": messages, "max_tokens": 1 + turn % 30, "stream": bool(turn % 2)}
            async with http.post(CHAT, json=body) as response:
                text = await response.text()
            if response.status == 200 and (not turn % 2 or "[DONE]" in text):
                self.num_answers += 1
            else:
                self.faults.append(f"{response.status} {text}")
                return

    async def _over_grpc(self, client: AsyncClient) -> None:
        while not self._enough:
            try:
                await client.generate("Hello!", max_tokens=9)
                self.num_answers += 1
            except Exception as error:
                self.faults.append(repr(error))
                return


@asynccontextmanager
async def running(checkpoint: Path, data_dir: Path, port: int) -> AsyncIterator[Server]:
    async with run_test_server(
        checkpoint, data_dir, LOADER, grpc=f"127.0.0.1:{port}", drain_timeout=20.0, served_model_name=(MODEL,)
    ) as test_server:
        yield test_server.server


async def test_a_rolling_restart_fails_no_request(tiny_checkpoint: Path, tmp_path: Path) -> None:
    ports = free_ports(2)
    target = "ipv4:" + ",".join(f"127.0.0.1:{port}" for port in ports)
    callers = Callers()
    async with AsyncExitStack() as stack:
        old = await stack.enter_async_context(running(tiny_checkpoint, tmp_path / "0", ports[0]))
        bridge = await stack.enter_async_context(run_bridge(config_for(target, bridge_key=BRIDGE_KEY)))
        session = aiohttp.ClientSession(base_url=bridge.address, headers={"Authorization": f"Bearer {KEY}"})
        http = await stack.enter_async_context(session)
        client = await stack.enter_async_context(AsyncClient(target, api_key=KEY))
        await until_ready(http, 20)
        callers.begin(http, client)
        for roll in range(1, NUM_ROLLS + 1):
            await callers.more(40)
            new = await stack.enter_async_context(running(tiny_checkpoint, tmp_path / str(roll), ports[roll % 2]))
            await old.drain()
            await old.stop()
            await until_ready(http, 2)
            old = new
        await callers.more(40)
        await callers.end()
    assert callers.faults == []


QUESTION = {"model": MODEL, "messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 5, "seed": 3}
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
FORMAT = {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}
TOOLS = [{"type": "function", "function": {"name": "find", "parameters": SCHEMA}}]
REQUESTS: dict[str, tuple[str, dict[str, Any] | None]] = {
    "chat": (CHAT, QUESTION),
    "stream": (CHAT, QUESTION | {"stream": True, "stream_options": {"include_usage": True}}),
    "choices": (CHAT, QUESTION | {"n": 2, "logprobs": True, "top_logprobs": 2, "stop": ["x"]}),
    "picture": (CHAT, QUESTION | {"messages": ask_about(data_uri(Image.new("RGB", (30, 20), "red")))}),
    "large picture": (CHAT, QUESTION | {"messages": ask_about(data_uri(Image.effect_noise((900, 700), 90)))}),
    "schema": (CHAT, QUESTION | {"response_format": FORMAT, "max_tokens": 200}),
    "tools": (CHAT, QUESTION | {"tools": TOOLS}),
    "prompts": ("/v1/completions", {"model": MODEL, "prompt": ["Hi", "Ho"], "max_tokens": 3, "echo": True, "seed": 3}),
    "tokenize": ("/tokenize", {"model": MODEL, "prompt": "Hi"}),
    "detokenize": ("/detokenize", {"model": MODEL, "tokens": [1, 2]}),
    "context": (CHAT, QUESTION | {"messages": [{"role": "user", "content": "Hello! " * 5000}]}),
    "no model": (CHAT, QUESTION | {"model": "other"}),
    "models": ("/v1/models", None),
    "model": (f"/v1/models/{MODEL}", None),
    "usage": ("/v1/usage", None),
    "ready": ("/ready", None),
}
VERSIONS: dict[str, Version] = {"older": OlderProtocol(), "newer": NewerProtocol()}


@pytest.mark.parametrize("name", VERSIONS)
async def test_bridges_and_servers_of_different_versions(tiny_checkpoint: Path, tmp_path: Path, name: str) -> None:
    """What a bridge answers is what it answers with a server of its own version."""
    async with (
        run_test_server(tiny_checkpoint, tmp_path, served_model_name=(MODEL,)) as test_server,
        run_filter(test_server.server.address, VERSIONS[name]) as other,
    ):
        same = await answers(test_server.server.address)
        assert {kind: status for kind, (status, _) in same.items() if status != 200} == {
            "context": 400,
            "no model": 404,
        }
        assert await answers(other) == same


@pytest.mark.parametrize("name", VERSIONS)
async def test_clients_and_servers_of_different_versions(tiny_checkpoint: Path, tmp_path: Path, name: str) -> None:
    picture = base64.b64decode(data_uri(Image.effect_noise((900, 700), 90)).partition(",")[2])
    async with (
        run_test_server(tiny_checkpoint, tmp_path) as test_server,
        run_filter(test_server.server.address, VERSIONS[name]) as other,
        AsyncClient(test_server.server.address, api_key=KEY) as client,
        AsyncClient(other, api_key=KEY) as elsewhere,
    ):
        for images in ((), (picture,)):
            told = [await each.generate("What?", images=images, max_tokens=9, seed=3) for each in (client, elsewhere)]
            assert told[0].text == told[1].text
            assert told[0].usage.completion_tokens == told[1].usage.completion_tokens == 9
        assert await client.models() == await elsewhere.models()
        usage = [await each.usage() for each in (client, elsewhere)]
        assert usage[0].completion_tokens == usage[1].completion_tokens == 36


async def answers(target: str) -> dict[str, tuple[int, str]]:
    """Status and body of all requests, without what differs from one to the next."""
    found = {}
    async with (
        run_bridge(config_for(target, bridge_key=BRIDGE_KEY)) as bridge,
        aiohttp.ClientSession(base_url=bridge.address, headers={"Authorization": f"Bearer {KEY}"}) as http,
    ):
        await until_ready(http, 20)
        for kind, (path, body) in REQUESTS.items():
            async with http.request("GET" if body is None else "POST", path, json=body) as response:
                found[kind] = response.status, _VARYING.sub("…", await response.text())
    for kind, differs in (("usage", sorted_names), ("tokenize", tokens_only), ("stream", without_cuts)):
        found[kind] = found[kind][0], differs(found[kind][1])
    return found


def sorted_names(answer: str) -> str:
    """What is told of the usage, which grows."""
    return str(sorted(json.loads(answer)))


def tokens_only(answer: str) -> str:
    """Without what an older server does not tell."""
    return str(json.loads(answer)["tokens"])


def without_cuts(stream: str) -> str:
    """The words of a stream and its end, wherever it is cut into chunks."""
    return "".join(re.findall(r'"content":"([^"]*)"', stream)) + stream[stream.index('"usage":{') :]


_VARYING = re.compile(
    r'"(?:id|created)":(?:"[^"]*"|\d+)|req-\w+|call_\w+|"(?:cached|accepted_prediction|rejected_prediction)_tokens":\d+|"estimated_cost":[\d.e-]+'
)
