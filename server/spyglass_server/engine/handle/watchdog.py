"""Judges whether the engine process makes progress: it reports every second how long its step has taken."""

from enum import Enum

STALLED_TICKS, DEAD_TICKS = 5, 10
"""Seconds of silence after which the process counts as stalled and as lost."""
STALLED_STEP_S, DEAD_STEP_S = 8.0, 120.0
"""Minimum step duration that counts as stalled and as lost."""
STALLED_STEPS, DEAD_STEPS = 3, 20
"""How many times as long as the longest step so far a step may take, since large models are slow on CPUs."""


class Pulse(Enum):
    """The state of the process."""

    WELL = "well"
    STALLED = "stalled"
    LOST = "lost"


class Watchdog:
    """Watches one life of the process. Counts ticks, so that a suspended server does not blame the process."""

    def __init__(self) -> None:
        self._silent_ticks = 0
        self._step_s = self._longest_s = 0.0

    def hear(self, step_s: float) -> None:
        """Records how long the process's step has taken, 0 if there is none."""
        self._silent_ticks = 0
        if step_s < self._step_s:
            self._longest_s = max(self._longest_s, self._step_s)
        self._step_s = step_s

    def tick(self) -> Pulse:
        """Counts another second and returns the state of the process."""
        self._silent_ticks += 1
        if self._is_beyond(DEAD_TICKS, DEAD_STEP_S, DEAD_STEPS):
            return Pulse.LOST
        return Pulse.STALLED if self._is_beyond(STALLED_TICKS, STALLED_STEP_S, STALLED_STEPS) else Pulse.WELL

    def _is_beyond(self, ticks: int, step_s: float, steps: int) -> bool:
        return self._silent_ticks > ticks or self._step_s > max(step_s, steps * self._longest_s)
