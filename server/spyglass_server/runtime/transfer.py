"""Copies tensors from mapped files to a device's memory: several at once, in pieces, with progress reports.

Copies to GPUs go through a pinned buffer per thread, from which the device reads on its own at full speed. One thread
fills its buffer while the device reads another's. All work on the device is in the order of one stream, so freed memory
may be reused at once.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Lock

import torch
from torch import Tensor

log = logging.getLogger(__name__)

_PIECE_BYTES = 32 << 20
"""Maximum bytes copied at once, and the size of a pinned buffer."""
_THREADS = {"cuda": 4}
"""Number of copying threads; elsewhere two, so that one may wait for the disk."""
_REPORT_S = 5.0
"""Time between two progress reports."""

Copy = Callable[[Tensor, Tensor], None]
"""Copies the second of two flat tensors, of at most a piece, into the first, converting it to the first's dtype."""


class Progress:
    """Logs how much of `total` bytes is loaded, every few seconds and at the end. Several threads may use it."""

    def __init__(self, total: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._total, self._done, self._clock, self._lock = total, 0, clock, Lock()
        self._started = self._reported = clock()

    def add(self, num_bytes: int) -> None:
        """Counts loaded bytes."""
        with self._lock:
            self._done += num_bytes
            now = self._clock()
            if now - self._reported < _REPORT_S:
                return
            self._reported = now
            done, speed = self._done, self._done / (now - self._started)
        left = (self._total - done) / speed
        log.info(
            "weights: %.1f of %.1f GB loaded, %.2f GB/s, %.0f s left", done / 1e9, self._total / 1e9, speed / 1e9, left
        )

    def finish(self) -> None:
        """Logs the total time."""
        taken = max(self._clock() - self._started, 1e-9)
        log.info("weights: %.2f GB loaded in %.1f s, %.2f GB/s", self._done / 1e9, taken, self._done / 1e9 / taken)


class StagedCopy:
    """Copies through a buffer [piece bytes], converting into it so that the device need not."""

    def __init__(self, buffer: Tensor, wait: Callable[[], None]) -> None:
        """`wait` returns when the device has read the buffer."""
        self._buffer, self._wait = buffer, wait

    def __call__(self, target: Tensor, source: Tensor) -> None:
        stage = self._buffer.view(target.dtype)[: len(source)]
        stage.copy_(source)
        target.copy_(stage, non_blocking=True)
        self._wait()


def _direct(target: Tensor, source: Tensor) -> None:
    target.copy_(source)


def _pinned(device: torch.device) -> Copy:
    event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
    stream = torch.cuda.default_stream(device)  # the current stream of every thread that has set none

    def wait() -> None:
        event.record(stream)
        event.synchronize()

    return StagedCopy(torch.empty(_PIECE_BYTES, dtype=torch.uint8, pin_memory=True), wait)


_COPIES: dict[str, Callable[[torch.device], Copy]] = {"cuda": _pinned}
"""How tensors are copied to kinds of devices; to others without a buffer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A tensor to make, and the readers of its parts, which follow one another in it."""

    name: str
    shape: torch.Size
    dtype: torch.dtype
    parts: Sequence[Callable[[], Tensor]]

    @property
    def nbytes(self) -> int:
        """The size of the tensor."""
        return self.shape.numel() * self.dtype.itemsize


def transfer(jobs: Iterable[Job], device: torch.device, progress: Progress) -> Iterator[tuple[str, Tensor]]:
    """Yields the jobs' tensors on a device, in order; a few are made ahead of the next one.

    Raises what reading raises.
    """
    threads = _THREADS.get(device.type, 2)
    copies: SimpleQueue[Copy] = SimpleQueue()
    for _ in range(threads):
        copies.put(_COPIES[device.type](device) if device.type in _COPIES else _direct)

    def fill(target: Tensor, parts: Sequence[Callable[[], Tensor]]) -> None:
        copy = copies.get()
        try:
            _fill(target, parts, copy, progress)
        finally:
            copies.put(copy)

    waiting: deque[tuple[str, Tensor, Future[None]]] = deque()
    with ThreadPoolExecutor(threads, "weights") as pool:
        for job in jobs:
            target = torch.empty(job.shape, dtype=job.dtype, device=device)
            waiting.append((job.name, target, pool.submit(fill, target, job.parts)))
            del job, target
            if len(waiting) > threads:
                yield _finished(waiting)
        while waiting:
            yield _finished(waiting)


def _finished(waiting: deque[tuple[str, Tensor, Future[None]]]) -> tuple[str, Tensor]:
    name, target, filled = waiting.popleft()
    filled.result()
    return name, target


def _fill(target: Tensor, parts: Sequence[Callable[[], Tensor]], copy: Copy, progress: Progress) -> None:
    flat, begin = target.view(-1), 0
    for read in parts:
        for piece in torch.split(read().reshape(-1), _PIECE_BYTES // target.dtype.itemsize):
            copy(flat[begin : begin + len(piece)], piece)
            begin += len(piece)
            progress.add(len(piece) * target.dtype.itemsize)
