"""Runs several programs as one.

Starts the processes, waits until all are ready, restarts any that dies, stops them together and leaves none behind.
"""

import asyncio
import contextlib
import os
import signal
import sys
from asyncio.subprocess import Process
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

READY_INTERVAL_S = 0.1
FIRST_BACKOFF_S, LAST_BACKOFF_S = 0.2, 30.0
_STEADY_S = 60.0
"""After this uptime a program counts as started, and its backoff is reset."""
_TETHER = Path(__file__).with_name("tether.py")


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A program to run. `command[0]` is a path; `environ` is its whole environment.

    `is_ready` is polled until it returns True; it should answer within a few seconds.
    """

    name: str
    command: tuple[str, ...]
    environ: Mapping[str, str]
    is_ready: Callable[[], Awaitable[bool]]


class Supervisor:
    """Runs `programs` until `stop` is called, or until one ends before all are ready.

    `on_ready` is awaited once, when all are ready; a program that ends later is restarted. `report` gets a line
    about each problem. After SIGTERM a program has `stop_timeout_s` seconds to end; then it is killed.
    """

    def __init__(
        self,
        programs: Sequence[Program],
        *,
        stop_timeout_s: float,
        on_ready: Callable[[], Awaitable[None]],
        report: Callable[[str], None],
    ) -> None:
        self._programs = programs
        self._stop_timeout_s = stop_timeout_s
        self._on_ready = on_ready
        self._report = report
        self._stop = asyncio.Event()
        self._kill = asyncio.Event()
        self._children: list[_Child] = []

    def stop(self) -> None:
        """Asks the programs to end; a second call kills them."""
        if self._stop.is_set():
            self._kill.set()
        self._stop.set()

    async def run(self) -> int:
        """Runs until all programs have ended. Returns 0 after a clean stop, else 1."""
        try:
            for program in self._programs:
                self._children.append(await _Child.start(program))
            dead = await self._until_ready_or_death()
            if not dead:
                await asyncio.gather(*(self._keep(number) for number in range(len(self._programs))))
        finally:
            clean = await self._end()
        return 0 if clean and not dead else 1

    async def _keep(self, number: int) -> None:
        """Restarts a program whenever it dies, until the stop."""
        backoff_s, loop = FIRST_BACKOFF_S, asyncio.get_running_loop()
        stop = asyncio.create_task(self._stop.wait())
        try:
            while True:
                child, began = self._children[number], loop.time()
                await asyncio.wait([stop, child.exit], return_when=asyncio.FIRST_COMPLETED)
                if stop.done():
                    return
                self._report(f"the {child.name} ended unexpectedly, {child.how_it_ended()}; it is started again")
                if loop.time() - began > _STEADY_S:
                    backoff_s = FIRST_BACKOFF_S
                await asyncio.wait([stop], timeout=backoff_s)
                if stop.done():
                    return
                backoff_s = min(2 * backoff_s, LAST_BACKOFF_S)
                self._children[number] = await _Child.start(self._programs[number])
        finally:
            stop.cancel()

    async def _until_ready_or_death(self) -> bool:
        """Waits until all are ready, or until the stop; returns whether a child died before that."""
        ready = asyncio.create_task(self._announce_readiness())
        stop = asyncio.create_task(self._stop.wait())
        over: list[asyncio.Task[Any]] = [stop, *(child.exit for child in self._children)]
        try:
            await asyncio.wait([ready, *over], return_when=asyncio.FIRST_COMPLETED)
            if ready.done():
                ready.result()
                return False
        finally:
            ready.cancel()
            stop.cancel()
            await asyncio.wait([ready, stop])
        dead = [child for child in self._children if child.exit.done() and not self._stop.is_set()]
        for child in dead:
            self._report(f"the {child.name} ended unexpectedly, {child.how_it_ended()}; stopping the rest")
        return bool(dead)

    async def _announce_readiness(self) -> None:
        for program in self._programs:
            while not await program.is_ready():  # noqa: ASYNC110 - another process cannot set an event
                await asyncio.sleep(READY_INTERVAL_S)
        await self._on_ready()

    async def _end(self) -> bool:
        """Stops the programs that are still running, and waits for them. Returns whether they exited cleanly."""
        running = [child for child in self._children if not child.exit.done()]
        if not running:
            return True
        for child in running:
            child.send_signal(signal.SIGTERM)
        late = await self._those_not_ended_in_time(running)
        for child in late:
            self._report(f"the {child.name} did not end in time and is killed")
            child.kill_group()
        await asyncio.wait([child.exit for child in running])
        failed = [child for child in running if child not in late and child.exit.result() not in _CLEAN_EXITS]
        for child in failed:
            self._report(f"the {child.name} ended {child.how_it_ended()}")
        return not late and not failed

    async def _those_not_ended_in_time(self, children: Sequence["_Child"]) -> list["_Child"]:
        kill = asyncio.create_task(self._kill.wait())
        ended = asyncio.create_task(asyncio.wait([child.exit for child in children]))
        either: list[asyncio.Task[Any]] = [kill, ended]
        try:
            await asyncio.wait(either, timeout=self._stop_timeout_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            kill.cancel()
            ended.cancel()
            await asyncio.wait(either)
        return [child for child in children if not child.exit.done()]


_CLEAN_EXITS = (0, -signal.SIGTERM)  # the signal kills a child that has set no handler yet


class _Child:
    """A running program, in its own session: the terminal's Ctrl-C reaches only the supervisor."""

    def __init__(self, name: str, process: Process) -> None:
        self.name = name
        self._process = process
        self.exit = asyncio.create_task(process.wait(), name=f"exit of {name}")

    @classmethod
    async def start(cls, program: Program) -> "_Child":
        tether = (sys.executable, "-I", "-S", str(_TETHER), str(os.getpid()))
        process = await asyncio.create_subprocess_exec(
            *tether, *program.command, env=program.environ, start_new_session=True, stdin=asyncio.subprocess.DEVNULL
        )
        return cls(program.name, process)

    def send_signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            self._process.send_signal(number)

    def kill_group(self) -> None:
        """Kills the child and those of its own children that stayed in its group."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def how_it_ended(self) -> str:
        status = self.exit.result()
        return f"with status {status}" if status >= 0 else f"by signal {signal.Signals(-status).name}"
