"""The caches as the text model's layers see them during one batch: tokens attend according to its plan."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from spyglass_server.runtime.cpu.plan import BatchPlan, CrossPlan, Group
from spyglass_server.runtime.model.layers import grouped_attention, rotary_angles, rotate
from spyglass_server.runtime.native.kernels import Kernels
from spyglass_server.runtime.native.reads import Reads, TokenReads
from spyglass_server.runtime.slot_cache import SlotCache


class PlannedKVCache:
    """The text cache. Implements `KVCache`."""

    def __init__(
        self, cache: SlotCache, plan: BatchPlan, frequencies: Tensor, heads: int, kernels: Kernels | None
    ) -> None:
        """`frequencies` float32 [head_dim / 2] of the rotary embedding."""
        self._cache, self._plan, self._heads, self._kernels = cache, plan, heads, kernels
        self._attention = PlannedAttention(plan.reads, kernels)
        self._head_dim = 2 * len(frequencies)
        self._cos, self._sin = rotary_angles(plan.positions, frequencies)

    def attend(self, layer: int, qkv: Tensor) -> Tensor:
        stored = self._cache.layer(layer)
        if self._kernels:
            angles, slots = (self._cos, self._sin), self._plan.slot_mapping
            q = self._kernels.rotate_and_store(qkv, angles, slots, stored, self._heads)
        else:
            q = self._rotate_and_store(layer, qkv)
        return self._attention(stored, q)

    def _rotate_and_store(self, layer: int, qkv: Tensor) -> Tensor:
        split = qkv.view(len(qkv), -1, self._head_dim)
        kv_heads = (split.shape[1] - self._heads) // 2
        qk, v = split.tensor_split((self._heads + kv_heads,), dim=1)
        q, k = rotate(qk, self._cos, self._sin).tensor_split((self._heads,), dim=1)
        self._cache.write(layer, self._plan.slot_mapping, k, v)
        return q


class PlannedCrossCache:
    """The image cache. Implements `CrossCache`."""

    def __init__(self, cache: SlotCache, plan: CrossPlan, kernels: Kernels | None) -> None:
        self._cache, self._plan = cache, plan
        self._attention = PlannedAttention(plan.reads, kernels)

    def select(self, x: Tensor) -> Tensor:
        return x.index_select(0, self._plan.index)

    def merge(self, x: Tensor, seeing: Tensor) -> Tensor:
        return x.index_copy(0, self._plan.index, seeing)

    def attend(self, layer: int, q: Tensor) -> Tensor:
        return self._attention(self._cache.layer(layer), q)


class PlannedAttention:
    """Attention of queries, each to its slots or those of its group, in every layer."""

    def __init__(self, reads: Sequence[Group] | TokenReads, kernels: Kernels | None) -> None:
        self._groups: Sequence[Group] = ()
        if isinstance(reads, TokenReads):
            self._reads, self._kernels = Reads().set(reads), kernels
        else:
            self._groups = reads

    def __call__(self, stored: tuple[Tensor, Tensor], q: Tensor) -> Tensor:
        """Takes q [tokens, heads, head_dim] and returns [tokens, heads * head_dim]."""
        if not self._groups:
            assert self._kernels is not None
            return self._kernels.attention(q, by_head(stored, q.shape[2]), self._reads)
        parts = []
        for group in self._groups:
            k, v = (_read(one, group.slots, q.shape[2]) for one in stored)
            near = q[group.begin : group.end].view(len(k), -1, *q.shape[1:]).to(k.dtype)
            parts.append(grouped_attention(near, k, v, group.mask, is_causal=group.is_causal).to(q.dtype))
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def by_head(stored: tuple[Tensor, Tensor], head_dim: int) -> tuple[Tensor, Tensor]:
    """Keys and values [slots, kv_heads * head_dim] as [slots, kv_heads, head_dim]."""
    keys, values = (one.view(len(one), -1, head_dim) for one in stored)
    return keys, values


def _read(stored: Tensor, slots: Tensor | slice, head_dim: int) -> Tensor:
    """Reads slots as [rows, kv_heads, context, head_dim]; a slice is not copied."""
    found = stored[slots][None] if isinstance(slots, slice) else F.embedding(slots, stored)
    return found.view(*found.shape[:2], -1, head_dim).transpose(1, 2)
