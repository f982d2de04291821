"""Memory that is free goes back to the system."""

import ctypes
import subprocess
import sys

import pytest

HOLES = """
from pathlib import Path
from spyglass_common.memory import return_free_memory

def resident_mb():
    [line] = [one for one in Path("/proc/self/status").read_text().splitlines() if one.startswith("VmRSS:")]
    return int(line.split()[1]) / 1024

blocks = [bytearray(64 << 10) for _ in range(3200)]
del blocks[:-1]  # the last one lies above the others
before = resident_mb()
return_free_memory()
print(before - resident_mb())
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="this is of GNU's C library")
def test_what_lies_between_used_blocks_goes_back() -> None:
    environ = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 30)}
    done = subprocess.run([sys.executable, "-c", HOLES], env=environ, capture_output=True, text=True, check=True)
    assert float(done.stdout) > 150
