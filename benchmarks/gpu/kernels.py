"""A stage of the check: the product's attention kernels, each alone: whether it is right, how near to the limit.

Beside that of prompts, PyTorch's own flash attention on keys and values that lie together.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from harness import config_of
from spyglass_server.runtime.kernels import attention
from spyglass_server.runtime.kernels.attention import QUERY_BLOCK, decode_attention, prefill_attention
from spyglass_server.runtime.launch import PAGE_SIZE
from stage_run import StageRun
from timing import DeviceLimits, device_ms, num_copies

TILE_SIZE = 1601
"""Slots of an image's tile."""
ATTENTIONS = (
    *((rows, context, PAGE_SIZE) for rows, context in ((1, 1024), (1, 32_768), (8, 1024), (64, 1024), (32, 8192))),
    *((rows, 4 * TILE_SIZE, TILE_SIZE) for rows in (1, 8, 32)),
)
"""Rows, their context, and the size of the blocks in which it lies."""
PROMPTS = ((512, 0), (2048, 0), (512, 7680))
"""Tokens, and tokens before them."""
SMOKE_ATTENTIONS, SMOKE_PROMPTS = ((2, 40, PAGE_SIZE), (1, 34, 17)), ((8, 24),)
BAR = 1e-2
"""Of relative errors in bfloat16."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cached:
    """Keys and values in scattered blocks, k and v [slots, kv_heads * head_dim], tables int32 [rows, blocks]."""

    k: Tensor
    v: Tensor
    tables: Tensor
    block_size: int

    def together(self, row: int, begin: int, end: int, head_dim: int) -> tuple[Tensor, Tensor]:
        """Keys and values at positions begin … end - 1 of a row, [tokens, kv_heads, head_dim] each."""
        at = torch.arange(begin, end, device=self.k.device)
        slots = self.tables[row].long()[at // self.block_size] * self.block_size + at % self.block_size
        k, v = (x[slots].view(end - begin, -1, head_dim) for x in (self.k, self.v))
        return k, v


class Kernels:
    """The cases of this stage, with the heads of the model."""

    def __init__(self, run: StageRun) -> None:
        self._run, self._device = run, run.device
        self._dtype = torch.float32 if run.is_smoke else torch.bfloat16  # the interpreter has no bfloat16
        self._limits = DeviceLimits.kept_in(run.out, run.device)
        text = config_of(run.size).text
        self._heads, self._kv_heads, self._head_dim = text.num_heads, text.num_kv_heads, text.head_dim

    @torch.inference_mode()
    def decode(self, rows: int, context: int, block_size: int) -> None:
        """One token in each row."""
        num_bytes = rows * context * self._slot_bytes
        caches = [self._cached(rows, context, block_size) for _ in range(num_copies(num_bytes) if self._is_gpu else 1)]
        q = self._random(rows, self._heads, self._head_dim)
        reads = torch.zeros(3, rows, dtype=torch.int32, device=self._device)
        reads[0] = torch.arange(rows, device=self._device)
        reads[2] = context
        if rows > 1:  # what lies before and behind must not be read
            reads[1, 0], reads[2, 0] = block_size, context // 2
        case = f"{rows} rows, {context} in blocks of {block_size}"
        found = [partial(decode_attention, q, one.k, one.v, one.tables, reads, block_size) for one in caches]
        out = found[0]().view(q.shape)
        expected = torch.stack([self._expected(q[i, None], caches[0], reads[:, i].tolist())[0] for i in range(rows)])
        self._compare(f"decode attention, {case}", out, expected)
        seen = int((reads[2] - reads[1]).sum())
        limit_ms = self._limits.kernel_ms(seen * self._slot_bytes, count=2)
        self._run.figure("decode attention", case, device_ms(self._device, *found), limit_ms)

    @torch.inference_mode()
    def prefill(self, tokens: int, start: int) -> None:
        """A piece of a prompt: causal to the bottom right."""
        end = start + tokens
        cached = self._cached(1, end, PAGE_SIZE)
        q = self._random(tokens, self._heads, self._head_dim)
        firsts = range(0, tokens, QUERY_BLOCK)
        entries = [(first, min(QUERY_BLOCK, tokens - first), 0, 0, start + 1 + first) for first in firsts]
        blocks = torch.tensor(entries, dtype=torch.int32, device=self._device).t().contiguous()
        out = torch.empty(tokens, self._heads * self._head_dim, dtype=self._dtype, device=self._device)
        arguments = (q, cached.k, cached.v, cached.tables, blocks, out, PAGE_SIZE)
        work = partial(prefill_attention, *arguments, is_causal=True)
        work()
        case = f"{tokens} after {start}"
        expected = self._expected(q, cached, [0, 0, end])
        self._compare(f"prefill attention, {case}", out.view(q.shape), expected)
        operations = 4 * self._heads * self._head_dim * tokens * (start + tokens / 2)
        limit_ms = self._limits.kernel_ms(0, operations)
        ms = device_ms(self._device, work)
        self._run.figure("prefill attention", case, ms, limit_ms, f"{operations / ms / 1e9:.0f} TFLOP/s")
        if self._is_gpu:
            k, v = (x.contiguous() for x in cached.together(0, 0, end, self._head_dim))
            self._run.case(f"flash attention, {case}", partial(self._flash, q, k, v, limit_ms, expected, case))

    @torch.inference_mode()
    def _flash(self, q: Tensor, k: Tensor, v: Tensor, limit_ms: float, expected: Tensor, case: str) -> None:
        """Torch's own."""
        ends_q, ends_k = (torch.tensor([0, len(x)], dtype=torch.int32, device=self._device) for x in (q, k))

        def flash() -> Tensor:
            out: Tensor = torch.ops.aten._flash_attention_forward(
                q, k, v, ends_q, ends_k, len(q), len(k), 0.0, True, False
            )[0]
            return out

        self._compare(f"torch's flash attention, {case}", flash(), expected)
        self._run.figure("torch's flash attention", case, device_ms(self._device, flash), limit_ms)

    def _expected(self, q: Tensor, cached: Cached, read: Sequence[int]) -> Tensor:
        """Attention in float32 of q [tokens, heads, head_dim], the last of which sees all of row `read`: [row, begin,
        end]."""
        row, begin, end = read
        k, v = (x.float().transpose(0, 1)[None] for x in cached.together(row, begin, end, self._head_dim))
        seen = torch.ones(len(q), end - begin, dtype=torch.bool, device=self._device).tril(end - begin - len(q))
        queries = q.float().transpose(0, 1)[None]
        return F.scaled_dot_product_attention(queries, k, v, seen, enable_gqa=True)[0].transpose(0, 1)

    def _cached(self, rows: int, context: int, block_size: int) -> Cached:
        blocks = -(-context // block_size)
        k, v = (self._random(rows * blocks * block_size, self._kv_heads * self._head_dim) for _ in range(2))
        tables = torch.randperm(rows * blocks, device=self._device).to(torch.int32).view(rows, blocks)
        return Cached(k=k, v=v, tables=tables, block_size=block_size)

    @property
    def _is_gpu(self) -> bool:
        return self._run.is_gpu

    @property
    def _slot_bytes(self) -> int:
        return 2 * self._kv_heads * self._head_dim * self._dtype.itemsize

    def _random(self, *shape: int) -> Tensor:
        return torch.randn(*shape, device=self._device, dtype=self._dtype)

    def _compare(self, what: str, value: Tensor, expected: Tensor) -> None:
        error = float((value.float() - expected).norm() / expected.norm())
        self._run.compare("kernels", what, error, BAR)


def run(run: StageRun) -> None:
    """Runs the stage."""
    if run.is_smoke:  # the interpreter runs programs one after the other
        attention._PROGRAMS = 1
    kernels = Kernels(run)
    for shape in SMOKE_ATTENTIONS if run.is_smoke else ATTENTIONS:
        run.case(f"decode attention of {shape}", partial(kernels.decode, *shape))
    for tokens, start in SMOKE_PROMPTS if run.is_smoke else PROMPTS:
        run.case(f"prefill attention of {tokens} after {start}", partial(kernels.prefill, tokens, start))
