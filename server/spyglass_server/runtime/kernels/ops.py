"""The layers' operations, as kernels."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spyglass_server.runtime.kernels import layers, products


class TritonOps:
    """Implements `Ops`."""

    def add_rms_norm(
        self, x: Tensor, added: Tensor | None, gate: Tensor | None, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        return x, layers.add_rms_norm(x, added, gate, weight, eps)

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        return layers.silu_mul(gate_up)

    def logits(self, head: nn.Linear, x: Tensor) -> Tensor:
        if x.is_cuda and x.dtype is not torch.float32:  # logits rounded to bfloat16 would often be equal
            return torch.mm(x, head.weight.t(), out_dtype=torch.float32)
        out: Tensor = head(x)
        return out.float()

    def to_fp8(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return layers.to_fp8(x)

    def fp8_weight_product(self, x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
        if len(x) <= products.MAX_ROWS:
            return products.fp8_weight_product(x, weight, scale)
        return (F.linear(x, weight.to(x.dtype)) * scale).to(x.dtype)
