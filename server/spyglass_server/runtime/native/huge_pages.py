"""Memory in huge pages, if the system has them: a processor that reads gigabytes per step addresses them faster."""

import math
import mmap
import threading
from collections.abc import Sequence

import torch
from torch import Tensor

_ARENA_BYTES = 64 << 20
_LARGE_PAGE = 2 << 20
_ALIGNMENT = 64


class HugePages:
    """Memory for tensors that are kept until the end, one after another."""

    def __init__(self) -> None:
        self._arena: mmap.mmap | None = None
        self._used = 0
        self._lock = threading.Lock()

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Returns an uninitialised contiguous tensor."""
        count = math.prod(shape)
        size = count * dtype.itemsize
        with self._lock:
            begin = -(-self._used // _ALIGNMENT) * _ALIGNMENT
            if self._arena is None or begin + size > len(self._arena):
                self._arena, begin = _arena(max(size, _ARENA_BYTES)), 0
            self._used = begin + size
            found = torch.frombuffer(self._arena, dtype=dtype, count=count, offset=begin)
        return found.view(*shape)


def _arena(size: int) -> mmap.mmap:
    """Allocates at least `size` bytes, which the system provides when they are first written."""
    whole_pages = -(-size // _LARGE_PAGE) * _LARGE_PAGE
    memory = mmap.mmap(-1, whole_pages, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory
