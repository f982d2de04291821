"""What a usage ledger is: one record for each generation.

A record is opened before anything of an answer is sent and closed once, with the tokens and the cost. It names the
server that writes it, so that servers that share a database close only their own: a record that a crash left open is
closed as LOST when its server starts again.
"""

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One generation. Times are seconds since 1970; `finished_s` None and `outcome` empty while it runs."""

    request_id: str
    model: str
    started_s: float
    finished_s: float | None
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    cost_usd: float
    outcome: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Total:
    """Sums over all of a key's generations."""

    generations: int
    prompt_tokens: int
    completion_tokens: int
    cost_usd: float


class Ledger(Protocol):
    """Where usage is recorded."""

    async def open(self, key_id: str, request_id: str, model: str, prompt_tokens: int, cached_tokens: int) -> int:
        """Opens a record and returns its id."""
        ...

    async def close(self, record_id: int, completion_tokens: int, cost_usd: float, outcome: str) -> None:
        """Closes a record, with the outcome OK or the name of a status code; without effect on a closed one."""

    async def total(self, key_id: str) -> Total:
        """What a key has used so far."""
        ...

    async def latest(self, key_id: str, limit: int) -> list[Record]:
        """A key's latest generations, newest first."""
        ...

    async def aclose(self) -> None:
        """Closes the ledger once everything is written."""
