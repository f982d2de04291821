"""What the engine needs from a GPU besides PyTorch's operations: copies that never block, and recordings."""

from collections.abc import Callable
from itertools import cycle
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Compute = Callable[[], Tensor]
Numbers = Callable[[], NDArray[np.int32]]
"""Waits for numbers that are being copied to the host."""

_STEPS_AT_ONCE = 3
"""Steps whose copies may be in flight together, one more than ever are."""


class RecordingFailed(Exception):
    """A device can run a computation but not record it; the text is for the log."""


class Device(Protocol):
    """One GPU. All work on it runs in the order of the calls."""

    device: torch.device

    def upload(self, numbers: NDArray[np.int32], target: Tensor) -> None:
        """Copies a step's numbers to the beginning of target, int32; the caller may change them right after."""

    def download(self, tensor: Tensor) -> Numbers:
        """Starts copying a step's results, int32 [numbers], to the host."""
        ...

    def to_device(self, tensor: Tensor) -> Tensor:
        """Copies data that belongs to no step."""
        ...

    def record(self, compute: Compute) -> Compute:
        """Records a computation; the returned function replays it on the current contents of its input tensors. The
        result is valid until the next replay of any recording.

        Raises RecordingFailed if the computation works but cannot be recorded, and whatever the computation raises.
        """
        ...

    def check(self) -> None:
        """Raises torch.AcceleratorError if the device is lost."""


class _Staging:
    """Pinned host memory, with an event for when the device is done with it."""

    def __init__(self) -> None:
        self._memory = torch.empty(0, dtype=torch.int32)
        self._is_done = torch.cuda.Event()  # type: ignore[no-untyped-call]

    def of(self, count: int) -> Tensor:
        """Returns memory for `count` numbers, once the device no longer uses it."""
        self.wait()
        if len(self._memory) < count:
            self._memory = torch.empty(2 * count, dtype=torch.int32, pin_memory=True)
        return self._memory[:count]

    def in_use(self) -> None:
        """Marks the memory as used by all work queued so far."""
        self._is_done.record()

    def wait(self) -> None:
        self._is_done.synchronize()


class CudaDevice:
    """Implements `Device` with CUDA."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._up, self._down = (cycle([_Staging() for _ in range(_STEPS_AT_ONCE)]) for _ in range(2))
        self._pool = torch.cuda.graph_pool_handle()
        self._aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]

    def upload(self, numbers: NDArray[np.int32], target: Tensor) -> None:
        staging = next(self._up)
        pinned = staging.of(len(numbers))
        pinned.numpy()[:] = numbers
        target[: len(numbers)].copy_(pinned, non_blocking=True)
        staging.in_use()

    def download(self, tensor: Tensor) -> Numbers:
        staging = next(self._down)
        pinned = staging.of(len(tensor))
        pinned.copy_(tensor, non_blocking=True)
        staging.in_use()

        def numbers() -> NDArray[np.int32]:
            staging.wait()
            found: NDArray[np.int32] = pinned.numpy().copy()
            return found

        return numbers

    def to_device(self, tensor: Tensor) -> Tensor:
        return tensor.pin_memory().to(self.device, non_blocking=True)

    def record(self, compute: Compute) -> Compute:
        self._aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._aside):  # libraries initialise, which cannot be recorded
            for _ in range(2):
                compute()
        here = torch.cuda.current_stream()
        here.wait_stream(self._aside)
        graph = torch.cuda.CUDAGraph()
        try:  # a failed capture leaves its stream current, hence the outer stream context
            with torch.cuda.stream(here), torch.cuda.graph(graph, pool=self._pool, stream=self._aside):
                result = compute()  # it has worked twice, so only the recording can fail now
        except RuntimeError as error:
            torch.cuda.synchronize()  # raises if the device itself failed
            raise RecordingFailed(str(error)) from error

        def replay() -> Tensor:
            graph.replay()
            return result

        return replay

    def check(self) -> None:
        torch.cuda.synchronize()
