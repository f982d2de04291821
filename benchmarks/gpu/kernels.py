"""A part of the check: the product's kernels, each alone: whether it is right on this device, how near to the limit.

Beside them what PyTorch has: attention with copies and masks, attention of variable lengths, products in 8 bits.
"""

import math
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor

from part import Part
from spyglass_server.runtime.launch import PAGE_SIZE
from spyglass_server.runtime.model.layers import grouped_attention
from timing import DeviceLimits, device_ms

CASE = "kernels"
BAR = 1e-2
"""Of relative errors in bfloat16."""
FP8_MAX = 448.0
FP8_BAR = 6e-2
CONTEXTS = ((1, 1024), (1, 32_768), (8, 1024), (64, 1024), (32, 8192))
"""Rows and their context."""
SMOKE_CONTEXTS = ((3, 300),)
MATRICES = ((28_672, 4096), (57_344, 8192), (8192, 28_672))
"""Outputs and inputs of linear layers of the 11B and the 90B model."""


class Kernels:
    """The stages of this part."""

    def __init__(self, part: Part) -> None:
        self._part, self._device = part, part.device
        self._dtype = torch.float32 if part.is_smoke else torch.bfloat16  # the interpreter has no bfloat16
        self._limits = DeviceLimits.kept_in(part.out, part.device)

    @torch.inference_mode()
    def paged_attention(self) -> None:
        if self._lacks_triton("paged attention"):
            return
        for rows, context in SMOKE_CONTEXTS if self._part.is_smoke else CONTEXTS:
            self._attend(rows, context)

    def _attend(self, rows: int, context: int) -> None:
        from spyglass_server.runtime.kernels.attention import decode_attention

        heads, kv_heads, head_dim = (8, 2, 32) if self._part.is_smoke else (32, 8, 128)
        pages = -(-context // PAGE_SIZE)
        block_tables = torch.randperm(rows * pages, device=self._device).to(torch.int32).view(rows, pages)
        k, v = (self._random(rows * pages * PAGE_SIZE, kv_heads, head_dim) for _ in range(2))
        q = self._random(rows, heads, head_dim)
        lens = torch.full((rows,), context, dtype=torch.int32, device=self._device)
        if rows > 1:
            lens[0] = context // 3  # what lies behind it must not be read
        offsets = torch.arange(PAGE_SIZE, device=self._device)
        slots = (block_tables.long()[:, :, None] * PAGE_SIZE + offsets).flatten(1)[:, :context]
        unseen = (torch.arange(context, device=self._device) >= lens[:, None])[:, None, None]

        def copying(dtype: torch.dtype) -> Tensor:
            """What the product does: copies of the keys and values, then attention with a mask."""
            near = (F.embedding(slots, x.flatten(1)).view(rows, context, kv_heads, head_dim) for x in (k, v))
            keys, values = (x.to(dtype).transpose(1, 2) for x in near)
            mask = torch.zeros(unseen.shape, dtype=dtype, device=self._device).masked_fill_(unseen, -torch.inf)
            return grouped_attention(q.to(dtype)[:, None], keys, values, mask).view(q.shape)

        reads = torch.stack((torch.arange(rows, device=self._device), torch.zeros_like(lens), lens)).int()
        flat_k, flat_v = k.flatten(1), v.flatten(1)

        def paged() -> Tensor:
            return decode_attention(q, flat_k, flat_v, block_tables, reads, PAGE_SIZE).view(q.shape)

        self._compare(f"paged attention, {rows} rows, context {context}", paged(), copying(torch.float32))
        limit_ms = self._limits.ms(2 * int(lens.sum()) * kv_heads * head_dim * k.element_size())
        ms, copying_ms = device_ms(self._device, paged), device_ms(self._device, lambda: copying(self._dtype))
        self._part.record(
            "paged attention",
            rows=rows,
            context=context,
            ms=round(ms, 4),
            limit_ms=round(limit_ms, 4),
            ratio=round(limit_ms / ms, 3),
            copying_ms=round(copying_ms, 4),
            copying_ratio=round(limit_ms / copying_ms, 3),
        )

    @torch.inference_mode()
    def small_kernels(self) -> None:
        if self._lacks_triton("small kernels"):
            return
        from spyglass_server.runtime.kernels.layers import add_rms_norm, silu_mul

        rows, hidden, size = (4, 96, 80) if self._part.is_smoke else (32, 4096, 14_336)
        x, delta, weight = (
            torch.randn(rows, hidden, device=self._device),
            self._random(rows, hidden),
            self._random(hidden),
        )
        total = x + delta.float()
        expected = total * (total.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * weight.float()
        self._compare("add and norm", add_rms_norm(x, delta, None, weight, 1e-5), expected)
        self._compare("the residual stream after add and norm", x, total)
        gate_up = self._random(rows, 2 * size)
        expected = F.silu(gate_up[:, :size].float()) * gate_up[:, size:].float()
        self._compare("SiLU times up", silu_mul(gate_up), expected)

        def norm() -> Tensor:
            return add_rms_norm(x, delta, None, weight, 1e-5)

        self._part.record(
            "small kernels",
            add_rms_norm_us=round(1000 * device_ms(self._device, norm), 2),
            silu_mul_us=round(1000 * device_ms(self._device, lambda: silu_mul(gate_up)), 2),
        )

    @torch.inference_mode()
    def flash_attention(self) -> None:
        """Torch's own, for a chunk of a prompt with what is before it: causal to the bottom right, without a mask."""
        schemas = str(torch._C._jit_get_schemas_for_operator("aten::_flash_attention_forward"))
        has = {word: word in schemas for word in ("block_table", "seqused_k", "num_splits")}
        self._part.record("flash attention's options", **has)
        if self._device.type != "cuda":
            return
        heads, kv_heads, head_dim, tokens, start = 32, 8, 128, 512, 7680
        context = start + tokens
        q, k, v = (self._random(n, h, head_dim) for n, h in ((tokens, heads), (context, kv_heads), (context, kv_heads)))
        ends_q, ends_k = (torch.tensor([0, n], dtype=torch.int32, device=self._device) for n in (tokens, context))

        def flash() -> Tensor:
            found: Tensor = torch.ops.aten._flash_attention_forward(
                q, k, v, ends_q, ends_k, tokens, context, 0.0, True, False
            )[0]
            return found

        seen = torch.ones(tokens, context, dtype=torch.bool, device=self._device).tril(start)
        exact_q, exact_k, exact_v = (x.float().transpose(0, 1)[None] for x in (q, k, v))
        expected = F.scaled_dot_product_attention(exact_q, exact_k, exact_v, seen, enable_gqa=True)
        self._compare("flash attention of a chunk", flash(), expected[0].transpose(0, 1))
        ms = device_ms(self._device, flash)
        operations = 4 * heads * head_dim * tokens * (start + tokens / 2)
        self._part.record("flash attention of a chunk", ms=round(ms, 3), tflops=round(operations / ms / 1e9))

    @torch.inference_mode()
    def fp8_products(self) -> None:
        """Weights with a scale for each output and inputs with one for each token, by torch's product."""
        if self._device.type != "cuda":
            self._part.record("fp8 products", skipped="CPUs have none")
            return
        for outputs, inputs in MATRICES:
            weight = self._random(outputs, inputs)
            scale = weight.abs().amax(1, keepdim=True).float() / FP8_MAX
            small = (weight.float() / scale).to(torch.float8_e4m3fn)
            for rows in (1, 32):
                x = self._random(rows, inputs)
                product = _fp8_product(x, small, scale.t().contiguous())
                expected = x.float() @ weight.float().t()
                self._compare(f"fp8 product, {rows} x {inputs} by {inputs} x {outputs}", product(), expected, FP8_BAR)
                self._part.record(
                    "fp8 products",
                    rows=rows,
                    inputs=inputs,
                    outputs=outputs,
                    bf16_ms=round(device_ms(self._device, partial(torch.matmul, x, weight.t())), 4),
                    bf16_limit_ms=round(self._limits.ms(2 * inputs * outputs), 4),
                    fp8_ms=round(device_ms(self._device, product), 4),
                    fp8_limit_ms=round(self._limits.ms(inputs * outputs), 4),
                )

    def _lacks_triton(self, stage: str) -> bool:
        if find_spec("triton"):
            return False
        self._part.record(stage, skipped="no triton", failed=self._device.type == "cuda")
        return True

    def _random(self, *shape: int) -> Tensor:
        return torch.randn(*shape, device=self._device, dtype=self._dtype)

    def _compare(self, what: str, value: Tensor, expected: Tensor, bar: float = BAR) -> None:
        error = float((value.float() - expected).norm() / expected.norm())
        self._part.compare(CASE, what, error if math.isfinite(error) else math.inf, bar)


def _fp8_product(x: Tensor, weight: Tensor, scale: Tensor) -> Callable[[], Tensor]:
    """Of x [rows, in] in bfloat16 and weight [out, in] in float8 with its scale [1, out]; rounds x itself."""

    def product() -> Tensor:
        x_scale = x.abs().amax(1, keepdim=True).float() / FP8_MAX
        small = (x.float() / x_scale).to(torch.float8_e4m3fn)
        return torch._scaled_mm(small, weight.t(), x_scale, scale, out_dtype=torch.bfloat16)

    return product


def main() -> None:
    """Runs the part."""
    part = Part.from_arguments()
    kernels = Kernels(part)
    part.stage("paged attention", 20.0, kernels.paged_attention)
    part.stage("small kernels", 5.0, kernels.small_kernels)
    part.stage("flash attention", 5.0, kernels.flash_attention)
    part.stage("fp8 products", 10.0, kernels.fp8_products)


if __name__ == "__main__":
    main()
