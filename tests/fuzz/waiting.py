"""How long anything is waited for."""

import time
from collections.abc import Callable

PATIENCE_S = 60.0
"""Far more than anything takes here; what waits so long hangs."""


def wait_until(holds: Callable[[], object], what: str) -> None:
    """Waits for something that nobody tells."""
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.002)
