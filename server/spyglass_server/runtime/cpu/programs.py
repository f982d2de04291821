"""Small steps as programs: all operations of the text model's layers in one call.

A program is recorded when a batch of its kind comes first; inputs are then copied to where it reads them.
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
"""To record one takes about ten milliseconds."""


class Programs:
    """Those of a model, by how many tokens there are, how many of these see images, and whether all are sampled.

    They share the memory of what they compute on the way.
    """

    def __init__(self, model: TextModel, memory: Memory, frequencies: Tensor, kernels: Kernels) -> None:
        """`frequencies` float32 [head_dim / 2] of the rotary embedding."""
        self._model, self._memory, self._frequencies, self._kernels = model, memory, frequencies, kernels
        self._programs: dict[tuple[int, int, bool], _Program] = {}
        self._buffers = Buffers(_FIRST_TOKENS)
        parts = [part for each in (model.layers, model.norm, model.head) for part in each.modules()]
        leaves = [part for part in parts if not any(part.children())]
        is_native = all(isinstance(leaf, NativeLinear | NativeRMSNorm) for leaf in leaves)
        self._is_possible = is_native and model.mesh.size == 1  # what torch computes cannot be recorded

    def logits(self, plan: BatchPlan) -> Tensor | None:
        """Computes a batch, and returns the logits of the tokens that are sampled, which hold until the next one.

        None for a large batch, and for one of which more is wanted than that.
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
        self._programs[key] = program  # as the last one used
        if len(self._programs) > _MAX_PROGRAMS:
            del self._programs[next(iter(self._programs))]
        return program.run(plan)

    def _recorded(self, count: int, num_seeing: int, are_sampled: bool) -> "_Program":
        model, memory, kernels = self._model, self._memory, self._kernels
        return _Program(count, num_seeing, are_sampled, self._buffers, model, memory, self._frequencies, kernels)


class _Program:
    """The program for so many tokens, of which so many see images, and of which all are sampled, or some."""

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
                        x, added = layer.attention_norm.add(x, added)[0], None  # for the sum alone
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
    """What attention of all layers to one of the caches reads, changed from run to run."""

    def __init__(self, cache: SlotCache, config: TextConfig, kernels: Kernels, buffers: Buffers) -> None:
        self._cache, self._config, self._kernels, self._buffers = cache, config, kernels, buffers
        self._reads = Reads()

    def read(self, reads: object) -> None:
        """Has the next run read what a plan with kernels says."""
        assert isinstance(reads, TokenReads)
        self._reads.set(reads)
        self._reads.make_room(self._config.num_heads * (self._config.head_dim + 2), self._buffers.take_parts)

    def forget(self) -> None:
        """Lets go of that."""
        self._reads.forget()

    def attend_to(self, stored: tuple[Tensor, Tensor], q: Tensor) -> Tensor:
        """Attention of q [tokens, heads, head_dim] to a layer of the cache."""
        return self._kernels.attention(q, by_head(stored, q.shape[2]), self._reads)


class _TextReads(_PlannedReads):
    """What the layers read of the text's cache. Implements `KVCache` while a program is recorded."""

    def __init__(self, count: int, cache: SlotCache, config: TextConfig, kernels: Kernels, buffers: Buffers) -> None:
        super().__init__(cache, config, kernels, buffers)
        self._cos, self._sin = (torch.empty(count, 1, config.head_dim) for _ in range(2))
        self._slots = torch.empty(count, dtype=torch.int64)

    def attend(self, layer: int, qkv: Tensor) -> Tensor:
        stored, angles = self._cache.layer(layer), (self._cos, self._sin)
        q = self._kernels.rotate_and_store(qkv, angles, self._slots, stored, self._config.num_heads)
        return self.attend_to(stored, q)

    def set(self, plan: BatchPlan, frequencies: Tensor) -> None:
        """Has the next run read what a batch reads."""
        cos, sin = rotary_angles(plan.positions, frequencies)
        self._cos.copy_(cos)
        self._sin.copy_(sin)
        self._slots.copy_(plan.slot_mapping)
        self.read(plan.reads)


class _ImageReads(_PlannedReads):
    """What the layers read of the images' cache. Implements `CrossCache`."""

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
        """Has the next run read what tokens read."""
        self._index.copy_(plan.index)
        self.read(plan.reads)
