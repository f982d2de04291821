"""Measures how much memory the product takes at rest, process by process.

    python benchmarks/memory.py

Starts `spyglass serve`, with the demo model unless another is given, and adds up each process's proportional share
(Pss of /proc/PID/smaps_rollup, so Linux only): memory that several processes share counts once.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from processes import Spyglass, checkpoint_or_demo, command_of, family, name_of

_OVERHEAD_MB = 800
"""What Python, torch and the rest may take in addition to the weights."""


def share_mb(pid: int) -> float:
    """Returns the proportional share of a process in MB."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise RuntimeError(f"process {pid} has no Pss")


def part_of(pid: int) -> str:
    """Identifies a process of `spyglass serve` by its name or its command line."""
    if (name := name_of(pid)).startswith("spyglass-"):
        return name.removeprefix("spyglass-")
    words = {"resource_tracker": "tracker", "spyglass_bridge": "bridge", "spyglass_server": "server"}
    return next((name for word, name in words.items() if word in command_of(pid)), "spyglass serve")


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = result.add_argument
    add("--model", type=Path, help="a checkpoint (default: the demo model)")
    add("--settle", type=float, default=3.0, help="seconds before the measurement (default: %(default)s)")
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the script."""
    given = parser().parse_args(arguments)
    folder = checkpoint_or_demo(given.model)
    weights_mb = sum(file.stat().st_size for file in folder.glob("*.safetensors")) / 1e6
    with Spyglass.started(folder) as spyglass:
        time.sleep(given.settle)
        shares = [(part_of(pid), share_mb(pid)) for pid in family(spyglass.pid)]
    print("| process | MB |\n| --- | ---: |")
    for name, share in shares:
        print(f"| {name} | {share:.0f} |")
    served = sum(share for name, share in shares if name in ("server", "engine", "images", "tracker"))
    print(f"\nserver and engine {served:.0f} MB; weights {weights_mb:.0f} MB;", end=" ")
    print(f"1.1 times the weights and {_OVERHEAD_MB} MB are {1.1 * weights_mb + _OVERHEAD_MB:.0f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
