"""The operations between a layer's matrix products: norms, rotary embedding, feed-forward activation."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from spyglass_server.runtime.kernels.launch import launch

_BLOCK = 1024


@triton.jit
def _add_rms_norm(
    x, added, gate, weight, out, eps,
    SIZE: tl.constexpr, BLOCK: tl.constexpr, HAS_ADDED: tl.constexpr, HAS_GATE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * SIZE
    at = tl.arange(0, BLOCK)
    exists = at < SIZE
    value = tl.load(x + row + at, mask=exists, other=0.0).to(tl.float32)
    if HAS_ADDED:
        more = tl.load(added + row + at, mask=exists, other=0.0).to(tl.float32)
        if HAS_GATE:
            more = more * tl.load(gate)
        value += more
        tl.store(x + row + at, value, mask=exists)
    scale = tl.rsqrt(tl.sum(value * value, 0) / SIZE + eps)
    factor = tl.load(weight + at, mask=exists, other=0.0).to(tl.float32)
    tl.store(out + row + at, value * scale * factor, mask=exists)


def add_rms_norm(x: Tensor, added: Tensor | None, gate: Tensor | None, weight: Tensor, eps: float) -> Tensor:
    """Adds `added`, times `gate` if there is one, to x in place, and returns the norm of the sum.

    x [rows, size], contiguous, is float32 if something is added; `added` [rows, size]; gate float32 [1]; weight
    [size]. Returns [rows, size] in the weight's dtype.
    """
    rows, size = x.shape
    out = torch.empty(rows, size, dtype=weight.dtype, device=x.device)
    launch(
        _add_rms_norm, (rows,), x, x if added is None else added, weight if gate is None else gate, weight, out, eps,
        SIZE=size, BLOCK=triton.next_power_of_2(size), HAS_ADDED=added is not None, HAS_GATE=gate is not None,
        num_warps=8 if size > _BLOCK else 4,
    )  # fmt: skip
    return out


@triton.jit
def _rotate_and_store(
    qkv, positions, frequencies, slots, q, k, v,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, ALL: tl.constexpr, HALF: tl.constexpr, HALF_DIM: tl.constexpr,
):  # fmt: skip
    """All heads of one token, each in two halves."""
    token = tl.program_id(0).to(tl.int64)
    width: tl.constexpr = 2 * HALF
    head, at = tl.arange(0, ALL)[:, None], tl.arange(0, HALF_DIM)[None]
    is_dim = at < HALF
    source = qkv + (token * (HEADS + 2 * KV_HEADS) + head) * width + at
    exists = (head < HEADS + 2 * KV_HEADS) & is_dim
    lower = tl.load(source, mask=exists, other=0.0)
    upper = tl.load(source + HALF, mask=exists, other=0.0)
    position = tl.load(positions + token).to(tl.float32)
    angle = position * tl.load(frequencies + at, mask=is_dim, other=0.0)
    cos, sin = tl.cos(angle), tl.sin(angle)
    exact_lower, exact_upper = lower.to(tl.float32), upper.to(tl.float32)
    rotated_lower = exact_lower * cos - exact_upper * sin
    rotated_upper = exact_upper * cos + exact_lower * sin
    is_query = (head < HEADS) & is_dim
    target = q + (token * HEADS + head) * width + at
    tl.store(target, rotated_lower, mask=is_query)
    tl.store(target + HALF, rotated_upper, mask=is_query)
    slot = tl.load(slots + token).to(tl.int64) * KV_HEADS * width
    is_key = (head >= HEADS) & (head < HEADS + KV_HEADS) & is_dim
    target = k + slot + (head - HEADS) * width + at
    tl.store(target, rotated_lower, mask=is_key)
    tl.store(target + HALF, rotated_upper, mask=is_key)
    is_value = (head >= HEADS + KV_HEADS) & exists
    target = v + slot + (head - HEADS - KV_HEADS) * width + at
    tl.store(target, lower, mask=is_value)
    tl.store(target + HALF, upper, mask=is_value)


def rotate_and_store(
    qkv: Tensor, positions: Tensor, frequencies: Tensor, slots: Tensor, k: Tensor, v: Tensor, heads: int
) -> Tensor:
    """Applies the rotary embedding to queries and keys, and stores keys and values in the cache.

    qkv [tokens, (heads + 2 * kv_heads) * head_dim]; positions and slots int32 [tokens]; frequencies float32
    [head_dim / 2]; k and v [all slots, kv_heads * head_dim], of which `slots` are written. Returns the queries
    [tokens, heads, head_dim].
    """
    tokens, head_dim = len(qkv), 2 * len(frequencies)
    kv_heads = k.shape[1] // head_dim
    q = torch.empty(tokens, heads, head_dim, dtype=qkv.dtype, device=qkv.device)
    launch(
        _rotate_and_store, (tokens,), qkv, positions, frequencies, slots, q, k, v,
        HEADS=heads, KV_HEADS=kv_heads, ALL=triton.next_power_of_2(heads + 2 * kv_heads), HALF=head_dim // 2,
        HALF_DIM=triton.next_power_of_2(head_dim // 2), num_warps=8,
    )  # fmt: skip
    return q


@triton.jit
def _silu_mul(gate_up, out, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    exists = at < SIZE
    gate = tl.load(gate_up + row * 2 * SIZE + at, mask=exists, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * SIZE + SIZE + at, mask=exists, other=0.0).to(tl.float32)
    tl.store(out + row * SIZE + at, gate * tl.sigmoid(gate) * up, mask=exists)


def silu_mul(gate_up: Tensor) -> Tensor:
    """silu(gate) * up of gate_up [rows, 2 * size], gates first: [rows, size]."""
    rows, size = gate_up.shape[0], gate_up.shape[1] // 2
    out = torch.empty(rows, size, dtype=gate_up.dtype, device=gate_up.device)
    launch(_silu_mul, (rows, triton.cdiv(size, _BLOCK)), gate_up, out, SIZE=size, BLOCK=_BLOCK, num_warps=4)
    return out


@triton.jit(do_not_specialize=["num_tokens"])
def _resolve_tokens(tokens, last, out, num_tokens, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    exists = at < num_tokens
    token = tl.load(tokens + at, mask=exists, other=0)
    chosen = tl.load(last - 1 - token, mask=exists & (token < 0), other=0)
    tl.store(out + at, tl.where(token < 0, tl.maximum(chosen, 0), token), mask=exists)


def resolve_tokens(tokens: Tensor, last: Tensor) -> Tensor:
    """Resolves tokens int32 [tokens] of a step that begins before the host knows the previous step's tokens.

    A negative number -1 - i means `last[i]`, int32, where the previous step's sampler has put the token of its draw i.
    """
    out = torch.empty_like(tokens)
    launch(_resolve_tokens, (triton.cdiv(len(tokens), _BLOCK),), tokens, last, out, len(tokens), BLOCK=_BLOCK)
    return out


@triton.jit
def _to_fp8(x, out, scales, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    exists = at < SIZE
    value = tl.load(x + row * SIZE + at, mask=exists, other=0.0).to(tl.float32)
    scale = tl.maximum(tl.max(tl.abs(value), 0), 1e-30) / 448.0
    value = tl.div_rn(value, scale)
    # rounds to 3 bits after the first, ties to even: Triton's interpreter cannot do this
    exponent = tl.maximum((tl.abs(value).to(tl.int32, bitcast=True) >> 23) - 127, -6)
    unit = ((exponent - 3 + 127) << 23).to(tl.float32, bitcast=True)
    rounded = ((value / unit + 12582912.0) - 12582912.0) * unit  # 1.5 * 2^23: sums near it have no fraction
    tl.store(out + row * SIZE + at, rounded.to(tl.float8e4nv), mask=exists)
    tl.store(scales + row, scale)


def to_fp8(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rounds each row of x [rows, size] to float8_e4m3fn, scaled so that its largest value becomes fp8's largest, 448.

    Returns the values, and the scale that multiplies each row, float32 [rows, 1].
    """
    rows, size = x.shape
    out = torch.empty(rows, size, dtype=torch.float8_e4m3fn, device=x.device)
    scales = torch.empty(rows, 1, dtype=torch.float32, device=x.device)
    launch(_to_fp8, (rows,), x, out, scales, SIZE=size, BLOCK=triton.next_power_of_2(size), num_warps=8)
    return out, scales
