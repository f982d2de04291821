"""What `ps` and `top` show of the server's processes."""

import contextlib
from pathlib import Path


def name_process(name: str) -> None:
    """Names this process, with at most 15 characters, where the system knows names."""
    with contextlib.suppress(OSError):
        Path("/proc/self/comm").write_text(name)
