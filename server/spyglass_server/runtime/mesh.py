"""The ranks that compute one model together: each holds a part of it and computes with all the others.

Collective operations happen on all ranks in the same order; a rank that leaves one out keeps the others waiting.
"""

from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor


class Mesh(Protocol):
    """What the model's layers need of the other ranks."""

    rank: int
    size: int

    def sum(self, x: Tensor) -> Tensor:
        """The sum of all ranks' tensors, float32; of a single rank the same tensor."""
        ...

    def join(self, x: Tensor) -> Tensor:
        """All ranks' tensors [rows, columns], side by side in the order of ranks."""
        ...

    def share(self, x: Tensor) -> None:
        """Gives all ranks the first one's tensor, in the place of their own."""


class Alone:
    """A mesh of one rank, where nothing is to be done. Implements `Mesh`."""

    rank, size = 0, 1

    def sum(self, x: Tensor) -> Tensor:
        return x

    def join(self, x: Tensor) -> Tensor:
        return x

    def share(self, x: Tensor) -> None:
        """There is nobody."""


ALONE = Alone()


class ProcessMesh:
    """Ranks that are processes in torch's default group, which must exist before they sum. Implements `Mesh`."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size

    def sum(self, x: Tensor) -> Tensor:
        exact = x.float() if x.dtype != torch.float32 else x.contiguous()
        dist.all_reduce(exact)
        return exact

    def join(self, x: Tensor) -> Tensor:
        x = x.contiguous()
        parts = [torch.empty_like(x) for _ in range(self.size)]
        dist.all_gather(parts, x)
        return torch.cat(parts, dim=1)

    def share(self, x: Tensor) -> None:
        dist.broadcast(x, 0)
