"""The command: what it needs, what it prints, what it imports, and how it ends."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from bridge_setup import CHAT, ask, run_bridge_under_test
from fake_service import BRIDGE_KEY, PATIENCE_S, USER_KEY, FakeService, Reply

PREFIX = "spyglass-bridge: listening on "
COMMAND = [sys.executable, "-c", "from spyglass_bridge.cli import main; main()"]


@asynccontextmanager
async def run_command(server: FakeService, *options: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """A bridge in a process of its own, and where it listens."""
    process = await asyncio.create_subprocess_exec(
        *COMMAND,
        *("--grpc", server.target, "--bridge-key", BRIDGE_KEY, "--http", "127.0.0.1:0", *options),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(PATIENCE_S):
            line = (await process.stdout.readline()).decode().strip()
        assert line.startswith(PREFIX)
        yield process, line.removeprefix(PREFIX)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def session(url: str) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(url, headers={"Authorization": f"Bearer {USER_KEY}"})


async def test_a_stop_signal_lets_streams_end_and_refuses_new_calls(server: FakeService) -> None:
    gate = asyncio.Event()
    server.script = Reply(gate=gate)
    async with run_command(server) as (process, url), session(url) as http:
        async with http.post(CHAT, json=ask(stream=True)) as running:
            assert running.status == 200
            process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(PATIENCE_S):
                while (await http.get("/ready")).status != 503:
                    pass
            async with http.post(CHAT, json=ask()) as refused:
                assert refused.status == 503
                assert refused.headers["Retry-After"] == "1"
                assert (await refused.json())["error"]["code"] == "server_draining"
            gate.set()
            assert "[DONE]" in await running.text()
        async with asyncio.timeout(PATIENCE_S):
            assert await process.wait() == 0


async def test_a_second_signal_ends_at_once(server: FakeService) -> None:
    server.script = Reply(hang_after=1)
    async with (
        run_command(server) as (process, url),
        session(url) as http,
        http.post(CHAT, json=ask(stream=True)) as running,
    ):
        assert running.status == 200
        process.send_signal(signal.SIGINT)
        async with asyncio.timeout(PATIENCE_S):
            while (await http.get("/ready")).status != 503:
                pass
        process.send_signal(signal.SIGINT)
        assert '"code":"server_draining"' in await running.text()
        async with asyncio.timeout(PATIENCE_S):
            assert await process.wait() == 0


async def test_what_outlasts_the_drain_timeout_gets_an_error(server: FakeService) -> None:
    server.script = Reply(hang_after=1)
    async with (
        run_bridge_under_test(server, drain_timeout_s=0.05) as bridge,
        bridge.http.post(CHAT, json=ask(stream=True)) as running,
    ):
        assert running.status == 200
        await bridge.running.drain()
        text = await running.text()
    assert '"code":"server_draining"' in text
    assert "[DONE]" not in text


async def test_unix_sockets_on_both_sides(server: FakeService, tmp_path: Path) -> None:
    path = tmp_path / "http.sock"
    async with run_command(server, "--http", f"unix:{path}") as (_, address):
        assert address == f"unix:{path}"
        async with (
            aiohttp.ClientSession("http://bridge", connector=aiohttp.UnixConnector(str(path))) as http,
            http.get("/health") as response,
        ):
            assert response.status == 200


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ([], "--bridge-key is missing"),
        (["--bridge-key", "two words"], "--bridge-key"),
        (["--bridge-key", "k", "--allow-image-host", "10.0.0.0/99"], "--allow-image-host"),
        (["--bridge-key", "k", "--http", "nowhere"], "--http"),
        (["--bridge-key", "k", "--http", "192.0.2.1:1"], "error while attempting to bind"),
    ],
)
def test_bad_options_are_explained(options: list[str], complaint: str) -> None:
    environ = {key: value for key, value in os.environ.items() if not key.startswith("SPYGLASS_")}
    result = subprocess.run([*COMMAND, *options], env=environ, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode != 0
    assert complaint in result.stderr
    assert "Traceback" not in result.stderr


def test_the_bridge_imports_neither_the_model_nor_its_neighbours() -> None:
    code = (
        "import sys, spyglass_bridge.cli, spyglass_bridge.server\n"
        "bad = {'torch', 'transformers', 'numpy', 'PIL', 'spyglass_server', 'spyglass_client'} & set(sys.modules)\n"
        "sys.exit(f'imported: {bad}' if bad else 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
