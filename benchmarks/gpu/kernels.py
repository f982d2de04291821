"""Triton kernels that the engine could have on GPUs. They are correct by the candidates' part of the check, which also
says how near they come to the limit; the product does not use them yet.

On a CPU they run in Triton's interpreter, with TRITON_INTERPRET=1.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

_GROUP = 16
"""Query heads computed together: the least that a tensor core multiplies. Those beyond a key head's own are masked."""
_BLOCK = 64
"""Slots of the context that are read at once."""
_LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _decode_split(
    q, k, v, block_tables, context_lens, out_parts, lse_parts, scale, table_stride, num_splits,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, PAGE: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Attention of one row's query heads that share a key head, to one split of the context: a program for each
    (row, key head, split). `lse` is the base-2 logarithm of the sum of the softmax's weights."""
    row, kv_head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    context = tl.load(context_lens + row)
    split_size = tl.cdiv(tl.cdiv(context, num_splits), BLOCK) * BLOCK
    begin = split * split_size
    end = tl.minimum(begin + split_size, context)
    shared: tl.constexpr = HEADS // KV_HEADS
    group, dim = tl.arange(0, GROUP), tl.arange(0, HEAD_DIM)
    heads = kv_head * shared + group
    is_head = group < shared
    query = tl.load(q + (row * HEADS + heads)[:, None] * HEAD_DIM + dim[None], mask=is_head[:, None], other=0.0)
    best = tl.full([GROUP], -float("inf"), tl.float32)
    total = tl.zeros([GROUP], tl.float32)
    out = tl.zeros([GROUP, HEAD_DIM], tl.float32)
    for first in range(begin, end, BLOCK):
        at = first + tl.arange(0, BLOCK)
        seen = at < end
        page = tl.load(block_tables + row * table_stride + at // PAGE, mask=seen, other=0).to(tl.int64)
        slot = (page * PAGE + at % PAGE) * (KV_HEADS * HEAD_DIM) + kv_head * HEAD_DIM
        keys = tl.load(k + slot[None] + dim[:, None], mask=seen[None], other=0.0)
        scores = tl.where(seen[None], tl.dot(query, keys) * (scale * _LOG2_E), -float("inf"))
        new_best = tl.maximum(best, tl.max(scores, 1))
        weights = tl.exp2(scores - new_best[:, None])
        kept = tl.exp2(best - new_best)
        values = tl.load(v + slot[:, None] + dim[None], mask=seen[:, None], other=0.0)
        out = out * kept[:, None] + tl.dot(weights.to(values.dtype), values)
        total = total * kept + tl.sum(weights, 1)
        best = new_best
    total = tl.where(begin < end, total, 1.0)  # a split beyond the context counts nothing
    part = (row * HEADS + heads) * num_splits + split
    tl.store(lse_parts + part, best + tl.log2(total), mask=is_head)
    tl.store(out_parts + part[:, None] * HEAD_DIM + dim[None], out / total[:, None], mask=is_head[:, None])


@triton.jit
def _decode_combine(out_parts, lse_parts, out, num_splits, HEAD_DIM: tl.constexpr, MAX_SPLITS: tl.constexpr):
    """Puts the splits of one query head together: a program for each (row, head)."""
    head = tl.program_id(0)
    split, dim = tl.arange(0, MAX_SPLITS), tl.arange(0, HEAD_DIM)
    exists = split < num_splits
    lse = tl.load(lse_parts + head * num_splits + split, mask=exists, other=-float("inf"))
    weights = tl.exp2(lse - tl.max(lse, 0))
    at = (head * num_splits + split)[:, None] * HEAD_DIM + dim[None]
    parts = tl.load(out_parts + at, mask=exists[:, None], other=0.0)
    tl.store(out + head * HEAD_DIM + dim, tl.sum(parts * weights[:, None], 0) / tl.sum(weights, 0))


def paged_decode_attention(
    q: Tensor, k: Tensor, v: Tensor, block_tables: Tensor, context_lens: Tensor, num_splits: int, page_size: int
) -> Tensor:
    """Attention of one token a row to its context, which lies in pages and is not copied.

    q [rows, heads, head_dim]; k and v [slots, kv_heads, head_dim], contiguous; block_tables int32 [rows, pages];
    context_lens int32 [rows], each at least 1. The context is read in `num_splits` splits at once. Returns [rows,
    heads, head_dim].
    """
    rows, heads, head_dim = q.shape
    kv_heads = k.shape[1]
    assert heads // kv_heads <= _GROUP
    out_parts = torch.empty(rows, heads, num_splits, head_dim, dtype=torch.float32, device=q.device)
    lse_parts = torch.empty(rows, heads, num_splits, dtype=torch.float32, device=q.device)
    out = torch.empty_like(q)
    _decode_split[(rows, kv_heads, num_splits)](
        q, k, v, block_tables, context_lens, out_parts, lse_parts, 1 / math.sqrt(head_dim), block_tables.stride(0),
        num_splits, HEADS=heads, KV_HEADS=kv_heads, GROUP=_GROUP, HEAD_DIM=head_dim, PAGE=page_size, BLOCK=_BLOCK,
        num_warps=4, num_stages=3,
    )  # fmt: skip
    _decode_combine[(rows * heads,)](
        out_parts, lse_parts, out, num_splits, HEAD_DIM=head_dim, MAX_SPLITS=triton.next_power_of_2(num_splits)
    )
    return out


@triton.jit
def _add_rms_norm(x, delta, weight, out, size, eps, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    at = tl.arange(0, BLOCK)
    exists = at < size
    added = tl.load(delta + row * size + at, mask=exists, other=0.0).to(tl.float32)
    total = tl.load(x + row * size + at, mask=exists, other=0.0) + added
    tl.store(x + row * size + at, total, mask=exists)
    scale = tl.rsqrt(tl.sum(total * total, 0) / size + eps)
    factor = tl.load(weight + at, mask=exists, other=0.0).to(tl.float32)
    tl.store(out + row * size + at, total * scale * factor, mask=exists)


def add_rms_norm(x: Tensor, delta: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Adds delta to the residual stream x in place and returns the norm of the sum.

    x float32 [rows, hidden]; delta [rows, hidden] and weight [hidden] in the weights' format, as is what it returns.
    """
    rows, size = x.shape
    out = torch.empty_like(delta)
    _add_rms_norm[(rows,)](x, delta, weight, out, size, eps, BLOCK=triton.next_power_of_2(size), num_warps=8)
    return out


@triton.jit
def _silu_mul(gate_up, out, size, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    exists = at < size
    gate = tl.load(gate_up + row * 2 * size + at, mask=exists, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * size + size + at, mask=exists, other=0.0).to(tl.float32)
    tl.store(out + row * size + at, gate * tl.sigmoid(gate) * up, mask=exists)


def silu_mul(gate_up: Tensor) -> Tensor:
    """silu(gate) * up of gate_up [rows, 2 * size], gates first: [rows, size]."""
    rows, size = gate_up.shape[0], gate_up.shape[1] // 2
    out = torch.empty(rows, size, dtype=gate_up.dtype, device=gate_up.device)
    _silu_mul[(rows, triton.cdiv(size, 1024))](gate_up, out, size, BLOCK=1024)
    return out
