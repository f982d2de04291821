"""The memory of keys and values. Pages of text and tiles of images are numbered blocks of slots in it.

A batch's plan says which slots each token writes and reads.
"""

import torch
from torch import Tensor

from spyglass_server.runtime.config import TextConfig


class SlotCache:
    """Keys and values of some layers, in slots: one for each token of text or of an image."""

    def __init__(
        self, num_layers: int, num_slots: int, config: TextConfig, dtype: torch.dtype, device: torch.device
    ) -> None:
        shape = (num_layers, 2, num_slots, config.num_kv_heads * config.head_dim)
        self._slots = torch.empty(shape, dtype=dtype, device=device)  # memory is used when it is first written
        self._layers = [(layer[0], layer[1]) for layer in self._slots.unbind(0)]
        self.dtype = dtype

    @staticmethod
    def slot_bytes(num_layers: int, config: TextConfig, dtype: torch.dtype) -> int:
        """How much memory one slot takes."""
        return num_layers * 2 * config.num_kv_heads * config.head_dim * dtype.itemsize

    def layer(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer, each [slots, kv_heads * head_dim]."""
        return self._layers[layer]

    def write(self, layer: int, slots: Tensor, k: Tensor, v: Tensor) -> None:
        """Stores keys and values [tokens, kv_heads, head_dim] in slots [tokens]."""
        for stored, new in zip(self._layers[layer], (k, v), strict=True):
            stored.index_copy_(0, slots, new.flatten(1).to(self.dtype))

    def copy(self, sources: Tensor, targets: Tensor, block_size: int) -> None:
        """Copies blocks of slots; all sources are read before any target is written."""
        blocks = self._slots.view(*self._slots.shape[:2], -1, block_size, self._slots.shape[3])
        blocks.index_copy_(2, targets, blocks.index_select(2, sources))
