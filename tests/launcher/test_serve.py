"""`spyglass serve` as a process of its own, with stand-ins for the server and the bridge."""

import asyncio
import json
import os
import select
import signal
import socket
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from spyglass_client.cli import main
from spyglass_launcher.probes import grpc_is_serving, http_is_ready

HERE = Path(__file__).parent
DEADLINE_S = 30


class Serve:
    """A running `spyglass serve` that has printed its banner."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.lines: list[str] = []
        self.reports: dict[str, Any] = {}

    async def read_to_the_banners_end(self) -> None:
        while not (self.lines and self.lines[-1].startswith("  model")):
            await self.read_line()

    async def read_line(self) -> None:
        assert self.process.stdout is not None
        line = (await self.process.stdout.readline()).decode().rstrip("\n")
        assert line, "the output has ended"
        self.lines.append(line)
        if line.startswith("{"):
            self.reports.update(json.loads(line))

    @property
    def pids(self) -> list[int]:
        return [self.reports["server"], self.reports["bridge"]]

    def environ(self, program: str) -> dict[str, str]:
        [line] = [line for line in self.lines if line.startswith(f'{{"{program}"')]
        environ: dict[str, str] = json.loads(line)["environ"]
        return environ

    async def end(self) -> tuple[int | None, str]:
        """Waits for the end; returns the exit code and what was written to stderr."""
        async with asyncio.timeout(DEADLINE_S):
            _, error = await self.process.communicate()
        return self.process.returncode, error.decode()


StartServe = Callable[..., Coroutine[Any, Any, Serve]]


@pytest.fixture
async def start_serve(tmp_path: Path) -> AsyncIterator[StartServe]:
    processes = []

    async def start(*options: str, **environ: str) -> Serve:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("SPYGLASS_")}
        path = os.pathsep.join([str(HERE / "fake_programs"), str(HERE.parent), os.environ.get("PYTHONPATH", "")])
        addresses = ("--http", f"unix:{tmp_path}/http", "--grpc", f"unix:{tmp_path}/grpc")
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "spyglass_client", "serve", *addresses, *options),
            env={**inherited, "PYTHONPATH": path, **environ},
            stdout=PIPE,
            stderr=PIPE,
        )
        processes.append(process)
        serve = Serve(process)
        async with asyncio.timeout(DEADLINE_S):
            await serve.read_to_the_banners_end()
        return serve

    yield start
    for process in processes:
        if process.returncode is None:
            process.kill()
            await process.communicate()


def assert_gone(pid: int) -> None:
    """Waits until the process has ended; it is nobody's child here, so it leaves no status."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        ended, _, _ = select.select([handle], [], [], DEADLINE_S)
        if not ended:
            signal.pidfd_send_signal(handle, signal.SIGKILL)
        assert ended, f"process {pid} still runs"
    finally:
        os.close(handle)


async def test_both_get_the_settings_and_one_key_and_a_banner_tells_where(
    start_serve: StartServe, tmp_path: Path
) -> None:
    serve = await start_serve("--max-batch", "7", "--served-model-name", "a", "--served-model-name", "b")
    server, bridge = serve.environ("server"), serve.environ("bridge")
    assert (server["SPYGLASS_MAX_BATCH"], server["SPYGLASS_SERVED_MODEL_NAME"]) == ("7", "a,b")
    assert bridge["SPYGLASS_HTTP"] == f"unix:{tmp_path}/http"
    key = server["SPYGLASS_BRIDGE_KEY"]
    assert len(key) >= 32
    assert bridge["SPYGLASS_BRIDGE_KEY"] == key
    assert serve.lines[-4:] == [
        "Spyglass is ready.",
        f"  HTTP   unix:{tmp_path}/http",
        f"  gRPC   unix:{tmp_path}/grpc",
        "  model  spyglass-demo",
    ]
    assert not any(key in line for line in serve.lines[-4:])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
async def test_a_signal_ends_both_cleanly(start_serve: StartServe, number: signal.Signals) -> None:
    serve = await start_serve()
    serve.process.send_signal(number)
    assert await serve.end() == (0, "")
    for pid in serve.pids:
        assert_gone(pid)


@pytest.mark.parametrize(("dead", "other"), [("server", "bridge"), ("bridge", "server")])
async def test_one_that_dies_is_started_again(start_serve: StartServe, dead: str, other: str) -> None:
    serve = await start_serve()
    first, kept = serve.reports[dead], serve.reports[other]
    os.kill(first, signal.SIGKILL)
    async with asyncio.timeout(DEADLINE_S):
        while serve.reports[dead] == first:
            await serve.read_line()
    os.kill(kept, 0)
    serve.process.send_signal(signal.SIGTERM)
    status, error = await serve.end()
    assert (status, error) == (
        0, f"spyglass: the {dead} ended unexpectedly, by signal SIGKILL; it is started again\n"
    )  # fmt: skip
    assert_gone(kept)
    assert_gone(serve.reports[dead])


async def test_a_second_signal_kills(start_serve: StartServe) -> None:
    serve = await start_serve(FAKE_STUBBORN="1")
    serve.process.send_signal(signal.SIGINT)
    assert_gone(serve.reports["bridge"])
    serve.process.send_signal(signal.SIGINT)
    status, error = await serve.end()
    assert status == 1
    assert "spyglass: the server did not end in time and is killed\n" in error
    assert_gone(serve.reports["server"])


async def test_nothing_outlives_a_supervisor_that_is_killed(start_serve: StartServe) -> None:
    serve = await start_serve(FAKE_STUBBORN="1")
    serve.process.kill()
    for pid in serve.pids:
        assert_gone(pid)


async def test_a_terminals_ctrl_c_reaches_only_the_supervisor(start_serve: StartServe) -> None:
    serve = await start_serve()
    sessions = {os.getsid(pid) for pid in serve.pids}
    assert sessions == set(serve.pids)


@pytest.mark.parametrize("option", ["--http", "--grpc"])
def test_a_port_that_nobody_knows_beforehand_is_refused(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["serve", option, "127.0.0.1:0"])
    assert f"{option}: serve needs a port" in capsys.readouterr().err


def test_torchrun_cannot_start_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert main(["serve"]) == 1
    assert "serve cannot be started by torchrun" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--http", "--grpc"])
def test_an_address_where_another_program_listens_is_refused(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, socket.create_server(("127.0.0.1", 0)) as other:
        free = other.getsockname()[1]
        other.close()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        options = {"--http": f"127.0.0.1:{free}", "--grpc": f"127.0.0.1:{free}"} | {option: address}
        with pytest.raises(SystemExit) as end:
            main(["serve", *(word for pair in options.items() for word in pair)])
    assert end.value.code == 2
    assert f"{option}: another program listens at {address}" in capsys.readouterr().err


@pytest.mark.parametrize(("host", "warns"), [("0.0.0.0", True), ("localhost", False)])
def test_an_address_that_others_reach_without_tls_is_warned_of(
    host: str, *, warns: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:  # so that nothing is started
        address = f"{host}:{taken.getsockname()[1]}"
        with pytest.raises(SystemExit):
            main(["serve", "--http", address, "--grpc", address])
    error = capsys.readouterr().err
    for option in ("http", "grpc"):
        warning = f"spyglass: warning: --{option} {address} can be reached from other machines without TLS"
        assert (warning in error) is warns


async def test_probes_say_no_where_nobody_listens(tmp_path: Path) -> None:
    assert not await grpc_is_serving("127.0.0.1:1")
    assert not await http_is_ready("127.0.0.1:1")
    assert not await http_is_ready(f"unix:{tmp_path}/none")


@pytest.mark.parametrize(
    ("answer", "ready"),
    [(b"HTTP/1.1 200 OK\r\n\r\n", True), (b"HTTP/1.1 503 Service Unavailable\r\n\r\n", False), (b"", False)],
)
async def test_only_the_status_200_means_ready(answer: bytes, *, ready: bool) -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(handle, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        assert await http_is_ready(f"0.0.0.0:{port}") is ready
