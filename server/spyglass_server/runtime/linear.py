"""Linear layers in the layout that a CPU multiplies fastest.

Owns the packing of weights for oneDNN. A packed layer takes the place of the plain one, whose weight is
gone afterwards: it can compute and nothing else. On other devices layers stay as they are.

The two operations are those that torch's own compiler uses when weights are frozen. Packed for a few
rows, they need half the time of the plain layer there and no more for many.
"""

import torch
from torch import Tensor, nn

_ROWS = 16
"""For how many rows at once the layout is chosen. Measured at 1 to 512: no other is faster anywhere."""


class PackedLinear(nn.Module):
    """A linear layer whose weight only oneDNN can read."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self._weight: Tensor = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), _ROWS)
        self._bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, "none", [], "")
        return out


def pack_linears(module: nn.Module) -> None:
    """Packs all linear layers inside a module where that is possible and of use."""
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
