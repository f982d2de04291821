"""How a model is sharded over several ranks, as in Megatron-LM (Shoeybi et al., 2019).

Layers into attention and feed-forward are cut by their outputs; layers out of them by their inputs, with the products
summed over the ranks; embedding and head by the vocabulary. Heads that share a key head stay together; with more ranks
than key heads, several ranks have the same key head. Sizes that do not divide are padded with zeros, which change
nothing. Norms, gates and position tables are on all ranks.
"""

import re
from dataclasses import dataclass, replace

from spyglass_server.planning.division import heads_of_rank, per_rank
from spyglass_server.runtime.config import ModelConfig, TextConfig, VisionConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """A rank's part of a tensor: begin … end - 1 along a dimension, padded with zeros to `size`."""

    dim: int
    begin: int
    end: int
    size: int


def sharded_text(config: TextConfig, num_ranks: int) -> TextConfig:
    """The sizes of one rank's part of the text model; the vocabulary's is that of the whole model.

    Raises:
        ValueError: the heads cannot be divided among `num_ranks` ranks.
    """
    heads, kv_heads = heads_of_rank(config.num_heads, config.num_kv_heads, num_ranks)
    return replace(
        config,
        num_heads=heads,
        num_kv_heads=kv_heads,
        intermediate_size=per_rank(config.intermediate_size, num_ranks),
    )


def sharded_vision(config: VisionConfig, num_ranks: int) -> VisionConfig:
    """The sizes of one rank's part of the vision encoder's layers."""
    return replace(
        config,
        num_heads=per_rank(config.num_heads, num_ranks),
        intermediate_size=per_rank(config.intermediate_size, num_ranks),
    )


def sharded(config: ModelConfig, num_ranks: int) -> ModelConfig:
    """The sizes of one rank's part of a model. Raises ValueError if it cannot be divided."""
    return replace(config, text=sharded_text(config.text, num_ranks), vision=sharded_vision(config.vision, num_ranks))


_HEADS, _KV_HEADS, _WIDTH, _EMBEDDINGS, _VOCABULARY = range(5)
_VISION_HEADS, _VISION_WIDTH, _VISION_HIDDEN, _FEATURES = range(5, 9)
_BY_STEM = {
    r"text\.embedding": (0, (_EMBEDDINGS,)),
    r"text\.head": (0, (_VOCABULARY,)),
    r"text\.layers\.\d+\.qkv": (0, (_HEADS, _KV_HEADS, _KV_HEADS)),
    r"text\.layers\.\d+\.q": (0, (_HEADS,)),
    r"text\.layers\.\d+\.kv": (0, (_KV_HEADS, _KV_HEADS)),
    r"text\.layers\.\d+\.o": (1, (_HEADS,)),
    r"text\.layers\.\d+\.mlp\.gate_up": (0, (_WIDTH, _WIDTH)),
    r"text\.layers\.\d+\.mlp\.down": (1, (_WIDTH,)),
    r"vision\.patch": (0, (_VISION_HIDDEN,)),
    r"vision\.projector": (1, (_FEATURES,)),
    r"vision\.(global_)?layers\.\d+\.attention\.qkv": (0, (_VISION_HEADS,) * 3),
    r"vision\.(global_)?layers\.\d+\.attention\.o": (1, (_VISION_HEADS,)),
    r"vision\.(global_)?layers\.\d+\.fc1": (0, (_VISION_WIDTH,)),
    r"vision\.(global_)?layers\.\d+\.fc2": (1, (_VISION_WIDTH,)),
}
"""For parameters that are cut: the dimension, and the unit by which each of their parts in a checkpoint is cut."""


@dataclass(frozen=True, slots=True)
class Sharding:
    """Which part of each tensor a rank has."""

    config: ModelConfig
    rank: int
    num_ranks: int

    def cuts(self, parameter: str, num_parts: int) -> list[Cut | None]:
        """Returns the cuts of a parameter's parts, in the checkpoint's order; None is the whole.

        A bias after a sum is whole on the first rank and zero on the others.
        """
        if self.num_ranks == 1:
            return [None] * num_parts
        stem, _, kind = parameter.rpartition(".")
        for pattern, (dim, units) in _BY_STEM.items():
            if re.fullmatch(pattern, stem):
                if dim == 1 and kind == "bias":
                    size = (self.config.text if stem == "vision.projector" else self.config.vision).hidden_size
                    return [Cut(dim=0, begin=0, end=size if self.rank == 0 else 0, size=size)]
                return [self._cut(dim, unit) for unit in units]
        return [None] * num_parts

    def _cut(self, dim: int, unit: int) -> Cut:
        text, vision = self.config.text, self.config.vision
        whole = {
            _EMBEDDINGS: text.num_embeddings,
            _VOCABULARY: text.vocab_size,
            _WIDTH: text.intermediate_size,
            _VISION_HIDDEN: vision.hidden_size,
            _VISION_WIDTH: vision.intermediate_size,
            _FEATURES: vision.output_size,
        }
        if unit in whole:
            return self._range(dim, whole[unit], 1)
        if unit == _VISION_HEADS:
            return self._range(dim, vision.num_heads, vision.head_dim)
        if self.num_ranks <= text.num_kv_heads:
            shared = text.num_heads // text.num_kv_heads if unit == _HEADS else 1
            return self._range(dim, text.num_kv_heads, shared * text.head_dim)
        if unit == _HEADS:
            return self._range(dim, text.num_heads, text.head_dim)
        begin = self.rank * text.num_kv_heads // self.num_ranks * text.head_dim
        return Cut(dim=dim, begin=begin, end=begin + text.head_dim, size=text.head_dim)

    def _range(self, dim: int, count: int, width: int) -> Cut:
        """Returns this rank's cut of `count` units, each `width` wide."""
        own = per_rank(count, self.num_ranks)
        begin = min(self.rank * own, count)
        end = min(begin + own, count)
        return Cut(dim=dim, begin=begin * width, end=end * width, size=own * width)
