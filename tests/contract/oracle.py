"""What must hold after every case: the same answer as before, no more memory, and books that agree."""

import contextlib
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from contract.doors import Doors, Reply
from fakes import auth
from spyglass.v1 import inference_pb2
from stack import Stack, UsageRow, command_line, descendants

MAX_GROWTH_BYTES = 50_000_000
PATIENCE_S = 10.0


def ask_canary(doors: Doors) -> str:
    """The greedy answer to one question, which is always the same."""
    reply: Reply = doors.chat("What does the canary say?", max_tokens=12)
    assert reply.status == 200, reply
    return reply.content


def memory_by_process(stack: Stack) -> dict[str, int]:
    """Resident bytes of the stack's processes, by what they are: of two that are alike, the sum."""
    found = defaultdict[str, int](int)
    for pid in (stack.serve_pid, *descendants(stack.serve_pid)):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, IndexError):
            pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
            found[_role(pid)] += pages * 4096
    return dict(found)


def _role(pid: int) -> str:
    name = Path(f"/proc/{pid}/comm").read_text().strip()
    if name.startswith("spyglass"):
        return name
    words = command_line(pid)
    return next((part for part in ("spyglass_bridge", "spyglass_server", "spyglass_client") if part in words), name)


class Oracle:
    """Looks at a stack after each case, and compares with what it saw before."""

    def __init__(self, stack: Stack, doors: Doors) -> None:
        """`doors` are the oracle's own."""
        self._stack = stack
        self._doors = doors
        self._canary = ask_canary(doors)
        self._note()

    @contextlib.contextmanager
    def watching(self, doors: Doors) -> Iterator[None]:
        """Holds over what is done inside, by `doors`, which count what was admitted."""
        doors.num_admitted = 0
        yield
        before, admitted = self._num_records, doors.num_admitted + 1
        assert ask_canary(self._doors) == self._canary, "the greedy answer has changed"
        assert_memory_is_flat(self._stack, self._memory)
        self._note()
        found = self._num_records - before
        assert found == admitted, f"{found} usage records for {admitted} admitted requests, the canary's among them"

    def _note(self) -> None:
        self._num_records = len(closed_records(self._doors))
        self._memory = memory_by_process(self._stack)


def assert_memory_is_flat(stack: Stack, before: dict[str, int]) -> None:
    """What all processes hold may have grown by a little, once they have let go of what they need no longer."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        now = memory_by_process(stack)
        grown = sum(now.values()) - sum(before.values())
        if grown < MAX_GROWTH_BYTES:
            return
        if time.monotonic() > deadline:
            break
        time.sleep(0.1)  # nobody tells
    by_process = {name: f"{(now[name] - before.get(name, 0)) / 1e6:+.0f} MB" for name in now}
    raise AssertionError(f"memory grew by {grown / 1e6:.0f} MB: {by_process}")


def closed_records(doors: Doors, timeout_s: float = PATIENCE_S) -> list[UsageRow]:
    """Waits until no generation runs, by the ledger, and returns its records."""
    deadline = time.monotonic() + timeout_s
    while True:
        # answered when all that was recorded before is in the database
        usage = inference_pb2.GetUsageRequest()
        doors.stub.GetUsage(usage, metadata=auth(doors.key), timeout=PATIENCE_S, wait_for_ready=True)
        rows = doors.stack.stored_usage()
        if all(row.outcome for row in rows):
            return rows
        assert time.monotonic() < deadline, f"records are still open: {rows[-20:]}"
        time.sleep(0.02)  # nobody tells
