"""Names of the server's processes in `ps` and `top`."""

import contextlib
from pathlib import Path


def name_process(name: str) -> None:
    """Names this process, with at most 15 characters, where the system supports it."""
    with contextlib.suppress(OSError):
        Path("/proc/self/comm").write_text(name)
