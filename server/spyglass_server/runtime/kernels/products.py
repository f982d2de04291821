"""Products with fp8 weights on GPUs without fp8 units: weights are widened where they are multiplied."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from spyglass_server.runtime.kernels.launch import launch

MAX_ROWS = 64
"""Maximum rows; for more, widening the whole weight first is faster."""
_OUTPUTS, _INPUTS = 32, 128
"""Rows and columns of the weight that are multiplied at once."""


@triton.jit(do_not_specialize=["num_rows"])
def _fp8_weight_product(
    x, weight, scale, out, num_rows,
    INPUTS: tl.constexpr, OUTPUTS: tl.constexpr, ROWS: tl.constexpr, IN: tl.constexpr, OUT: tl.constexpr,
):  # fmt: skip
    """Computes all rows of some outputs."""
    row, output = tl.arange(0, ROWS), tl.program_id(0) * OUT + tl.arange(0, OUT)
    is_row, is_output = row < num_rows, output < OUTPUTS
    sums = tl.zeros([ROWS, OUT], tl.float32)
    for first in range(0, INPUTS, IN):
        at = first + tl.arange(0, IN)
        is_input = at < INPUTS
        values = tl.load(x + row[:, None] * INPUTS + at[None], mask=is_row[:, None] & is_input[None], other=0.0)
        where = output.to(tl.int64)[None] * INPUTS + at[:, None]
        bits = tl.load(weight + where, mask=is_output[None] & is_input[:, None], other=0)
        # shifted by 7 bits, without the extra copy of the sign, it is a float16 with an exponent bias of 15, not 7
        small = ((bits.to(tl.int16) << 7) & -16385).to(tl.float16, bitcast=True)
        full = (small.to(tl.float32) * 256.0).to(values.dtype)
        sums += tl.dot(values, full, input_precision="ieee")
    scales = tl.load(scale + output, mask=is_output, other=0.0)
    tl.store(out + row[:, None] * OUTPUTS + output[None], sums * scales[None], mask=is_row[:, None] & is_output[None])


def fp8_weight_product(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """Multiplies inputs x [rows, in], at most MAX_ROWS, by a weight float8_e4m3fn [out, in] with the outputs' scales
    float32 [1, out]: [rows, out] in x's dtype. Reads the weight once."""
    rows, inputs = x.shape
    outputs = len(weight)
    out = torch.empty(rows, outputs, dtype=x.dtype, device=x.device)
    launch(
        _fp8_weight_product, (triton.cdiv(outputs, _OUTPUTS),), x, weight.view(torch.int8), scale, out, rows,
        INPUTS=inputs, OUTPUTS=outputs, ROWS=max(16, triton.next_power_of_2(rows)), IN=_INPUTS, OUT=_OUTPUTS,
        num_warps=4, num_stages=4,
    )  # fmt: skip
    return out
