"""The caches as the text model's layers see them during one batch: kernels read pages and tiles in place."""

import torch
from torch import Tensor

from spyglass_server.runtime.backend import Memory
from spyglass_server.runtime.cuda.plan import PagedPlan
from spyglass_server.runtime.cuda.seats import Seats
from spyglass_server.runtime.kernels.attention import decode_attention, prefill_attention
from spyglass_server.runtime.kernels.layers import rotate_and_store


class PagedKVCache:
    """The text cache. Implements `KVCache`."""

    def __init__(
        self, memory: Memory, seats: Seats, plan: PagedPlan, numbers: Tensor, frequencies: Tensor, heads: int
    ) -> None:
        """`numbers` are the plan's, on the device; `frequencies` float32 [head_dim / 2] of the rotary embedding."""
        self._memory, self._tables = memory, seats.pages
        self._frequencies, self._heads = frequencies, heads
        self._positions, self._slots = plan.section("positions", numbers), plan.section("slots", numbers)
        self._reads, self._blocks = plan.section("reads", numbers), plan.section("blocks", numbers)

    def attend(self, layer: int, qkv: Tensor) -> Tensor:
        k, v = self._memory.text.layer(layer)
        q = rotate_and_store(qkv, self._positions, self._frequencies, self._slots, k, v, self._heads)
        return _attend(q, k, v, self._tables, self._reads, self._blocks, self._memory.page_size, is_causal=True)


class PagedCrossCache:
    """The image cache, for the tokens that see images. Implements `CrossCache`."""

    def __init__(self, memory: Memory, seats: Seats, plan: PagedPlan, numbers: Tensor) -> None:
        self._memory, self._tables = memory, seats.tiles
        self._reads, self._blocks = plan.section("image_reads", numbers), plan.section("image_blocks", numbers)
        self._index = plan.section("image_index", numbers).long()

    def select(self, x: Tensor) -> Tensor:
        return x.index_select(0, self._index)

    def merge(self, x: Tensor, seeing: Tensor) -> Tensor:
        return x.index_copy_(0, self._index, seeing)

    def attend(self, layer: int, q: Tensor) -> Tensor:
        k, v = self._memory.images.layer(layer)
        return _attend(q, k, v, self._tables, self._reads, self._blocks, self._memory.tile_size, is_causal=False)


class RecordedCrossCache:
    """The image cache, for all rows of a recorded step: rows that see no image stay unchanged."""

    def __init__(self, memory: Memory, seats: Seats, plan: PagedPlan, numbers: Tensor) -> None:
        self._memory, self._tables = memory, seats.tiles
        self._reads = plan.section("image_reads", numbers)
        self._is_seeing = (self._reads[2] > self._reads[1])[:, None]

    def select(self, x: Tensor) -> Tensor:
        return x.clone()

    def merge(self, x: Tensor, seeing: Tensor) -> Tensor:
        return torch.where(self._is_seeing, seeing, x)

    def attend(self, layer: int, q: Tensor) -> Tensor:
        k, v = self._memory.images.layer(layer)
        return decode_attention(q, k, v, self._tables, self._reads, self._memory.tile_size)


def _attend(
    q: Tensor, k: Tensor, v: Tensor, tables: Tensor, reads: Tensor, blocks: Tensor, block_size: int, *, is_causal: bool
) -> Tensor:
    """Attention of q [tokens, heads, head_dim]: first the tokens with `reads`, then the others in `blocks`."""
    num_reads = reads.shape[1]
    if not blocks.shape[1]:
        return decode_attention(q, k, v, tables, reads, block_size)
    out = torch.empty(len(q), q.shape[1] * q.shape[2], dtype=q.dtype, device=q.device)
    if num_reads:
        out[:num_reads] = decode_attention(q[:num_reads], k, v, tables, reads, block_size)
    prefill_attention(q, k, v, tables, blocks, out, block_size, is_causal=is_causal)
    return out
