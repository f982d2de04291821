"""F8: the server is killed at random moments. No usage record is lost or doubled, and the tokens are right."""

import subprocess
import sys
from pathlib import Path

import pytest

from stack import clean_environ

pytestmark = pytest.mark.slow

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
KILLS = 10
TIMEOUT_S = 300.0


@pytest.mark.parametrize("database", ["sqlite", "postgres"])
def test_f08_kill_9_loses_and_doubles_no_record_and_no_token(tiny_checkpoint: Path, database: str) -> None:
    command = [sys.executable, str(BENCHMARKS / "crashes.py"), "--model", str(tiny_checkpoint)]
    command += ["--kills", str(KILLS), "--database", database]
    ended = subprocess.run(command, env=clean_environ(), capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stdout.startswith(f"{KILLS} kills, ")
