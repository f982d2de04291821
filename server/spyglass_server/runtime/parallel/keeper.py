"""Keeps a follower for each process that torchrun starts, except the first rank: when one ends, another starts.

Imports no torch: it must be small, and cheap to start.
"""

import contextlib
import logging
import os
import pickle
import subprocess
import sys
import time
from typing import Any

from spyglass_common.logs import current_style
from spyglass_server.torchrun import Launch

_FOLLOWER = "spyglass_server.runtime.parallel.follower"
FAILED = 3
"""The exit status of a follower that could not load."""
NO_STORE = 4
"""The exit status of a follower that cannot reach torchrun's store: the first rank's machine is gone."""
_AGAIN_S = 0.5
_LOOK_S = 1.0

log = logging.getLogger(__name__)


def start_follower(loader: Any, where: Any) -> "subprocess.Popen[bytes]":
    """Starts a follower, which ends when its standard input closes.

    `loader` loads its part, `where` is its `Place`, or the `Launch` from which it finds its place.
    """
    process = subprocess.Popen([sys.executable, "-m", _FOLLOWER], stdin=subprocess.PIPE)
    assert process.stdin is not None
    pickle.dump((loader, where, current_style()), process.stdin)
    process.stdin.flush()
    return process


def keep_following(loader: Any, launch: Launch) -> int:
    """Runs followers, one after another, until the first rank is done with them or torchrun is gone.

    Returns the exit status.
    """
    parent = os.getppid()
    while True:
        process = start_follower(loader, launch)
        assert process.stdin is not None
        with process.stdin:
            status = None
            while status is None and os.getppid() == parent:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    status = process.wait(_LOOK_S)
        if status is None:  # the follower ends when its standard input closes
            return FAILED
        if status in (0, NO_STORE):
            return status
        log.warning("rank %d (process %d) has ended with status %d; it starts again", launch.rank, process.pid, status)
        time.sleep(_AGAIN_S)
