"""One key's worst does not keep another from its answers: through bridge, server and engine process."""

import subprocess
import sys
from pathlib import Path

import pytest

from stack import clean_environ

pytestmark = pytest.mark.slow

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
TIMEOUT_S = 120.0
TRIES = 3
"""Others use this machine too."""


@pytest.mark.parametrize("way", ["large bodies", "odd large bodies"])
def test_large_bodies_hold_up_no_other_key(tiny_checkpoint: Path, way: str) -> None:
    command = [sys.executable, str(BENCHMARKS / "fairness.py"), "--model", str(tiny_checkpoint)]
    command += ["--ways", way, "--seconds", "4", "--settle", "1"]
    for _ in range(TRIES):
        ended = subprocess.run(
            command, env=clean_environ(), capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
        if ended.returncode == 0:
            break
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert f"| {way}: first token, longest |" in ended.stdout
