"""What a start spends its time on, as it is logged."""

import re
import subprocess
import sys

_PROGRAM = """
import time
time.sleep(0.3)
from spyglass_common.phases import Phases
phases = Phases("Python")
time.sleep(0.2)
phases.end("rest, of sleep")
phases.end("nothing")
print(phases)
"""


def test_phases_begin_with_the_process_and_add_up() -> None:
    said = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True, check=True).stdout
    found = re.fullmatch(
        r"([\d.]+) s after the process began: Python ([\d.]+), rest, of sleep ([\d.]+), nothing 0.00\n", said
    )
    assert found, said
    total, first, second = map(float, found.groups())
    assert first >= 0.3
    assert second >= 0.2
    assert abs(total - first - second) < 0.02


def test_the_engine_imports_nothing_of_the_server() -> None:
    """Its process imports the command's module again, and would take a second more."""
    heavy = "{'grpc', 'sqlalchemy', 'numpy', 'torch', 'PIL'}"
    program = f"import spyglass_server.cli, sys; print(*({heavy} & sys.modules.keys()))"
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert said == "\n"
