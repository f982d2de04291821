"""When each phase of a generation ended: the one source of its timings, metrics, spans and log line."""

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
"""The phases in order, with the moment at which each ends."""


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
    """Moments on the machine's monotonic clock, which the engine process shares; None if not reached.

    The phases are admission; the upload of announced images; the preparation of the prompt; the engine's queue; in the
    engine, the encoding of images that no cache has, and the prefill; and the decoding up to the end.
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
        """Converts a moment to seconds since 1970."""
        return self.began_unix_s + moment_s - self.began_s

    def phases(self) -> Iterator[Phase]:
        """Yields the phases reached, in order; the last one is the current one, or the one in which it ended."""
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
        """The speed of an answer of `num_tokens` after its first token; None if it cannot be computed."""
        if self.first_token_s is None or self.last_token_s is None or self.last_token_s <= self.first_token_s:
            return None
        return (num_tokens - 1) / (self.last_token_s - self.first_token_s)
