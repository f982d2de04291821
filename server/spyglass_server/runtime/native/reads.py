"""What tokens attend to, in the form that kernels.c takes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from spyglass_server.runtime.native import operations as c

_CHUNK = 512
"""As in kernels.c."""
_MAX_PANELS = 16
"""Maximum panels of queries that are computed together: more do not fit the processor's cache."""
_MAX_WIDTH = 2048
"""Maximum dimensions of all these panels together: they are on the stack."""
_TASKS_PER_THREAD = 3
"""Attention tasks per thread, so that no thread waits long for another."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunLengths:
    """How many tokens of a prompt our own kernels should compute together, in registers with `lanes` queries."""

    lanes: int
    heads: int
    kv_heads: int
    head_dim: int

    def of(self, count: int) -> int:
        """Returns the length for `count` tokens that fills the lanes and leaves work for all threads."""
        shared = self.heads // self.kv_heads
        panels = -(-count * shared // self.lanes)
        runs = -(-_TASKS_PER_THREAD * torch.get_num_threads() // self.kv_heads)
        most = min(_MAX_PANELS, max(1, _MAX_WIDTH // self.head_dim))
        return max(1, min(most, -(-panels // runs)) * self.lanes // shared)

    def leave_idle(self, count: int) -> bool:
        """Whether `count` tokens are so few that threads would be idle: they must share what each token reads."""
        return -(-count // self.of(count)) * self.kv_heads < torch.get_num_threads()


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenReads:
    """The slots that each token attends to: `counts` of them, int64 [tokens], starting at `begins` in `slots`, int64.

    The tokens of a run start reading at the same place; `runs`, int64 [runs + 1], are where each run begins. Tokens in
    the first `num_exact` runs are each computed as if alone, those in any other run together.
    """

    slots: Tensor
    begins: Tensor
    counts: Tensor
    runs: Tensor
    num_exact: int


class Reads:
    """The same in memory, where it may change between runs of a program."""

    def __init__(self) -> None:
        self.raw = c.Reads()
        self._held: tuple[Tensor, ...] = ()
        self._num_alone = 0

    def set(self, reads: TokenReads) -> Self:
        """Sets what tokens read."""
        self._held = (reads.slots, reads.begins, reads.counts, reads.runs)
        self.raw.slots, self.raw.begins, self.raw.counts, self.raw.runs = (one.data_ptr() for one in self._held)
        self.raw.num_exact, self.raw.num_runs = reads.num_exact, len(reads.runs) - 1
        lasts = reads.runs[1 : reads.num_exact + 1]
        self._num_alone = int(lasts[-1]) if reads.num_exact else 0
        self.raw.longest = int(reads.counts[: self._num_alone].max()) if self._num_alone else 0
        self.raw.num_chunks = int((reads.counts[lasts - 1] + _CHUNK - 1).div(_CHUNK, rounding_mode="floor").sum())
        return self

    def make_room(self, numbers_per_chunk: int, take: Callable[[int], Tensor] = torch.empty) -> None:
        """Makes room, from `take`, for the partial results of long contexts before they are combined."""
        if self.raw.longest > _CHUNK:
            parts = take(self._num_alone * -(-self.raw.longest // _CHUNK) * numbers_per_chunk)
            self._held = (*self._held[:4], parts)
            self.raw.parts = parts.data_ptr()

    def forget(self) -> None:
        """Releases the tensors, until others are set."""
        self._held = ()
