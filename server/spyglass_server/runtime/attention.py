"""Where keys and values of text live, and attention over them.

Owns the tensors of the paged cache. Which token goes where is in the plan that it is given.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from spyglass_server.runtime.config import TextConfig
from spyglass_server.runtime.model.layers import grouped_attention
from spyglass_server.runtime.plan import BatchPlan


class PagedCache:
    """Keys and values of text in pages of a fixed number of tokens."""

    def __init__(
        self, config: TextConfig, num_pages: int, page_size: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        shape = (config.num_self_layers, 2, num_pages * page_size, config.num_kv_heads * config.head_dim)
        self._slots = torch.empty(shape, dtype=dtype, device=device)  # memory is used when it is first written
        self._layers = [tuple(layer.unbind(0)) for layer in self._slots.unbind(0)]  # keys and values of each
        self._kv_heads = config.num_kv_heads
        self.page_size = page_size

    @staticmethod
    def page_bytes(config: TextConfig, page_size: int, dtype: torch.dtype) -> int:
        """How much memory one page takes."""
        return config.num_self_layers * 2 * page_size * config.num_kv_heads * config.head_dim * dtype.itemsize

    def write(self, layer: int, plan: BatchPlan, k: Tensor, v: Tensor) -> None:
        """Stores keys and values [tokens, kv_heads, head_dim] of the batch's tokens."""
        for stored, new in zip(self._layers[layer], (k, v), strict=True):
            stored.index_copy_(0, plan.slots, new.flatten(1))

    def attend(self, layer: int, plan: BatchPlan, q: Tensor) -> Tensor:
        """Attention of q [tokens, heads, head_dim], each to its own sequence so far."""
        parts = []
        for group in plan.groups:
            rows, context = group.slots.shape
            k, v = (
                F.embedding(group.slots, stored).view(rows, context, self._kv_heads, -1)
                for stored in self._layers[layer]
            )
            near = q[group.begin : group.end].view(rows, -1, *q.shape[1:])
            parts.append(
                grouped_attention(near, k.transpose(1, 2), v.transpose(1, 2), group.mask, is_causal=group.is_causal)
            )
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def copy(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copies pages, each (source, target); all sources are read before any target is written."""
        sources, targets = torch.tensor(pairs, device=self._slots.device).T
        pages = self._slots.view(*self._slots.shape[:2], -1, self.page_size, self._slots.shape[3])
        pages[:, :, targets] = pages[:, :, sources]


@dataclass(frozen=True, slots=True)
class BatchMemory:
    """The cache as the layers see it during one batch."""

    cache: PagedCache
    plan: BatchPlan

    def write(self, layer: int, k: Tensor, v: Tensor) -> None:
        self.cache.write(layer, self.plan, k, v)

    def attend(self, layer: int, q: Tensor) -> Tensor:
        return self.cache.attend(layer, self.plan, q)
