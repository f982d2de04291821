"""A mesh whose ranks are threads of this process: collective operations without processes."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import TypeVar

import torch
from torch import Tensor

from spyglass_server.runtime.mesh import Mesh

T = TypeVar("T")
TIMEOUT_S = 60.0


class ThreadMesh:
    """Implements `Mesh`."""

    def __init__(self, rank: int, parts: list[Tensor | None], barrier: Barrier) -> None:
        self.rank, self.size = rank, len(parts)
        self._parts, self._barrier = parts, barrier

    def sum(self, x: Tensor) -> Tensor:
        return torch.stack([part.float() for part in self._all(x)]).sum(0)

    def join(self, x: Tensor) -> Tensor:
        return torch.cat(self._all(x), dim=1)

    def share(self, x: Tensor) -> None:
        x.copy_(self._all(x)[0])

    def _all(self, x: Tensor) -> list[Tensor]:
        self._parts[self.rank] = x
        self._barrier.wait()
        found = [part for part in self._parts if part is not None]
        self._barrier.wait()  # before the next operation puts others in their places
        return found


def on_ranks(count: int, work: Callable[[Mesh], T]) -> list[T]:
    """What each rank's work returns, in order. Raises what the first of them raises."""
    parts: list[Tensor | None] = [None] * count
    barrier = Barrier(count, timeout=TIMEOUT_S)

    def run(rank: int) -> T:
        try:
            return work(ThreadMesh(rank, parts, barrier))
        except BaseException:
            barrier.abort()
            raise

    with ThreadPoolExecutor(count) as pool:
        return [one.result() for one in [pool.submit(run, rank) for rank in range(count)]]
