"""A server with a scripted model and a bridge in front of it, as processes that can be killed and restarted.

Knows nothing about the requests or the measurements.
"""

import asyncio
import contextlib
import json
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import aiohttp

from processes import MODEL, family, free_ports, name_of, until_ready

_PROGRAM = Path(__file__).with_name("scripted.py")
_READY_S = 0.02


class Service:
    """Both processes, on free ports of this machine."""

    def __init__(
        self, model: Path, data_dir: Path, *, step_ms: float, keys: Sequence[str], options: Sequence[object],
        bridge_options: Sequence[object], verbose: bool,
    ) -> None:  # fmt: skip
        self.address, self.grpc = (f"127.0.0.1:{port}" for port in free_ports(2))
        self.http, self.data_dir = f"http://{self.address}", data_dir
        bridge_key = secrets.token_hex(8)
        self._serve = [sys.executable, str(_PROGRAM), "--step-ms", str(step_ms), "--data-dir", str(data_dir)]
        self._serve += ["--grpc", self.grpc, "--bridge-key", bridge_key, "--model", str(model)]
        self._serve += ["--served-model-name", MODEL, *map(str, options), "--api-key", *keys]
        self._front = [str(Path(sys.executable).parent / "spyglass-bridge"), "--http", self.address]
        self._front += ["--grpc", self.grpc, "--bridge-key", bridge_key, *map(str, bridge_options)]
        self._errors = None if verbose else subprocess.DEVNULL
        self.server: subprocess.Popen[str]
        self.bridge: subprocess.Popen[bytes]

    @classmethod
    @contextlib.contextmanager
    def started(
        cls,
        model: Path,
        data_dir: Path,
        *,
        step_ms: float = 10.0,
        keys: Sequence[str],
        options: Sequence[object] = (),
        bridge_options: Sequence[object] = (),
        verbose: bool = False,
    ) -> Iterator["Service"]:
        """Runs both until the end of the context; the model is served under `MODEL`."""
        one = cls(
            model, data_dir, step_ms=step_ms, keys=keys, options=options, bridge_options=bridge_options, verbose=verbose
        )
        with contextlib.ExitStack() as stack:
            one.start_server()
            stack.callback(one.stop_server)
            one.bridge = stack.enter_context(
                subprocess.Popen(one._front, stdout=subprocess.DEVNULL, stderr=one._errors)
            )
            stack.callback(one.bridge.terminate)
            asyncio.run(until_ready(f"{one.http}/ready", one.bridge, one.server))
            yield one

    def start_server(self) -> None:
        """Starts the server, which may not be ready yet when this returns."""
        self.server = subprocess.Popen(
            self._serve, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True
        )

    def kill_server(self) -> None:
        """Ends the server at once, as a crash would."""
        self.server.kill()
        self._bury()

    def stop_server(self) -> None:
        """Stops the server as an operator would; no effect if it has ended."""
        if self.server.poll() is None:
            assert self.server.stdin is not None
            self.server.stdin.close()
        self._bury()

    async def until_served_again(self) -> float:
        """After `start_server`, waits until the bridge reaches the server; returns the seconds since it was ready."""
        assert self.server.stdout is not None
        if await asyncio.to_thread(self.server.stdout.readline) != "ready\n":
            sys.exit("the server did not start again")
        began = time.monotonic()
        async with aiohttp.ClientSession() as session:
            while not await _answers(session, f"{self.http}/ready"):  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(_READY_S)
        return time.monotonic() - began

    def held(self) -> dict[str, int]:
        """Returns what server and engine hold at this moment, by name."""
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        self.server.stdin.write("\n")
        self.server.stdin.flush()
        while (line := self.server.stdout.readline()) == "ready\n":
            pass
        found: dict[str, int] = json.loads(line)
        return found

    def processes(self) -> dict[str, int]:
        """Returns the process ids of server, engine and bridge."""
        engine = next(pid for pid in family(self.server.pid) if name_of(pid) == "spyglass-engine")
        return {"server": self.server.pid, "engine": engine, "bridge": self.bridge.pid}

    def _bury(self) -> None:
        self.server.wait()
        for pipe in (self.server.stdin, self.server.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


async def _answers(session: aiohttp.ClientSession, url: str) -> bool:
    with contextlib.suppress(aiohttp.ClientError):
        async with session.get(url) as answer:
            return answer.status == 200
    return False
