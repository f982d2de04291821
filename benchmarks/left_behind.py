"""What a service holds between its answers: after a load no more than before.

Counted from /proc and /dev/shm, so on Linux only, and from what the server reports (benchmarks/scripted.py).
"""

import asyncio
import time
from pathlib import Path

from bars import Bar
from memory import share_mb
from service import Service

_SPARE_THREADS = 4
"""Additional threads that are not a leak: thread pools grow with use, and some shrink later."""
_PATIENCE_S = 15.0
_PAUSE_S = 0.2


def holdings(service: Service) -> dict[str, int]:
    """Counts everything that is held, by name."""
    held = service.held()
    for name, pid in service.processes().items():
        held[f"open files of the {name}"] = len([*Path(f"/proc/{pid}/fd").iterdir()])
        held[f"threads of the {name}"] = len([*Path(f"/proc/{pid}/task").iterdir()])
    return held


def shared_blocks() -> set[str]:
    """Lists blocks of shared memory on this machine."""
    return {path.name for path in Path("/dev/shm").glob("psm_*")}


def shares_mb(service: Service) -> dict[str, float]:
    """Returns the memory of each process in MB, by name."""
    return {name: share_mb(pid) for name, pid in service.processes().items()}


async def bars_left_behind(service: Service, before: dict[str, int], blocks: set[str]) -> list[Bar]:
    """Waits a moment for a load to be released; reports what remains. `before` and `blocks` were held before it."""
    limits = {name: count + (_SPARE_THREADS if "threads" in name else 0) for name, count in before.items()}
    suspects = shared_blocks() - blocks  # other programs also have some, which come and go
    until = time.monotonic() + _PATIENCE_S
    while True:
        now = await asyncio.to_thread(holdings, service)
        suspects &= shared_blocks()
        too_many = [name for name, limit in limits.items() if now[name] > limit]
        if time.monotonic() > until or not (too_many or suspects):
            break
        await asyncio.sleep(_PAUSE_S)
    bars = [Bar.at_most(f"{name} afterwards", now[name], limit) for name, limit in limits.items()]
    return [*bars, Bar.none("blocks of shared memory left", sorted(suspects))]
