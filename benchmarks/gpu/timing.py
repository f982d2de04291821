"""Times of work on the device, and what the device can do at best."""

import json
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

Work = Callable[[], object]

_SMALL_KERNELS = 500
_CACHED_BYTES = 300e6
"""More than any GPU caches."""


def synchronize(device: torch.device) -> None:
    """Waits until the device has nothing left to do."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def wall_ms(device: torch.device, work: Work, times: int = 20, warmup: int = 3) -> float:
    """The median time of some work, from idle device to idle device."""
    for _ in range(warmup):
        work()
    synchronize(device)
    found = []
    for _ in range(times):
        started = time.perf_counter()
        work()
        synchronize(device)
        found.append(1000 * (time.perf_counter() - started))
    return statistics.median(found)


def device_ms(device: torch.device, *works: Work, times: int = 20) -> float:
    """The median time of one of some works that take equally long, on the device: in a CUDA graph, so that the host
    leaves no gaps."""

    def all_works() -> None:
        for work in works:
            work()

    if device.type != "cuda":
        return wall_ms(device, all_works, times=1, warmup=0) / len(works)
    for _ in range(3):
        all_works()
    synchronize(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        all_works()
    found: list[float] = []
    for _ in range(times):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        found.append(begin.elapsed_time(end))
    return statistics.median(found) / len(works)


def num_copies(num_bytes: float) -> int:
    """How many sets of data, of so many bytes each, a kernel must go through for none to be in a GPU's cache when its
    turn comes again."""
    return max(1, min(64, math.ceil(_CACHED_BYTES / num_bytes)))


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceLimits:
    """The best rates of this device: of reading memory, by copies and by products of a matrix with 1 and 16 columns,
    and of a large product in bfloat16. And what a kernel costs that does nothing: in a graph, and launched alone."""

    copy_bytes_per_s: float
    matvec_bytes_per_s: float
    matmul16_bytes_per_s: float
    bf16_operations_per_s: float
    graphed_kernel_us: float
    launched_kernel_us: float

    @property
    def bytes_per_s(self) -> float:
        return max(self.copy_bytes_per_s, self.matvec_bytes_per_s, self.matmul16_bytes_per_s)

    def ms(self, num_bytes: float, operations: float = 0.0) -> float:
        """The least time for reading so much and computing so much, each at its best rate."""
        return 1000 * max(num_bytes / self.bytes_per_s, operations / self.bf16_operations_per_s)

    def kernel_ms(self, num_bytes: float, operations: float = 0.0, count: int = 1) -> float:
        """The least time for so many kernels in a graph that read and write so much together."""
        return max(self.ms(num_bytes, operations), count * self.graphed_kernel_us / 1000)

    @classmethod
    def kept_in(cls, folder: Path, device: torch.device) -> "DeviceLimits":
        """Measured once for all stages, and kept in a folder."""
        file = folder / "limits.json"
        if file.exists():
            return cls(**json.loads(file.read_text()))
        found = cls._measure(device)
        file.write_text(json.dumps(asdict(found), indent=1))
        return found

    @classmethod
    def _measure(cls, device: torch.device) -> "DeviceLimits":
        is_gpu = device.type == "cuda"
        size, width, side = (1 << 32, 8192, 8192) if is_gpu else (1 << 22, 512, 256)
        source = torch.randint(0, 255, (size,), dtype=torch.uint8, device=device)
        target = torch.empty_like(source)
        copy = 2 * size / device_ms(device, lambda: target.copy_(source))
        matrix = torch.randn(size // (2 * width), width, device=device, dtype=torch.bfloat16)
        vector, columns = (torch.randn(width, n, device=device, dtype=torch.bfloat16) for n in (1, 16))
        matvec = matrix.nbytes / device_ms(device, lambda: matrix @ vector)
        matmul16 = matrix.nbytes / device_ms(device, lambda: matrix @ columns)
        a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
        operations = 2 * side**3 / device_ms(device, lambda: a @ b, times=10)
        number = torch.zeros(64, device=device)

        def small_kernels() -> None:
            for _ in range(_SMALL_KERNELS):
                number.add_(1.0)

        graphed = device_ms(device, small_kernels, times=10)
        started = time.perf_counter()
        small_kernels()
        launched_s = time.perf_counter() - started
        synchronize(device)
        return cls(
            copy_bytes_per_s=1000 * copy,
            matvec_bytes_per_s=1000 * matvec,
            matmul16_bytes_per_s=1000 * matmul16,
            bf16_operations_per_s=1000 * operations,
            graphed_kernel_us=1000 * graphed / _SMALL_KERNELS,
            launched_kernel_us=1e6 * launched_s / _SMALL_KERNELS,
        )
