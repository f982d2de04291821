"""The adapter's weights before training, and the model that trains them.

Owns how each kind of weight starts. Knows nothing of data or of the steps of training.
"""

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from spyglass_demo.adapter import (
    ASPECT_RATIOS,
    FFN_SIZE,
    MAX_TILES,
    NUM_GLOBAL_LAYERS,
    NUM_LOCAL_LAYERS,
    OUTPUT_SIZE,
    PATCH_SIZE,
    TILE_SIZE,
    WIDTH,
    cross_layers,
)
from spyglass_demo.smollm2 import Sizes

Array = npt.NDArray[np.float32]

_GRID = TILE_SIZE // PATCH_SIZE
_NUM_POSITIONS = _GRID * _GRID + 1  # the class token comes first
_OPEN = 2.0  # tanh(2) = 0.96
_SEED = 20


def start_tensors(text: Sizes) -> dict[str, Array]:
    """Every weight that the text model lacks: name to float32 array, the same on every call."""
    rng = np.random.default_rng(_SEED)
    tensors = dict(_vision_tensors(rng))
    tensors["multi_modal_projector.weight"] = _matrix(rng, text.hidden_size, OUTPUT_SIZE)
    tensors["multi_modal_projector.bias"] = _zeros(text.hidden_size)
    for layer in cross_layers():
        tensors.update(_cross_tensors(rng, f"language_model.model.layers.{layer}.", text))
    return tensors


def _vision_tensors(rng: np.random.Generator) -> Iterator[tuple[str, Array]]:
    prefix = "vision_model."
    patch = _matrix(rng, WIDTH, 3 * PATCH_SIZE * PATCH_SIZE)
    yield prefix + "patch_embedding.weight", patch.reshape(WIDTH, 3, PATCH_SIZE, PATCH_SIZE)
    yield prefix + "class_embedding", _normal(rng, WIDTH, std=1.0)
    yield prefix + "gated_positional_embedding.gate", _filled(1, _OPEN)
    yield prefix + "gated_positional_embedding.embedding", _normal(rng, _NUM_POSITIONS, WIDTH, std=WIDTH**-0.5)
    yield prefix + "gated_positional_embedding.tile_embedding.weight", _by_aspect_ratio(_canvas_positions())
    for name in ("pre_tile_positional_embedding", "post_tile_positional_embedding"):
        yield f"{prefix}{name}.gate", _filled(1, _OPEN)
        places = _normal(rng, MAX_TILES, MAX_TILES, 1, WIDTH, std=WIDTH**-0.5)
        yield f"{prefix}{name}.embedding.weight", _by_aspect_ratio(places)
    for name in ("layernorm_pre", "layernorm_post"):
        yield from _layer_norm(f"{prefix}{name}.", WIDTH)
    for layer in range(NUM_LOCAL_LAYERS):
        yield from _encoder_layer(rng, f"{prefix}transformer.layers.{layer}.")
    for layer in range(NUM_GLOBAL_LAYERS):
        yield from _encoder_layer(rng, f"{prefix}global_transformer.layers.{layer}.")
        for gate in ("gate_attn", "gate_ffn"):
            yield f"{prefix}global_transformer.layers.{layer}.{gate}", _filled(1, math.pi / 4)


def _encoder_layer(rng: np.random.Generator, prefix: str) -> Iterator[tuple[str, Array]]:
    """A layer that changes nothing at first: that is learned from faster than from random changes."""
    yield from _layer_norm(prefix + "input_layernorm.", WIDTH)
    for name in ("q_proj", "k_proj", "v_proj"):
        yield f"{prefix}self_attn.{name}.weight", _matrix(rng, WIDTH, WIDTH)
    yield prefix + "self_attn.o_proj.weight", _zeros(WIDTH, WIDTH)
    yield from _layer_norm(prefix + "post_attention_layernorm.", WIDTH)
    yield prefix + "mlp.fc1.weight", _matrix(rng, FFN_SIZE, WIDTH)
    yield prefix + "mlp.fc1.bias", _zeros(FFN_SIZE)
    yield prefix + "mlp.fc2.weight", _zeros(WIDTH, FFN_SIZE)
    yield prefix + "mlp.fc2.bias", _zeros(WIDTH)


def _cross_tensors(rng: np.random.Generator, prefix: str, text: Sizes) -> Iterator[tuple[str, Array]]:
    hidden, ffn = text.hidden_size, text.intermediate_size
    head_size = hidden // text.num_heads
    kv_size = head_size * text.num_kv_heads
    yield prefix + "input_layernorm.weight", _filled(hidden, 1)
    for name, rows, columns in (("q", hidden, hidden), ("k", kv_size, hidden), ("v", kv_size, hidden)):
        yield f"{prefix}cross_attn.{name}_proj.weight", _matrix(rng, rows, columns)
    yield prefix + "cross_attn.o_proj.weight", _zeros(hidden, hidden)
    for name in ("q_norm", "k_norm"):
        yield f"{prefix}cross_attn.{name}.weight", _filled(head_size, 1)
    yield prefix + "post_attention_layernorm.weight", _filled(hidden, 1)
    yield prefix + "mlp.gate_proj.weight", _matrix(rng, ffn, hidden)
    yield prefix + "mlp.up_proj.weight", _matrix(rng, ffn, hidden)
    yield prefix + "mlp.down_proj.weight", _zeros(hidden, ffn)
    for gate in ("cross_attn_attn_gate", "cross_attn_mlp_gate"):
        yield prefix + gate, _filled(1, _OPEN)  # what starts at zero are the matrices behind the gates


def _canvas_positions() -> Array:
    """Where each patch lies on the largest canvas: [MAX_TILES, MAX_TILES, positions, WIDTH].

    2-D sine and cosine: half of the width tells the row, half the column, in patches. Class tokens have zeros.
    """
    side = MAX_TILES * _GRID
    y, x = np.indices((side, side))[..., None]
    frequencies = 100.0 ** -(np.arange(WIDTH // 4) / (WIDTH // 4))
    angles = np.concatenate([y * frequencies, x * frequencies], axis=-1)
    waves = np.concatenate([np.sin(angles), np.cos(angles)], axis=-1)
    tiles = waves.reshape(MAX_TILES, _GRID, MAX_TILES, _GRID, WIDTH).swapaxes(1, 2)
    grid = np.zeros((MAX_TILES, MAX_TILES, _NUM_POSITIONS, WIDTH), np.float32)
    grid[:, :, 1:] = tiles.reshape(MAX_TILES, MAX_TILES, -1, WIDTH)
    return grid


def _by_aspect_ratio(grid: Array) -> Array:
    """Lays out what belongs to each place of a tile, as checkpoints have it: a row for each aspect ratio id.

    From [MAX_TILES, MAX_TILES, positions, WIDTH] to [ids, tiles * positions * WIDTH]. Tiles that an aspect
    ratio does not have, and id 0, are zeros.
    """
    table = np.zeros((len(ASPECT_RATIOS) + 1, MAX_TILES, *grid.shape[2:]), np.float32)
    for index, (rows, columns) in enumerate(ASPECT_RATIOS, start=1):
        table[index, : rows * columns] = grid[:rows, :columns].reshape(rows * columns, *grid.shape[2:])
    return table.reshape(len(table), -1)


def _layer_norm(prefix: str, size: int) -> Iterator[tuple[str, Array]]:
    yield prefix + "weight", _filled(size, 1)
    yield prefix + "bias", _zeros(size)


def _matrix(rng: np.random.Generator, rows: int, columns: int) -> Array:
    """Random weights [out, in] that keep a signal's size."""
    return _normal(rng, rows, columns, std=columns**-0.5)


def _normal(rng: np.random.Generator, *shape: int, std: float) -> Array:
    return rng.standard_normal(shape, dtype=np.float32) * np.float32(std)


def _filled(size: int, value: float) -> Array:
    return np.full(size, value, np.float32)


def _zeros(*shape: int) -> Array:
    return np.zeros(shape, np.float32)
