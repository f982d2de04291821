"""Attention to keys and values in place: in pages of text, or tiles of images.

A sequence has a row in a table, with the numbers of its blocks in order. Position p of a sequence is in slot
`table[p // block_size] * block_size + p % block_size`. Blocks are never gathered into one buffer.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from spyglass_server.runtime.kernels.launch import launch

_MIN_HEADS = 16
"""Minimum rows that a tensor core multiplies: query heads beyond those that share a key head are masked."""
_CHUNK, _MAX_CHUNKS = 256, 64
"""Positions per partial result when decoding, and the maximum number of partial results: longer contexts have longer
ones. So these, and with them a row's sums, depend only on the row's own context."""
_SLOTS = 64
"""Positions read at once."""
_PROGRAMS = 528
"""Minimum programs launched when decoding: about four for each multiprocessor of a large GPU."""
QUERY_BLOCK = 64
"""Maximum number of tokens in a query block."""


@triton.jit
def _chunk_size(length, CHUNK: tl.constexpr, MAX_CHUNKS: tl.constexpr):
    return tl.maximum(CHUNK, tl.cdiv(tl.cdiv(length, MAX_CHUNKS), CHUNK) * CHUNK)


@triton.jit(do_not_specialize=["num_rows", "table_stride", "num_programs"])
def _decode_chunks(
    q, k, v, tables, reads, num_rows, parts, part_lse, scale, table_stride, num_programs,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, CHUNK: tl.constexpr, MAX_CHUNKS: tl.constexpr, SLOTS: tl.constexpr,
):  # fmt: skip
    """The heads of one row that share a key head, over every `num_programs`-th chunk of what the row sees.

    `part_lse` is the base-2 logarithm of the sum of a chunk's softmax weights.
    """
    row, kv_head = tl.program_id(0), tl.program_id(1)
    begin, end = tl.load(reads + num_rows + row), tl.load(reads + 2 * num_rows + row)
    table = tables + tl.load(reads + row).to(tl.int64) * table_stride
    group, dim = tl.arange(0, GROUP), tl.arange(0, DIM)
    shared: tl.constexpr = HEADS // KV_HEADS
    is_head, is_dim = group < shared, dim < HEAD_DIM
    head = row.to(tl.int64) * HEADS + kv_head * shared + group
    query = tl.load(q + head[:, None] * HEAD_DIM + dim[None], mask=is_head[:, None] & is_dim[None], other=0.0)
    size = _chunk_size(end - begin, CHUNK, MAX_CHUNKS)
    for chunk in range(tl.program_id(2), tl.cdiv(end - begin, size), num_programs):
        best = tl.full([GROUP], -float("inf"), tl.float32)
        total = tl.zeros([GROUP], tl.float32)
        out = tl.zeros([GROUP, DIM], tl.float32)
        first = begin + chunk * size
        for offset in range(0, size, SLOTS):
            at = first + offset + tl.arange(0, SLOTS)
            seen = at < end
            block = tl.load(table + at // BLOCK_SIZE, mask=seen, other=0).to(tl.int64)
            slot = ((block * BLOCK_SIZE + at % BLOCK_SIZE) * KV_HEADS + kv_head) * HEAD_DIM
            keys = tl.load(k + slot[None] + dim[:, None], mask=seen[None] & is_dim[:, None], other=0.0)
            scores = tl.dot(query, keys, input_precision="ieee") * scale
            scores = tl.where(seen[None], scores, -float("inf"))
            new_best = tl.maximum(best, tl.max(scores, 1))  # the first block of a chunk always has a seen position
            weights = tl.exp2(scores - new_best[:, None])
            kept = tl.exp2(best - new_best)
            values = tl.load(v + slot[:, None] + dim[None], mask=seen[:, None] & is_dim[None], other=0.0)
            out = out * kept[:, None] + tl.dot(weights.to(values.dtype), values, input_precision="ieee")
            total = total * kept + tl.sum(weights, 1)
            best = new_best
        part = head * MAX_CHUNKS + chunk
        tl.store(part_lse + part, best + tl.log2(total), mask=is_head)
        tl.store(
            parts + part[:, None] * HEAD_DIM + dim[None], out / total[:, None], mask=is_head[:, None] & is_dim[None]
        )


@triton.jit(do_not_specialize=["num_rows"])
def _combine_chunks(
    parts, part_lse, reads, num_rows, out,
    HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, DIM: tl.constexpr, CHUNK: tl.constexpr, MAX_CHUNKS: tl.constexpr,
    AT_ONCE: tl.constexpr,
):  # fmt: skip
    """Combines the chunks of one head of a row; zero if the row sees nothing."""
    row, head = tl.program_id(0), tl.program_id(0).to(tl.int64) * HEADS + tl.program_id(1)
    length = tl.load(reads + 2 * num_rows + row) - tl.load(reads + num_rows + row)
    num_chunks = tl.cdiv(length, _chunk_size(length, CHUNK, MAX_CHUNKS))
    dim = tl.arange(0, DIM)
    best = tl.full((), -float("inf"), tl.float32)
    total = tl.full((), 0.0, tl.float32)
    sums = tl.zeros([DIM], tl.float32)
    for first in range(0, num_chunks, AT_ONCE):
        chunk = first + tl.arange(0, AT_ONCE)
        exists = chunk < num_chunks
        lse = tl.load(part_lse + head * MAX_CHUNKS + chunk, mask=exists, other=-float("inf"))
        new_best = tl.maximum(best, tl.max(lse, 0))
        weights, kept = tl.exp2(lse - new_best), tl.exp2(best - new_best)
        at = (head * MAX_CHUNKS + chunk)[:, None] * HEAD_DIM + dim[None]
        found = tl.load(parts + at, mask=exists[:, None] & (dim < HEAD_DIM)[None], other=0.0)
        sums = sums * kept + tl.sum(found * weights[:, None], 0)
        total = total * kept + tl.sum(weights, 0)
        best = new_best
    total = tl.where(num_chunks > 0, total, 1.0)
    tl.store(out + head * HEAD_DIM + dim, sums / total, mask=dim < HEAD_DIM)


def decode_attention(q: Tensor, k: Tensor, v: Tensor, tables: Tensor, reads: Tensor, block_size: int) -> Tensor:
    """Attention of one token in each row.

    q [rows, heads, head_dim]; k and v [slots, kv_heads * head_dim], contiguous; tables int32 [seats, blocks]. `reads`
    int32 [3, rows]: the row of the table, and the positions begin … end - 1 that are seen, if any. Returns [rows,
    heads * head_dim] in q's dtype.
    """
    rows, heads, head_dim = q.shape
    kv_heads = k.shape[1] // head_dim
    parts = torch.empty(rows, heads, _MAX_CHUNKS, head_dim, dtype=torch.float32, device=q.device)
    part_lse = torch.empty(rows, heads, _MAX_CHUNKS, dtype=torch.float32, device=q.device)
    out = torch.empty(rows, heads * head_dim, dtype=q.dtype, device=q.device)
    dim = triton.next_power_of_2(head_dim)
    num_programs = min(_MAX_CHUNKS, triton.cdiv(_PROGRAMS, max(1, rows * kv_heads)))
    launch(
        _decode_chunks, (rows, kv_heads, num_programs),
        q, k, v, tables, reads, rows, parts, part_lse, _scale(head_dim), tables.stride(0), num_programs,
        HEADS=heads, KV_HEADS=kv_heads, GROUP=max(_MIN_HEADS, triton.next_power_of_2(heads // kv_heads)),
        HEAD_DIM=head_dim, DIM=dim, BLOCK_SIZE=block_size, CHUNK=_CHUNK, MAX_CHUNKS=_MAX_CHUNKS,
        SLOTS=_SLOTS, num_warps=4, num_stages=3,
    )  # fmt: skip
    launch(
        _combine_chunks, (rows, heads), parts, part_lse, reads, rows, out,
        HEADS=heads, HEAD_DIM=head_dim, DIM=dim, CHUNK=_CHUNK, MAX_CHUNKS=_MAX_CHUNKS, AT_ONCE=16, num_warps=4,
    )  # fmt: skip
    return out


@triton.jit(do_not_specialize=["table_stride", "num_blocks"])
def _prefill(
    q, k, v, tables, blocks, out, scale, table_stride, num_blocks,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, DIM: tl.constexpr, QUERIES: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, SLOTS: tl.constexpr, IS_CAUSAL: tl.constexpr,
):  # fmt: skip
    """One head of the tokens of a query block."""
    entry = blocks + tl.program_id(0)
    first, count, seat = tl.load(entry), tl.load(entry + num_blocks), tl.load(entry + 2 * num_blocks)
    begin, end = tl.load(entry + 3 * num_blocks), tl.load(entry + 4 * num_blocks)
    head = tl.program_id(1)
    table = tables + seat.to(tl.int64) * table_stride
    query, dim = tl.arange(0, QUERIES), tl.arange(0, DIM)
    is_dim = dim < HEAD_DIM
    is_query = (query < count)[:, None] & is_dim[None]
    at_query = ((first + query).to(tl.int64) * HEADS + head)[:, None] * HEAD_DIM + dim[None]
    queries = tl.load(q + at_query, mask=is_query, other=0.0)
    best = tl.full([QUERIES], -float("inf"), tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    sums = tl.zeros([QUERIES, DIM], tl.float32)
    last = end + count - 1 if IS_CAUSAL else end
    for offset in range(begin, last, SLOTS):
        at = offset + tl.arange(0, SLOTS)
        exists = at < last
        block = tl.load(table + at // BLOCK_SIZE, mask=exists, other=0).to(tl.int64)
        slot = ((block * BLOCK_SIZE + at % BLOCK_SIZE) * KV_HEADS + head // (HEADS // KV_HEADS)) * HEAD_DIM
        keys = tl.load(k + slot[None] + dim[:, None], mask=exists[None] & is_dim[:, None], other=0.0)
        scores = tl.dot(queries, keys, input_precision="ieee") * scale
        seen = at[None] < (end + query)[:, None] if IS_CAUSAL else exists[None]
        scores = tl.where(seen & exists[None], scores, -float("inf"))
        new_best = tl.maximum(best, tl.max(scores, 1))
        weights = tl.exp2(scores - new_best[:, None])
        kept = tl.exp2(best - new_best)
        values = tl.load(v + slot[:, None] + dim[None], mask=exists[:, None] & is_dim[None], other=0.0)
        sums = sums * kept[:, None] + tl.dot(weights.to(values.dtype), values, input_precision="ieee")
        total = total * kept + tl.sum(weights, 1)
        best = new_best
    tl.store(out + at_query, sums / total[:, None], mask=is_query)


def prefill_attention(
    q: Tensor, k: Tensor, v: Tensor, tables: Tensor, blocks: Tensor, out: Tensor, block_size: int, *, is_causal: bool
) -> None:
    """Attention of runs of tokens, each run from its own sequence.

    q [tokens, heads, head_dim]; k, v and tables as in `decode_attention`. `blocks` int32 [5, query blocks]: the first
    token in q and the number of tokens, at most QUERY_BLOCK; the row of the table; the positions begin … end - 1 that
    the first token sees, at least one. With `is_causal` each next token sees one more. Writes the tokens' rows of out
    [tokens, heads * head_dim].
    """
    _, heads, head_dim = q.shape
    is_wide = q.element_size() > 2
    launch(
        _prefill, (blocks.shape[1], heads), q, k, v, tables, blocks, out, _scale(head_dim), tables.stride(0),
        blocks.stride(0),
        HEADS=heads, KV_HEADS=k.shape[1] // head_dim, HEAD_DIM=head_dim, DIM=triton.next_power_of_2(head_dim),
        QUERIES=QUERY_BLOCK, BLOCK_SIZE=block_size, SLOTS=32 if is_wide else _SLOTS, IS_CAUSAL=is_causal,
        num_warps=4, num_stages=1 if is_wide else 3,
    )  # fmt: skip


def _scale(head_dim: int) -> float:
    """The scale of scores whose exponentials have base 2."""
    return math.log2(math.e) / math.sqrt(head_dim)
