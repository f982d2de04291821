"""Small steps as programs: all operations of the text model's layers in one call.

A program is recorded for the first batch of its kind; inputs are then copied to where it reads them.
"""

import torch
from torch import Tensor

from spyglass_server.runtime.backend import Memory
from spyglass_server.runtime.config import TextConfig
from spyglass_server.runtime.cpu.caches import by_head
from spyglass_server.runtime.cpu.plan import BatchPlan, CrossPlan
from spyglass_server.runtime.model.layers import rotary_angles
from spyglass_server.runtime.model.text import CrossAttentionLayer, SelfAttentionLayer, TextModel
from spyglass_server.runtime.native.kernels import Buffers, Kernels
from spyglass_server.runtime.native.modules import NativeLinear, NativeRMSNorm
from spyglass_server.runtime.native.reads import Reads, TokenReads
from spyglass_server.runtime.slot_cache import SlotCache

_FIRST_TOKENS, _MAX_TOKENS = 8, 128
_MAX_PROGRAMS = 128
"""Recording one takes about ten milliseconds."""


class Programs:
    """A model's programs, by the number of tokens, how many of them see images, and whether all are sampled.

    They share memory for intermediate results.
    """

    def __init__(self, model: TextModel, memory: Memory, frequencies: Tensor, kernels: Kernels) -> None:
        """`frequencies` float32 [head_dim / 2] of the rotary embedding."""
        self._model, self._memory, self._frequencies, self._kernels = model, memory, frequencies, kernels
        self._programs: dict[tuple[int, int, bool], _Program] = {}
        self._buffers = Buffers(_FIRST_TOKENS)
        parts = [part for each in (model.layers, model.norm, model.head) for part in each.modules()]
        leaves = [part for part in parts if not any(part.children())]
        is_native = all(isinstance(leaf, NativeLinear | NativeRMSNorm) for leaf in leaves)
        self._is_possible = is_native and model.mesh.size == 1  # torch's operations cannot be recorded

    def logits(self, plan: BatchPlan) -> Tensor | None:
        """Computes a batch and returns the sampled tokens' logits, which are valid until the next batch.

        Returns None for a large batch, and if more than these logits is requested.
        """
        count = len(plan.tokens)
        if not self._is_possible or count > _MAX_TOKENS or plan.prompts or not len(plan.sampled):
            return None
        if plan.cross and plan.cross.watched:
            return None
        key = count, len(plan.cross.index) if plan.cross else 0, plan.sampled.tolist() == list(range(count))
        if (program := self._programs.pop(key, None)) is None:
            if count > self._buffers.rows:
                self._programs.clear()
                self._buffers = Buffers(min(_MAX_TOKENS, 2 * count))
            program = self._recorded(*key)
        self._programs[key] = program  # most recently used
        if len(self._programs) > _MAX_PROGRAMS:
            del self._programs[next(iter(self._programs))]
        return program.run(plan)

    def _recorded(self, count: int, num_seeing: int, are_sampled: bool) -> "_Program":
        model, memory, kernels = self._model, self._memory, self._kernels
        return _Program(count, num_seeing, are_sampled, self._buffers, model, memory, self._frequencies, kernels)


class _Program:
    """The program for `count` tokens, of which `num_seeing` see images, and all or some are sampled."""

    def __init__(
        self,
        count: int,
        num_seeing: int,
        are_sampled: bool,
        buffers: Buffers,
        model: TextModel,
        memory: Memory,
        frequencies: Tensor,
        kernels: Kernels,
    ) -> None:
        self._model, self._frequencies, self._kernels = model, frequencies, kernels
        config = model.config
        self._x = buffers.take("stream", count, config.hidden_size, dtype=torch.float32)
        self._text = _TextReads(count, memory.text, config, kernels, buffers)
        self._images = _ImageReads(count, num_seeing, memory.images, config, kernels, buffers)
        with kernels.recording(buffers) as self._recorded:
            x, added = self._x, None
            for layer in model.layers:
                if isinstance(layer, SelfAttentionLayer):
                    x, added = layer(x, added, self._text)
                elif num_seeing:
                    assert isinstance(layer, CrossAttentionLayer)
                    if added is not None:
                        x, added = layer.attention_norm.add(x, added)[0], None  # only for the sum
                    x = layer(x, self._images)
            _, self._states = model.norm.add(x, added)
            self._logits = model.head(self._states) if are_sampled else None
        self._operations = self._recorded.sealed()

    def run(self, plan: BatchPlan) -> Tensor:
        """The logits of a batch, float32 [sampled tokens, vocabulary]."""
        self._x.copy_(self._model.embedding(plan.tokens))
        self._text.set(plan, self._frequencies)
        if plan.cross:
            self._images.set(plan.cross)
        self._kernels.run(self._operations)
        self._text.forget()
        self._images.forget()
        logits: Tensor | None = self._logits
        if logits is None:
            logits = self._model.head(self._states[plan.sampled])
        return logits[:, : self._model.config.vocab_size]


class _PlannedReads:
    """What all layers' attention reads from one of the caches; it changes from run to run."""

    def __init__(self, cache: SlotCache, config: TextConfig, kernels: Kernels, buffers: Buffers) -> None:
        self._cache, self._config, self._kernels, self._buffers = cache, config, kernels, buffers
        self._reads = Reads()

    def read(self, reads: object) -> None:
        """Sets what the next run reads, from a plan for our own kernels."""
        assert isinstance(reads, TokenReads)
        self._reads.set(reads)
        self._reads.make_room(self._config.num_heads * (self._config.head_dim + 2), self._buffers.take_parts)

    def forget(self) -> None:
        """Releases what the last run has read."""
        self._reads.forget()

    def attend_to(self, stored: tuple[Tensor, Tensor], q: Tensor) -> Tensor:
        """Attention of q [tokens, heads, head_dim] to a layer of the cache."""
        return self._kernels.attention(q, by_head(stored, q.shape[2]), self._reads)


class _TextReads(_PlannedReads):
    """What the layers read from the text cache. Implements `KVCache` while a program is recorded."""

    def __init__(self, count: int, cache: SlotCache, config: TextConfig, kernels: Kernels, buffers: Buffers) -> None:
        super().__init__(cache, config, kernels, buffers)
        self._cos, self._sin = (torch.empty(count, 1, config.head_dim) for _ in range(2))
        self._slots = torch.empty(count, dtype=torch.int64)

    def attend(self, layer: int, qkv: Tensor) -> Tensor:
        stored, angles = self._cache.layer(layer), (self._cos, self._sin)
        q = self._kernels.rotate_and_store(qkv, angles, self._slots, stored, self._config.num_heads)
        return self.attend_to(stored, q)

    def set(self, plan: BatchPlan, frequencies: Tensor) -> None:
        """Sets what the next run reads, from a batch's plan."""
        cos, sin = rotary_angles(plan.positions, frequencies)
        self._cos.copy_(cos)
        self._sin.copy_(sin)
        self._slots.copy_(plan.slot_mapping)
        self.read(plan.reads)


class _ImageReads(_PlannedReads):
    """What the layers read from the image cache. Implements `CrossCache`."""

    def __init__(
        self, count: int, num_seeing: int, cache: SlotCache, config: TextConfig, kernels: Kernels, buffers: Buffers
    ) -> None:
        super().__init__(cache, config, kernels, buffers)
        self._index = torch.empty(num_seeing, dtype=torch.int64)
        self._all_see = num_seeing == count

    def select(self, x: Tensor) -> Tensor:
        return x if self._all_see else self._kernels.take_rows(x, self._index)

    def merge(self, x: Tensor, seeing: Tensor) -> Tensor:
        return seeing if self._all_see else self._kernels.put_rows(x, self._index, seeing)

    def attend(self, layer: int, q: Tensor) -> Tensor:
        return self.attend_to(self._cache.layer(layer), q)

    def set(self, plan: CrossPlan) -> None:
        """Sets what the next run reads, from a batch's plan."""
        self._index.copy_(plan.index)
        self.read(plan.reads)
