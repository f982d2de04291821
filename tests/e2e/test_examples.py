"""Every file of clients/examples, run as it is against the demo model."""

import asyncio
import json
import os
import shutil
import sys
from asyncio.subprocess import PIPE
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from e2e.conftest import LLAMA
from stack import Stack

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parents[2] / "clients" / "examples"
RUNNERS = {".py": (sys.executable,), ".sh": ("sh",), ".mjs": ("node",)}
FILES = sorted(path.relative_to(EXAMPLES) for path in EXAMPLES.glob("*/*") if path.suffix in RUNNERS)
PROGRAMS = {"shell": "curl", "grpcurl": "grpcurl", "javascript": "node"}


@dataclass(frozen=True)
class Outcome:
    """How an example ended."""

    code: int | None
    out: str
    err: str


@pytest.fixture(scope="module")
def outcomes(demo: Stack) -> dict[Path, Outcome]:
    """How each example ended whose program is there; all are run at once, because answers take their time."""
    environ = demo.environ(SPYGLASS_CHAT_MODEL=LLAMA)

    async def run(command: Sequence[str | Path]) -> Outcome:
        process = await asyncio.create_subprocess_exec(*command, env=environ, stdout=PIPE, stderr=PIPE)
        out, err = await process.communicate()
        return Outcome(process.returncode, out.decode(), err.decode())

    async def run_all(files: Sequence[Path]) -> dict[Path, Outcome]:
        done = await asyncio.gather(*(run((*RUNNERS[file.suffix], EXAMPLES / file)) for file in files))
        return dict(zip(files, done, strict=True))

    def is_runnable(file: Path) -> bool:
        program = PROGRAMS.get(file.parts[0])
        return program is None or shutil.which(program, path=environ["PATH"]) is not None

    return asyncio.run(run_all([file for file in FILES if is_runnable(file)]))


def test_there_is_an_example_of_each_kind() -> None:
    assert {file.parts[0] for file in FILES} == {"python", "shell", "grpcurl", "javascript"}
    assert not [file for file in FILES if file.suffix == ".sh" and not os.access(EXAMPLES / file, os.X_OK)]


@pytest.mark.parametrize("file", FILES, ids=str)
def test_an_example_runs(outcomes: dict[Path, Outcome], file: Path) -> None:
    if file not in outcomes:
        pytest.skip(f"{PROGRAMS[file.parts[0]]} is not installed")
    outcome = outcomes[file]
    assert (outcome.code, outcome.err) == (0, "")
    assert len(outcome.out.split()) >= 3


@pytest.mark.parametrize("name", ["hello", "conversation", "image"])
def test_a_shell_example_prints_an_answer(outcomes: dict[Path, Outcome], name: str) -> None:
    outcome = outcomes.get(Path("shell", f"{name}.sh"))
    if outcome is None:
        pytest.skip("curl is not installed")
    answer: dict[str, Any] = json.loads(outcome.out)
    assert answer["choices"][0]["message"]["content"].strip()
    assert answer["usage"]["estimated_cost"] > 0
