"""The tensors of the KV cache and of the images' cross-attention cache, and attention over them.

Pages of text and tiles of images are numbered slots in these tensors. Which token writes and reads which slots is in
the plan of the batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from spyglass_server.runtime.config import TextConfig
from spyglass_server.runtime.model.layers import grouped_attention
from spyglass_server.runtime.plan import BatchPlan, CrossPlan, Group


class SlotCache:
    """Keys and values of some layers, in slots: one for each token of text or of an image."""

    def __init__(
        self, num_layers: int, num_slots: int, config: TextConfig, dtype: torch.dtype, device: torch.device
    ) -> None:
        shape = (num_layers, 2, num_slots, config.num_kv_heads * config.head_dim)
        self._slots = torch.empty(shape, dtype=dtype, device=device)  # memory is used when it is first written
        self._layers = [tuple(layer.unbind(0)) for layer in self._slots.unbind(0)]  # keys and values of each
        self._kv_heads = config.num_kv_heads

    @staticmethod
    def slot_bytes(num_layers: int, config: TextConfig, dtype: torch.dtype) -> int:
        """How much memory one slot takes."""
        return num_layers * 2 * config.num_kv_heads * config.head_dim * dtype.itemsize

    def write(self, layer: int, slots: Tensor, k: Tensor, v: Tensor) -> None:
        """Stores keys and values [tokens, kv_heads, head_dim] in slots [tokens]."""
        for stored, new in zip(self._layers[layer], (k, v), strict=True):
            stored.index_copy_(0, slots, new.flatten(1))

    def attend(self, layer: int, groups: Sequence[Group], q: Tensor) -> Tensor:
        """Attention of q [tokens, heads, head_dim], each to the slots of its group."""
        parts = []
        for group in groups:
            k, v = (self._read(stored, group.slots) for stored in self._layers[layer])
            near = q[group.begin : group.end].view(len(k), -1, *q.shape[1:])
            parts.append(grouped_attention(near, k, v, group.mask, is_causal=group.is_causal))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def copy(self, pairs: Sequence[tuple[int, int]], block_size: int) -> None:
        """Copies blocks of slots, each (source, target); all sources are read before any target is written."""
        sources, targets = torch.tensor(pairs, device=self._slots.device).T
        blocks = self._slots.view(*self._slots.shape[:2], -1, block_size, self._slots.shape[3])
        blocks[:, :, targets] = blocks[:, :, sources]

    def _read(self, stored: Tensor, slots: Tensor | slice) -> Tensor:
        """What stands in slots, [rows, kv_heads, context, head_dim]; a slice is not copied."""
        found = stored[slots][None] if isinstance(slots, slice) else F.embedding(slots, stored)
        return found.view(*found.shape[:2], self._kv_heads, -1).transpose(1, 2)


@dataclass(frozen=True, slots=True)
class BatchKVCache:
    """The cache of text as the layers see it during one batch."""

    cache: SlotCache
    plan: BatchPlan

    def write(self, layer: int, k: Tensor, v: Tensor) -> None:
        self.cache.write(layer, self.plan.slot_mapping, k, v)

    def attend(self, layer: int, q: Tensor) -> Tensor:
        return self.cache.attend(layer, self.plan.groups, q)


@dataclass(frozen=True, slots=True)
class BatchCrossCache:
    """The images as the cross-attention layers see them during one batch."""

    cache: SlotCache
    plan: CrossPlan

    @property
    def index(self) -> Tensor:
        return self.plan.index

    def attend(self, layer: int, q: Tensor) -> Tensor:
        return self.cache.attend(layer, self.plan.groups, q)
