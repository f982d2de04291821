"""When what happened to a generation: the one source of its timings, its metrics, its spans and its line in the log."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

_PHASES = (
    ("admission", "admitted_s"),
    ("upload", "received_s"),
    ("prepare", "prepared_s"),
    ("queue", "scheduled_s"),
    ("encode", "encoded_s"),
    ("prefill", "first_token_s"),
    ("decode", "ended_s"),
)
"""In order, and the moment at which each ends."""


class Phase(NamedTuple):
    """A part of a generation's life, on the clock of its `Timeline`."""

    name: str
    start_s: float
    end_s: float

    @property
    def duration_s(self) -> float:
        return self.end_s - self.start_s


@dataclass(slots=True, kw_only=True)
class Timeline:
    """Moments on the machine's monotonic clock, which the engine process shares; None what has not happened.

    Its phases are admission; the upload of announced images; the preparation of the prompt; the queue in front of the
    engine; there the encoding of images that no cache has, and the prefill; and the decoding up to the end.
    """

    began_s: float = field(default_factory=time.monotonic)
    began_unix_s: float = field(default_factory=time.time)
    """The same moment in seconds since 1970."""
    admitted_s: float | None = None
    received_s: float | None = None
    prepared_s: float | None = None
    scheduled_s: float | None = None
    encoded_s: float | None = None
    first_token_s: float | None = None
    last_token_s: float | None = None
    ended_s: float | None = None

    def unix_s(self, moment_s: float) -> float:
        """A moment in seconds since 1970."""
        return self.began_unix_s + moment_s - self.began_s

    def phases(self) -> Iterator[Phase]:
        """The phases that it went through, in order; the last one is that in which it ended, or stands now."""
        now_s = time.monotonic() if self.ended_s is None else self.ended_s
        start_s = self.began_s
        for name, moment in _PHASES:
            at_s: float | None = getattr(self, moment)
            if at_s is None and name == "encode":
                continue
            end_s = max(start_s, now_s if at_s is None else at_s)
            yield Phase(name, start_s, end_s)
            if at_s is None:
                return
            start_s = end_s

    @property
    def time_to_first_token_s(self) -> float | None:
        return None if self.first_token_s is None else self.first_token_s - self.began_s

    def tokens_per_second(self, num_tokens: int) -> float | None:
        """How fast an answer of so many tokens came after its first one; None where that cannot be said."""
        if self.first_token_s is None or self.last_token_s is None or self.last_token_s <= self.first_token_s:
            return None
        return (num_tokens - 1) / (self.last_token_s - self.first_token_s)
