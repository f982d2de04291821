"""The limits of this machine for a text model: how fast it reads memory and multiplies matrices.

Owns the two measurements and the limits that follow from them. Knows nothing about engines.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from spyglass_server.runtime.linear import pack_linears

_READ_BYTES = 512 << 20
_ROWS, _SIZE = 512, 4096
_TIMES = 5


@dataclass(frozen=True, slots=True)
class Roofline:
    """Bytes read and floating-point operations per second, each the best of several tries."""

    bytes_per_s: float
    operations_per_s: float

    def tokens_per_s(self, batch: int, prompt: int, answer: int, weight_bytes: int, head_operations: int) -> float:
        """Returns the maximum answer tokens per second with `batch` requests at once, in float32.

        Prompts run at the rate of multiplication, without the head; each decode step reads all weights once or
        multiplies them with `batch` rows, whichever takes longer.
        """
        operations = weight_bytes / 4 * 2
        prefill_s = batch * prompt * (operations - head_operations) / self.operations_per_s
        step_s = max(weight_bytes / self.bytes_per_s, batch * operations / self.operations_per_s)
        return batch * answer / (prefill_s + answer * step_s)


@torch.inference_mode()
def measure() -> Roofline:
    """Measures this machine, which should be idle, for some seconds."""
    numbers = torch.ones(_READ_BYTES // 4)
    x, layer = torch.randn(_ROWS, _SIZE), nn.Sequential(nn.Linear(_SIZE, _SIZE, bias=False))
    pack_linears(layer)
    operations = 2 * _ROWS * _SIZE * _SIZE
    return Roofline(_READ_BYTES / _best_s(lambda: numbers.sum()), operations / _best_s(lambda: layer(x)))


def _best_s(work: Callable[[], object]) -> float:
    times = []
    for _ in range(_TIMES + 1):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times[1:])
