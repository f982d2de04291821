"""The ranks that compute one model together: each holds a part of it and computes with all the others.

Collective operations happen on all ranks in the same order; a rank that skips one blocks the others.
"""

from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor


class Mesh(Protocol):
    """What the model's layers need from the other ranks."""

    rank: int
    size: int

    def sum(self, x: Tensor) -> Tensor:
        """Returns the sum of all ranks' tensors, float32; for a single rank the same tensor."""
        ...

    def join(self, x: Tensor) -> Tensor:
        """Returns all ranks' tensors [rows, columns], side by side in rank order."""
        ...

    def share(self, x: Tensor) -> None:
        """Overwrites each rank's tensor with the first rank's."""


class Alone:
    """A mesh of one rank, with nothing to do. Implements `Mesh`."""

    rank, size = 0, 1

    def sum(self, x: Tensor) -> Tensor:
        return x

    def join(self, x: Tensor) -> Tensor:
        return x

    def share(self, x: Tensor) -> None:
        """There are no other ranks."""


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
