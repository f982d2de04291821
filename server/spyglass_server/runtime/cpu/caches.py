"""The caches as the text model's layers see them during one batch: tokens attend in the plan's groups."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from spyglass_server.runtime.cpu.plan import BatchPlan, CrossPlan, Group
from spyglass_server.runtime.model.layers import grouped_attention, rotary_angles, rotate
from spyglass_server.runtime.slot_cache import SlotCache


class GroupedKVCache:
    """The text's. Implements `KVCache`."""

    def __init__(self, cache: SlotCache, plan: BatchPlan, frequencies: Tensor, heads: int) -> None:
        """`frequencies` float32 [head_dim / 2] of the rotary embedding."""
        self._cache, self._plan, self._heads = cache, plan, heads
        self._head_dim = 2 * len(frequencies)
        self._cos, self._sin = rotary_angles(plan.positions, frequencies)

    def attend(self, layer: int, qkv: Tensor) -> Tensor:
        split = qkv.view(len(qkv), -1, self._head_dim)
        kv_heads = (split.shape[1] - self._heads) // 2
        qk, v = split.tensor_split((self._heads + kv_heads,), dim=1)
        q, k = rotate(qk, self._cos, self._sin).tensor_split((self._heads,), dim=1)
        self._cache.write(layer, self._plan.slot_mapping, k, v)
        return _attend(self._cache.layer(layer), self._plan.groups, q)


class GroupedCrossCache:
    """The images'. Implements `CrossCache`."""

    def __init__(self, cache: SlotCache, plan: CrossPlan) -> None:
        self._cache, self._plan = cache, plan

    def select(self, x: Tensor) -> Tensor:
        return x.index_select(0, self._plan.index)

    def merge(self, x: Tensor, seeing: Tensor) -> Tensor:
        return x.index_copy(0, self._plan.index, seeing)

    def attend(self, layer: int, q: Tensor) -> Tensor:
        return _attend(self._cache.layer(layer), self._plan.groups, q)


def _attend(stored: tuple[Tensor, Tensor], groups: Sequence[Group], q: Tensor) -> Tensor:
    """Attention of q [tokens, heads, head_dim], each to the slots of its group."""
    parts = []
    for group in groups:
        k, v = (_read(one, group.slots, q.shape[2]) for one in stored)
        near = q[group.begin : group.end].view(len(k), -1, *q.shape[1:])
        parts.append(grouped_attention(near, k, v, group.mask, is_causal=group.is_causal))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _read(stored: Tensor, slots: Tensor | slice, head_dim: int) -> Tensor:
    """What stands in slots, [rows, kv_heads, context, head_dim]; a slice is not copied."""
    found = stored[slots][None] if isinstance(slots, slice) else F.embedding(slots, stored)
    return found.view(*found.shape[:2], -1, head_dim).transpose(1, 2)
