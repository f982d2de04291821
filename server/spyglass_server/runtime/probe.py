"""How much memory a device has and how much is in use, queried behind an interface that tests replace."""

import gc
import os
from collections.abc import Callable
from typing import Protocol

import torch


class MemoryProbe(Protocol):
    """The memory of one device, in bytes."""

    @property
    def name(self) -> str:
        """The device's name, for people."""
        ...

    @property
    def total(self) -> int:
        """The total memory."""
        ...

    def held(self) -> int:
        """Returns the memory held outside of torch's tensors: by other processes, and by the driver for this one."""
        ...

    def allocated(self) -> int:
        """Returns the memory of this process's tensors."""
        ...

    def peak_of(self, work: Callable[[], None]) -> int:
        """Runs `work`; returns how much more memory than before was allocated at its peak."""
        ...

    def release(self) -> None:
        """Returns the memory of freed tensors to the device."""


class CudaProbe:
    """The memory of a CUDA device."""

    def __init__(self, device: torch.device) -> None:
        torch.cuda.init()  # type: ignore[no-untyped-call]
        self._device = device
        properties = torch.cuda.get_device_properties(device)
        self.name: str = properties.name
        self.total: int = properties.total_memory

    def held(self) -> int:
        free, total = torch.cuda.mem_get_info(self._device)
        return max(0, total - free - torch.cuda.memory_reserved(self._device))

    def allocated(self) -> int:
        return torch.cuda.memory_allocated(self._device)

    def peak_of(self, work: Callable[[], None]) -> int:
        torch.cuda.synchronize(self._device)
        before = self.allocated()
        torch.cuda.reset_peak_memory_stats(self._device)
        work()
        torch.cuda.synchronize(self._device)
        return torch.cuda.max_memory_allocated(self._device) - before

    def release(self) -> None:
        gc.collect()  # runners are part of cycles
        torch.cuda.empty_cache()


PROBES: dict[str, Callable[[torch.device], MemoryProbe]] = {"cuda": CudaProbe}
"""For the kinds of devices whose memory is divided; on others, cache sizes do not depend on it."""


def host_bytes() -> int:
    """The memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
