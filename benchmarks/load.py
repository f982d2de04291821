"""Closed loops of requests, and their results.

Owns the clocks. Knows nothing about the server or the protocol.
"""

import asyncio
import itertools
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

Q = TypeVar("Q")


@dataclass(slots=True, kw_only=True)
class Sample:
    """One answer. Times are seconds on the client's clock; `pieces` are the arrival times of its parts.

    `token_ids` are its tokens, if it was computed in process.
    """

    started: float
    pieces: list[float] = field(default_factory=list)
    prompt_tokens: int = 0
    tokens: int = 0
    token_ids: list[int] = field(default_factory=list)

    @property
    def first_token_s(self) -> float:
        return self.pieces[0] - self.started

    @property
    def gaps_s(self) -> list[float]:
        """The times between one part and the next."""
        return [b - a for a, b in itertools.pairwise(self.pieces)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """Results of one load: total answer tokens per second, and percentiles in milliseconds."""

    tokens_per_s: float
    first_token_ms: float
    first_token_p99_ms: float
    gap_ms: float
    gap_p99_ms: float
    prompt_tokens: float
    answer_tokens: float


def summarize(samples: Sequence[Sample], duration_s: float) -> Summary:
    firsts = [1000 * sample.first_token_s for sample in samples]
    gaps = [1000 * gap for sample in samples for gap in sample.gaps_s] or [0.0]
    return Summary(
        tokens_per_s=sum(sample.tokens for sample in samples) / duration_s,
        first_token_ms=statistics.median(firsts),
        first_token_p99_ms=percentile(firsts, 0.99),
        gap_ms=statistics.median(gaps),
        gap_p99_ms=percentile(gaps, 0.99),
        prompt_tokens=statistics.mean(sample.prompt_tokens for sample in samples),
        answer_tokens=statistics.mean(sample.tokens for sample in samples),
    )


def percentile(values: Sequence[float], share: float) -> float:
    """Returns the value below which this share of the values lies."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


async def closed_loop(ask: Callable[[Q], Awaitable[Sample]], questions: Sequence[Q], concurrency: int) -> Summary:
    """Asks all, `concurrency` at once: each answer is followed by the next question."""
    waiting = iter(questions)
    samples: list[Sample] = []

    async def worker() -> None:
        samples.extend([await ask(question) for question in waiting])

    started = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(concurrency):
            group.create_task(worker())
    return summarize(samples, time.perf_counter() - started)
