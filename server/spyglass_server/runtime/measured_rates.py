"""How fast this machine's device reads and multiplies the weights of linear layers."""

import itertools
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from spyglass_server.engine.messages import EngineInfo
from spyglass_server.runtime.linear import CONVERTERS
from spyglass_server.runtime.native.modules import adapt

_MOST_BYTES = 1 << 30
_PRODUCTS = 4
"""Products that are timed together."""


@dataclass(slots=True)
class Total:
    """How many times something was done, and how long it took."""

    count: int = 0
    seconds: float = 0.0

    def add(self, count: int, seconds: float) -> None:
        self.count += count
        self.seconds += seconds

    @property
    def per_s(self) -> float:
        return self.count / self.seconds


class RateProbe:
    """Linear layers of the model's own shape, as the engine computes them.

    They take as much memory as the model's, so that they are read from the same memory.
    """

    def __init__(self, config: Mapping[str, Any], info: EngineInfo) -> None:
        text, dtype = config["text_config"], getattr(torch, info.dtype)
        self._device = torch.device(info.device)
        shape = text["intermediate_size"], text["hidden_size"]
        self._num_weights = shape[0] * shape[1]
        self._nbytes = self._num_weights * (dtype.itemsize if info.quantization == "none" else 1)
        self._width, self._dtype = shape[1], dtype
        count = max(1, min(info.memory.weight_bytes, _MOST_BYTES) // self._nbytes)
        self._layers = nn.Sequential(*(_layer(shape, dtype, self._device, info.quantization) for _ in range(count)))
        if adapt(self._layers, self._device):
            self._dtype = torch.float32  # for weights in any dtype
        self._next = itertools.cycle(self._layers)

    def begin(self, rows: int, chunk: int) -> None:
        """Starts products of `rows` rows, to measure reading, and of a chunk of a prompt, to measure computing."""
        self._few, self._many = (
            torch.randn(count, self._width, dtype=self._dtype, device=self._device) for count in (rows, chunk)
        )
        for x in (self._few, self._many):
            self._apply(x, Total())  # warm-up does not count
        self._reading, self._computing = Total(), Total()

    def run(self, seconds: float) -> None:
        """Multiplies for `seconds`, half of the time with few rows and half with many."""
        ends = time.perf_counter() + seconds
        while time.perf_counter() < ends - seconds / 2:
            self._apply(self._few, self._reading)
        while time.perf_counter() < ends:
            self._apply(self._many, self._computing)

    def rates(self) -> dict[str, float]:
        """Returns bytes read and operations done per second."""
        return {
            "bytes_per_s": self._nbytes * self._reading.per_s,
            "operations_per_s": 2 * self._many.shape[0] * self._num_weights * self._computing.per_s,
        }

    @torch.inference_mode()
    def _apply(self, x: Tensor, total: Total) -> None:
        started = time.perf_counter()
        for _ in range(_PRODUCTS):
            next(self._next)(x)
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        total.add(_PRODUCTS, time.perf_counter() - started)


def _layer(shape: tuple[int, int], dtype: torch.dtype, device: torch.device, quantization: str) -> nn.Module:
    layer = nn.Linear(shape[1], shape[0], bias=False, dtype=dtype, device=device).requires_grad_(False)
    return CONVERTERS[quantization](layer) if quantization in CONVERTERS else layer
