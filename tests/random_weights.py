"""Sizes and seeded random weights of tiny Mllama models, under the names of the published checkpoints.

All gates are open (|tanh| at least 0.5), no norm or bias is neutral, and logits have a standard
deviation of about 2, so that a mistake anywhere in a model shows in its logits.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class VisionSizes:
    """The vision encoder. `intermediate_layers` are those whose inputs are handed out as well."""

    tile_size: int = 28
    patch_size: int = 14
    max_tiles: int = 4
    hidden_size: int = 32
    num_heads: int = 2
    intermediate_size: int = 64
    num_layers: int = 5
    num_global_layers: int = 2
    intermediate_layers: tuple[int, ...] = (1, 3)

    @property
    def num_positions(self) -> int:
        """Patches of a tile and the class token."""
        return (self.tile_size // self.patch_size) ** 2 + 1

    @property
    def output_size(self) -> int:
        return self.hidden_size * (1 + len(self.intermediate_layers))

    @property
    def aspect_ratios(self) -> list[tuple[int, int]]:
        """(rows, columns) of tiles in the order of their ids, which start at 1."""
        side = range(1, self.max_tiles + 1)
        return [(rows, columns) for rows in side for columns in side if rows * columns <= self.max_tiles]


@dataclass(frozen=True)
class Sizes:
    """A whole model; `num_layers` counts the cross-attention layers too."""

    hidden_size: int = 64
    num_heads: int = 4
    num_kv_heads: int = 2
    intermediate_size: int = 96
    num_layers: int = 6
    cross_layers: tuple[int, ...] = (1, 4)
    context_length: int = 4096
    rope_theta: float = 500_000.0
    rope_scaled: bool = True
    vision: VisionSizes = VisionSizes()

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.num_heads


def random_tensors(sizes: Sizes, vocab_size: int, seed: int) -> Tensors:
    """Every weight in float32, under the names of the published checkpoints."""
    random = _Random(seed)
    return dict([*_text_tensors(random, sizes, vocab_size), *_vision_tensors(random, sizes)])


class _Random:
    """Weights by kind, all drawn from one generator."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int, std: float) -> torch.Tensor:
        return torch.randn(*shape, generator=self._generator) * std

    def matrix(self, rows: int, columns: int, gain: float = 1.0) -> torch.Tensor:
        return self.normal(rows, columns, std=gain * columns**-0.5)

    def norm(self, size: int) -> torch.Tensor:
        return torch.rand(size, generator=self._generator) + 0.5

    def gate(self) -> torch.Tensor:
        size = 0.6 + 0.6 * torch.rand(1, generator=self._generator)  # tanh: 0.54 to 0.83
        return size * (1 if torch.rand(1, generator=self._generator) < 0.5 else -1)


def _text_tensors(random: _Random, sizes: Sizes, vocab_size: int) -> Iterator[tuple[str, torch.Tensor]]:
    hidden, kv_size = sizes.hidden_size, sizes.num_kv_heads * sizes.head_size
    yield "language_model.model.embed_tokens.weight", random.normal(vocab_size + 8, hidden, std=1)
    for layer in range(sizes.num_layers):
        prefix = f"language_model.model.layers.{layer}."
        cross = layer in sizes.cross_layers
        attention = prefix + ("cross_attn." if cross else "self_attn.")
        yield prefix + "input_layernorm.weight", random.norm(hidden)
        yield attention + "q_proj.weight", random.matrix(hidden, hidden, gain=1.5)
        yield attention + "k_proj.weight", random.matrix(kv_size, hidden)
        yield attention + "v_proj.weight", random.matrix(kv_size, hidden)
        yield attention + "o_proj.weight", random.matrix(hidden, hidden)
        yield prefix + "post_attention_layernorm.weight", random.norm(hidden)
        yield prefix + "mlp.gate_proj.weight", random.matrix(sizes.intermediate_size, hidden)
        yield prefix + "mlp.up_proj.weight", random.matrix(sizes.intermediate_size, hidden)
        yield prefix + "mlp.down_proj.weight", random.matrix(hidden, sizes.intermediate_size)
        if cross:
            yield attention + "q_norm.weight", random.norm(sizes.head_size)
            yield attention + "k_norm.weight", random.norm(sizes.head_size)
            yield prefix + "cross_attn_attn_gate", random.gate()
            yield prefix + "cross_attn_mlp_gate", random.gate()
    yield "language_model.model.norm.weight", random.norm(hidden)
    yield "language_model.lm_head.weight", random.matrix(vocab_size, hidden, gain=2)


def _vision_tensors(random: _Random, sizes: Sizes) -> Iterator[tuple[str, torch.Tensor]]:
    vision, width = sizes.vision, sizes.vision.hidden_size
    patch = vision.patch_size
    yield "vision_model.patch_embedding.weight", random.normal(width, 3, patch, patch, std=1 / patch)
    yield "vision_model.class_embedding", random.normal(width, std=1)
    positions = "vision_model.gated_positional_embedding."
    yield positions + "gate", random.gate()
    yield positions + "embedding", random.normal(vision.num_positions, width, std=1)
    yield positions + "tile_embedding.weight", _aspect_ratio_table(random, vision, vision.num_positions)
    for name in ("pre_tile_positional_embedding", "post_tile_positional_embedding"):
        yield f"vision_model.{name}.gate", random.gate()
        yield f"vision_model.{name}.embedding.weight", _aspect_ratio_table(random, vision, 1)
    for name in ("layernorm_pre", "layernorm_post"):
        yield f"vision_model.{name}.weight", random.norm(width)
        yield f"vision_model.{name}.bias", random.normal(width, std=0.3)
    for layer in range(vision.num_layers):
        yield from _encoder_layer(random, vision, f"vision_model.transformer.layers.{layer}.")
    for layer in range(vision.num_global_layers):
        prefix = f"vision_model.global_transformer.layers.{layer}."
        yield from _encoder_layer(random, vision, prefix)
        yield prefix + "gate_attn", random.gate()
        yield prefix + "gate_ffn", random.gate()
    yield "multi_modal_projector.weight", random.matrix(sizes.hidden_size, vision.output_size)
    yield "multi_modal_projector.bias", random.normal(sizes.hidden_size, std=0.3)


def _encoder_layer(random: _Random, vision: VisionSizes, prefix: str) -> Iterator[tuple[str, torch.Tensor]]:
    width, ffn = vision.hidden_size, vision.intermediate_size
    for name in ("input_layernorm", "post_attention_layernorm"):
        yield f"{prefix}{name}.weight", random.norm(width)
        yield f"{prefix}{name}.bias", random.normal(width, std=0.3)
    for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
        yield f"{prefix}self_attn.{name}.weight", random.matrix(width, width)
    yield prefix + "mlp.fc1.weight", random.matrix(ffn, width)
    yield prefix + "mlp.fc1.bias", random.normal(ffn, std=0.3)
    yield prefix + "mlp.fc2.weight", random.matrix(width, ffn)
    yield prefix + "mlp.fc2.bias", random.normal(width, std=0.3)


def _aspect_ratio_table(random: _Random, vision: VisionSizes, num_positions: int) -> torch.Tensor:
    """What Meta keeps for each place (row, column) of a tile, laid out for each aspect ratio.

    Shape [ids, tiles * positions * width]; zeros for padding tiles and for id 0, which is no image.
    """
    grid = random.normal(vision.max_tiles, vision.max_tiles, num_positions, vision.hidden_size, std=1)
    table = torch.zeros(len(vision.aspect_ratios) + 1, vision.max_tiles, num_positions, vision.hidden_size)
    for index, (rows, columns) in enumerate(vision.aspect_ratios, start=1):
        table[index, : rows * columns] = grid[:rows, :columns].flatten(0, 1)
    return table.flatten(1)
