"""A layer's operations besides matrix products, by device: PyTorch's operations on CPUs, our own kernels on GPUs.

Both compute the same: float32 inside, the weights' dtype outside.
"""

from collections.abc import Callable
from functools import cache
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spyglass_server.runtime.fp8 import to_fp8


class Ops(Protocol):
    """The operations of one kind of device."""

    def add_rms_norm(
        self, x: Tensor, added: Tensor | None, gate: Tensor | None, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """Returns the sum of the residual stream x float32 [rows, size] and `added`, times `gate` [1] if there is one,
        and its root-mean-square norm in the dtype of weight [size]. The sum may overwrite x. Without `added`, x may
        have any dtype."""
        ...

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        """silu(gate) * up of gate_up [rows, 2 * size], gates first: [rows, size]."""
        ...

    def logits(self, head: nn.Linear, x: Tensor) -> Tensor:
        """Returns the logits of normed states x [rows, hidden], float32 [rows, vocabulary]."""
        ...

    def to_fp8(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Rounds each row of x [rows, size] to float8_e4m3fn; also returns the scales of the rows, [rows, 1]."""
        ...

    def fp8_weight_product(self, x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
        """Multiplies x [rows, in], unrounded, by a weight float8_e4m3fn [out, in] with its scales float32 [1, out]:
        [rows, out] in x's dtype."""
        ...


class TorchOps:
    """PyTorch's operations: as few of them as possible, which is what matters on CPUs."""

    def add_rms_norm(
        self, x: Tensor, added: Tensor | None, gate: Tensor | None, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        if added is not None:
            x = x + added if gate is None else x + gate * added
        exact = x.float()
        length = torch.linalg.vector_norm(exact, dim=-1, keepdim=True)
        # addcmul takes a tensor, not a number
        mean_square = torch.addcmul(length.new_full((), eps), length, length, value=1 / x.shape[-1])
        normed = exact * mean_square.rsqrt_() * weight
        return x, normed.to(weight.dtype)

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate.float()).mul_(up).to(gate.dtype)

    def logits(self, head: nn.Linear, x: Tensor) -> Tensor:
        out: Tensor = head(x)
        return out.float()

    def to_fp8(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return to_fp8(x)

    def fp8_weight_product(self, x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
        return (F.linear(x, weight.to(x.dtype)) * scale).to(x.dtype)


def _triton_ops() -> Ops:
    from spyglass_server.runtime.kernels.ops import TritonOps

    return TritonOps()


_MAKERS: dict[str, Callable[[], Ops]] = {"cuda": _triton_ops}


@cache
def ops_of(device_type: str) -> Ops:
    """Returns the operations for tensors on a kind of device."""
    return _MAKERS.get(device_type, TorchOps)()
