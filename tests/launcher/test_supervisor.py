"""The supervisor, over tiny programs."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from spyglass_launcher.supervisor import Program, Supervisor

WAIT = "import signal; signal.pause()"
STUBBORN = """
import pathlib, signal, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
pathlib.Path(sys.argv[1]).touch()
while True:
    signal.pause()
"""


async def at_once() -> bool:
    return True


async def never() -> bool:
    return False


class Recorder:
    """A supervisor whose reports and readiness are kept; it stops itself once all are ready."""

    def __init__(self, *programs: Program, stop_timeout_s: float = 30) -> None:
        self.lines: list[str] = []
        self.ready = False
        self.supervisor = Supervisor(
            programs, stop_timeout_s=stop_timeout_s, on_ready=self._on_ready, report=self.lines.append
        )

    async def _on_ready(self) -> None:
        self.ready = True
        self.supervisor.stop()


def python(name: str, code: str, *arguments: str, is_ready: Any = at_once) -> Program:
    return Program(
        name=name, command=(sys.executable, "-c", code, *arguments), environ=dict(os.environ), is_ready=is_ready
    )


async def test_programs_that_end_when_asked() -> None:
    recorder = Recorder(python("one", WAIT), python("two", WAIT))
    assert await recorder.supervisor.run() == 0
    assert recorder.ready
    assert recorder.lines == []


@pytest.mark.parametrize("status", [0, 3])
async def test_a_program_that_ends_before_all_are_ready(status: int) -> None:
    recorder = Recorder(python("one", WAIT, is_ready=never), python("two", f"raise SystemExit({status})"))
    assert await recorder.supervisor.run() == 1
    assert not recorder.ready
    assert recorder.lines == [f"the two ended unexpectedly, with status {status}; stopping the rest"]


async def test_a_program_that_ends_badly_when_asked(tmp_path: Path) -> None:
    code = """
import pathlib, signal, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(4))
pathlib.Path(sys.argv[1]).touch()
signal.pause()
"""
    mark = tmp_path / "mark"

    async def is_ready() -> bool:
        return mark.exists()

    recorder = Recorder(python("one", code, str(mark), is_ready=is_ready))
    assert await recorder.supervisor.run() == 1
    assert recorder.lines == ["the one ended with status 4"]


async def test_a_program_that_does_not_end_is_killed(tmp_path: Path) -> None:
    mark = tmp_path / "mark"

    async def is_ready() -> bool:
        return mark.exists()

    recorder = Recorder(python("one", STUBBORN, str(mark), is_ready=is_ready), stop_timeout_s=0)
    assert await recorder.supervisor.run() == 1
    assert recorder.lines == ["the one did not end in time and is killed"]


async def test_a_program_that_cannot_be_started_ends_the_rest() -> None:
    missing = Program(name="two", command=("/nowhere/program",), environ={}, is_ready=never)
    recorder = Recorder(python("one", WAIT), missing)
    assert await recorder.supervisor.run() == 1
    assert recorder.lines == ["the two ended unexpectedly, with status 1; stopping the rest"]
