"""What the engine needs of a GPU beside PyTorch's operations: copies that wait for nothing, and recordings."""

from collections.abc import Callable
from itertools import cycle
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Compute = Callable[[], Tensor]
Numbers = Callable[[], NDArray[np.int32]]
"""Waits for numbers that are on their way to the host."""

_STEPS_AT_ONCE = 3
"""Steps whose copies may be under way together, one more than there ever are."""


class RecordingFailed(Exception):
    """A device computes something but cannot record it; the text is for the log."""


class Device(Protocol):
    """One GPU. Everything on it happens in the order in which it was asked for."""

    device: torch.device

    def upload(self, numbers: NDArray[np.int32], target: Tensor) -> None:
        """Copies a step's numbers to the beginning of target, int32; they may be changed right after."""

    def download(self, tensor: Tensor) -> Numbers:
        """Begins to copy a step's results, int32 [numbers], to the host."""
        ...

    def to_device(self, tensor: Tensor) -> Tensor:
        """Copies what belongs to no step."""
        ...

    def record(self, compute: Compute) -> Compute:
        """Records a computation; what is returned replays it on what its input tensors hold by then. The result holds
        until the next replay of any recording.

        Raises RecordingFailed when the computation works but cannot be recorded, and whatever the computation raises.
        """
        ...

    def check(self) -> None:
        """Raises torch.AcceleratorError when the device is lost."""


class _Staging:
    """Pinned memory on the host, and when the device is done with it."""

    def __init__(self) -> None:
        self._memory = torch.empty(0, dtype=torch.int32)
        self._is_done = torch.cuda.Event()  # type: ignore[no-untyped-call]

    def of(self, count: int) -> Tensor:
        """Memory for so many numbers, when the device no longer uses it."""
        self.wait()
        if len(self._memory) < count:
            self._memory = torch.empty(2 * count, dtype=torch.int32, pin_memory=True)
        return self._memory[:count]

    def in_use(self) -> None:
        """The device uses it in what was asked for until now."""
        self._is_done.record()

    def wait(self) -> None:
        self._is_done.synchronize()


class CudaDevice:
    """Implements `Device` by CUDA."""

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
        with torch.cuda.stream(self._aside):  # libraries set themselves up, which cannot be recorded
            for _ in range(2):
                compute()
        here = torch.cuda.current_stream()
        here.wait_stream(self._aside)
        graph = torch.cuda.CUDAGraph()
        try:  # a capture that fails leaves its stream the current one, hence the stream around it
            with torch.cuda.stream(here), torch.cuda.graph(graph, pool=self._pool, stream=self._aside):
                result = compute()  # has worked twice, so what fails now is the recording
        except RuntimeError as error:
            torch.cuda.synchronize()  # raises when it was the device that failed
            raise RecordingFailed(str(error)) from error

        def replay() -> Tensor:
            graph.replay()
            return result

        return replay

    def check(self) -> None:
        torch.cuda.synchronize()
