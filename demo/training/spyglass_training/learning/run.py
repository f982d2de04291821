"""A run of one phase: its folder, its state on disk, its progress.

Owns saving, resuming and the log. Knows nothing of what a phase does.
"""

import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

_SAVE_EVERY_S = 60.0


class Run:
    """Steps of a phase, counted across interruptions: after a kill at most a minute is done again."""

    def __init__(self, folder: Path, phase: str, total: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.phase, self.total = folder, phase, total
        self._state_file, self._log_file = folder / f"{phase}.pt", folder / f"{phase}.jsonl"
        self._spent_s = 0.0
        self._started = self._saved = time.monotonic()

    @property
    def spent_s(self) -> float:
        """Seconds spent in this phase, those of earlier starts too."""
        return self._spent_s + self.since_start_s

    @property
    def since_start_s(self) -> float:
        """Seconds since this start."""
        return time.monotonic() - self._started

    @property
    def is_new(self) -> bool:
        """Whether nothing was saved yet."""
        return not self._state_file.exists()

    def resume(self) -> dict[str, Any] | None:
        """The state that was saved last, or None at the very start."""
        if self.is_new:
            return None
        saved: dict[str, Any] = torch.load(self._state_file, weights_only=True)
        self._spent_s = saved["spent_s"]
        self._started = time.monotonic()
        return saved

    def is_due(self) -> bool:
        """Whether the state should be saved now."""
        return time.monotonic() - self._saved > _SAVE_EVERY_S

    def save(self, state: Mapping[str, Any]) -> None:
        """Saves the state, whole or not at all."""
        partial = self._state_file.with_suffix(".partial")
        torch.save({**state, "spent_s": self.spent_s}, partial)
        partial.replace(self._state_file)
        self._saved = time.monotonic()

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Prints a line of progress, and keeps it for the curve."""
        line = {"step": step, "minutes": round(self.spent_s / 60, 2), **figures}
        with self._log_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        shown = "  ".join(f"{name} {value:.3g}" for name, value in figures.items())
        print(f"{self.phase} {step}/{self.total}  {line['minutes']:.1f} min  {shown}", flush=True)


def read_log(folder: Path, phase: str) -> Iterator[dict[str, float]]:
    """The lines of a phase's log."""
    file = folder / f"{phase}.jsonl"
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
        yield json.loads(line)
