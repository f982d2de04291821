"""Whether all ranks live: each says so in the store every second, and the first one looks, as the others look at it.

A rank that is silent cannot be helped: whoever notices ends its own process, at once, whatever it waits for.
"""

import itertools
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable

from torch.distributed import TCPStore  # type: ignore[attr-defined]

log = logging.getLogger(__name__)

_BEAT_S = 1.0
SILENT_S = 8.0
"""A rank that has said nothing for so long is lost."""
EXIT_STATUS = 70

Lost = Callable[[str], None]


def end_process(reason: str) -> None:
    """Ends this process without waiting for anything."""
    log.critical("%s; this rank ends", reason)
    logging.shutdown()
    os._exit(EXIT_STATUS)


class Watch:
    """Says that this rank lives, and looks whether others do, in a thread of its own."""

    def __init__(self, store: TCPStore, rank: int, others: Iterable[int], on_lost: Lost = end_process) -> None:
        """`store` is this thread's alone."""
        self._store, self._rank, self._others, self._on_lost = store, rank, tuple(others), on_lost
        self._seen: dict[int, tuple[bytes, float]] = {}
        store.set(f"alive/{rank}", "0")
        threading.Thread(target=self._run, name="rank-watch", daemon=True).start()

    def _run(self) -> None:
        for beat in itertools.count(1):
            time.sleep(_BEAT_S)
            try:
                self._store.set(f"alive/{self._rank}", str(beat))
                silent = [rank for rank in self._others if self._is_silent(rank)]
            except RuntimeError as error:  # the store was in the first rank's process
                silent, reason = [0], f"the first rank's store is gone ({error})"
            else:
                reason = f"rank {silent[0]} has said nothing for {SILENT_S:.0f} s" if silent else ""
            if silent:
                self._on_lost(reason)
                return

    def _is_silent(self, rank: int) -> bool:
        """A rank that has never said anything is still starting."""
        key = f"alive/{rank}"
        if not self._store.check([key]):
            return False
        beat, now = self._store.get(key), time.monotonic()
        last, since = self._seen.get(rank, (b"", now))
        if beat != last:
            self._seen[rank] = beat, now
            return False
        return now - since > SILENT_S
