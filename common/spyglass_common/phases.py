"""Measures what a program spends its startup time on."""

import os
import time
from pathlib import Path


class Phases:
    """Measures consecutive phases; the first began with the process."""

    def __init__(self, first: str) -> None:
        """`first` names the phase that ends now."""
        self._began = time.monotonic() - _process_age_s()
        self._seen = self._began
        self._phases: list[tuple[str, float]] = []
        self.end(first)

    def end(self, name: str) -> None:
        """Ends the current phase as `name` and begins the next."""
        now = time.monotonic()
        self._phases.append((name, now - self._seen))
        self._seen = now

    def __str__(self) -> str:
        """Returns, for example, `4.20 s after the process began: imports 0.30, weights 3.90`."""
        parts = ", ".join(f"{name} {seconds:.2f}" for name, seconds in self._phases)
        return f"{self._seen - self._began:.2f} s after the process began: {parts}"


def _process_age_s() -> float:
    """Returns how long ago this process started, to a hundredth of a second; 0 if the system does not say."""
    try:
        # the second field, the name, may contain spaces and brackets
        started = Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]
        return time.clock_gettime(time.CLOCK_BOOTTIME) - int(started) / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError):
        return 0.0
