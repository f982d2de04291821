"""The backend for GPUs on a CPU: kernels in Triton's interpreter, copies by copying, recordings by computing again."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from spyglass_server.runtime import backend, ops
from spyglass_server.runtime.backend import Backend, Memory
from spyglass_server.runtime.cuda.backend import CudaBackend
from spyglass_server.runtime.cuda.device import Compute, Device, Numbers
from spyglass_server.runtime.kernels import attention
from spyglass_server.runtime.kernels.ops import TritonOps
from spyglass_server.runtime.model.text import TextModel


class SimulatedGpu:
    """Implements `Device`."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def upload(self, numbers: NDArray[np.int32], target: Tensor) -> None:
        target[: len(numbers)].copy_(torch.from_numpy(numbers))

    def download(self, tensor: Tensor) -> Numbers:
        found: NDArray[np.int32] = tensor.clone().numpy()
        return lambda: found

    def to_device(self, tensor: Tensor) -> Tensor:
        return tensor.clone()

    def record(self, compute: Compute) -> Compute:
        return compute

    def check(self) -> None:
        """It is never lost."""


@contextmanager
def simulated_gpu(make: Callable[[torch.device], Device] = SimulatedGpu, device_type: str = "cpu") -> Iterator[None]:
    """Runners that are made inside compute as on a GPU; they must be used inside, too."""

    def make_backend(model: TextModel, memory: Memory, device: torch.device) -> Backend:
        return CudaBackend(model, memory, make(device))

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(backend._MAKERS, device_type, make_backend)
        patch.setitem(ops._MAKERS, device_type, TritonOps)
        patch.setattr(attention, "_PROGRAMS", 1)  # the interpreter runs them one after the other
        patch.setattr(attention, "_CHUNK", 64)  # so that short contexts have several
        ops.ops_of.cache_clear()
        yield
    ops.ops_of.cache_clear()
