"""Linear layers in forms other than torch's: packed for CPUs, or quantized to 8 bits, integer or fp8.

Each replaces a plain layer, whose weight is freed.

Packing uses the two operations that torch's own compiler uses for frozen weights. A layer packed for a few rows takes
half the time of the plain layer for these, and no more for many.
"""

import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spyglass_server.runtime.fp8 import to_fp8, widened
from spyglass_server.runtime.ops import ops_of

_ROWS = 16
"""Number of rows that the layout is chosen for. Measured at 1 to 512: no other is faster anywhere."""
_MIN_ROWS = 4 if torch.backends.cpu.get_cpu_capability() == "AVX512" else 1
"""Minimum rows to compute. With AVX-512 four take a fifth less time than one: weights stream faster there."""
_PART = 128
"""Factor of the upper of two 8-bit parts."""
_TINY = 1e-30
"""Replaces a largest value of zero."""
_FP8_CAPABILITY = (8, 9)
"""The first compute capability of CUDA with fp8 units."""
_FP8_MULTIPLE = 16
"""These units multiply matrices whose rows have a multiple of this many values."""


class PackedLinear(nn.Module):
    """A linear layer whose weight only oneDNN can read."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self._weight: Tensor = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), _ROWS)
        self._bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """Takes x [rows, in] and returns [rows, out]."""
        rows = len(x)
        if rows < _MIN_ROWS:
            x = F.pad(x, (0, 0, 0, _MIN_ROWS - rows))
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, "none", [], "")
        return out[:rows]


class Int8Linear(nn.Module):
    """A linear layer without bias whose weight is kept in int8, with a scale for each output.

    Weights are rounded by at most half a step of 1/127 of the largest weight of their output. Inputs are multiplied in
    two 8-bit parts, scaled by token, so that their error is negligible beside that: with a single part, a model with a
    few large values in its states answers differently. Integer sums are exact, independent of other rows. For CPUs
    only: on GPUs, everything around the product takes longer than a product in bfloat16.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        exact = linear.weight.detach().float()
        scale = exact.abs().amax(dim=1, keepdim=True).clamp_(min=_TINY) / 127
        self.register_buffer("_weight", (exact / scale).round_().to(torch.int8))
        self.register_buffer("_scale", scale[:, 0])

    def forward(self, x: Tensor) -> Tensor:
        exact = x.float()
        scale = exact.abs().amax(dim=1, keepdim=True).clamp_(min=_TINY) / (127 * _PART)
        whole = (exact / scale).round_()
        upper = (whole / _PART).round()
        parts = torch.cat((upper, whole.sub_(upper, alpha=_PART))).to(torch.int8)
        sums = torch._int_mm(parts, self.get_buffer("_weight").t()).float()
        out: Tensor = sums[len(x) :].add_(sums[: len(x)], alpha=_PART) * scale * self.get_buffer("_scale")
        return out.to(x.dtype)


class Fp8Linear(nn.Module):
    """A linear layer without bias whose weight is kept in fp8 (e4m3), with a scale for each output.

    Inputs are rounded to fp8 too, with a scale for each token, if `fp8_product` multiplies in fp8.
    """

    def __init__(self, weight: Tensor, scale: Tensor) -> None:
        """Takes a weight float8_e4m3fn [out, in], and the scale that multiplies each output, [out, 1]."""
        super().__init__()
        self.register_buffer("_weight", weight)
        self.register_buffer("_scale", scale.float().reshape(1, -1))

    @classmethod
    def quantized(cls, linear: nn.Linear) -> "Fp8Linear":
        """Rounds the weight of a plain layer."""
        return cls(*to_fp8(linear.weight.detach()))

    def forward(self, x: Tensor) -> Tensor:
        """Takes x [rows, in] and returns [rows, out] in x's dtype."""
        return fp8_product(x, self.get_buffer("_weight"), self.get_buffer("_scale"))


def fp8_product(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """Multiplies inputs x [rows, in] by an fp8 weight: [rows, out] in x's dtype.

    GPUs with fp8 units multiply inputs rounded by `to_fp8`, and round results to bfloat16; others widen the weight and
    leave the inputs unrounded. CPUs compute with the rounded inputs in float32, so that the rounding error can be
    measured there.

    Args:
        weight: float8_e4m3fn [out, in]
        scale: float32 [1, out]
    """
    if x.is_cuda and (any(size % _FP8_MULTIPLE for size in weight.shape) or not _has_fp8_units(x.device)):
        return ops_of(x.device.type).fp8_weight_product(x, weight, scale)
    values, scales = ops_of(x.device.type).to_fp8(x)
    if x.is_cuda:
        out = torch._scaled_mm(values, weight.t(), scale_a=scales, scale_b=scale, out_dtype=torch.bfloat16)
    else:
        out = (values.float() @ widened(weight).t()).mul_(scales).mul_(scale)
    return out.to(x.dtype)


@functools.cache
def _has_fp8_units(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device) >= _FP8_CAPABILITY


CONVERTERS: Mapping[str, Callable[[nn.Linear], nn.Module]] = MappingProxyType(
    {"fp8": Fp8Linear.quantized, "int8": Int8Linear}
)
"""Converts plain modules to those of a quantization."""


def pack_linears(module: nn.Module) -> None:
    """Packs all linear layers in a module if that is possible and useful."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear and _can_pack(child.weight):
                setattr(parent, name, PackedLinear(child))


def _can_pack(weight: Tensor) -> bool:
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    if weight.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return weight.dtype == torch.float32
