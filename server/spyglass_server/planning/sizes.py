"""The sizes of a Mllama model, or of one rank's part, that determine memory and time."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from spyglass_server.planning.division import SPARE_EMBEDDINGS, heads_of_rank, per_rank
from spyglass_server.planning.memory import PAGE_SIZE, CacheUnits, ParameterCount
from spyglass_server.planning.published import CONFIGS

ITEMSIZES = {"bfloat16": 2, "float16": 2, "float32": 4}
"""Bytes per number in each precision."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextSizes:
    """The text model. `num_layers` counts the cross-attention layers too."""

    vocab_size: int
    embeddings: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_cross_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position: int

    @property
    def num_self_layers(self) -> int:
        """Self-attention layers, the only ones with keys and values of text."""
        return self.num_layers - self.num_cross_layers

    @property
    def self_layer(self) -> int:
        """Weights of the linear layers in a self-attention layer."""
        return self.hidden_size * (2 * self.num_heads + 2 * self.num_kv_heads) * self.head_dim + self._feed_forward

    @property
    def cross_layer(self) -> int:
        """Weights that multiply a token in a cross-attention layer: all but those for images."""
        return self.hidden_size * 2 * self.num_heads * self.head_dim + self._feed_forward

    @property
    def image_kv(self) -> int:
        """Weights that make an image's keys and values in a cross-attention layer."""
        return 2 * self.hidden_size * self.num_kv_heads * self.head_dim

    @property
    def head(self) -> int:
        """Weights of the head."""
        return self.hidden_size * self.vocab_size

    @property
    def outputs(self) -> int:
        """Outputs of all linear layers, each of which has a scale in 8 bits."""
        rest = self.hidden_size + 2 * self.intermediate_size + self.hidden_size
        attention = (self.num_heads + 2 * self.num_kv_heads) * self.head_dim
        return self.num_layers * (attention + rest)

    @property
    def _feed_forward(self) -> int:
        return 3 * self.hidden_size * self.intermediate_size


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionSizes:
    """The vision encoder. `patch_outputs` are the outputs of the patch embedding."""

    hidden_size: int
    patch_outputs: int
    intermediate_size: int
    num_layers: int
    num_global_layers: int
    num_heads: int
    head_dim: int
    tile_size: int
    patch_size: int
    max_tiles: int
    num_aspect_ratios: int
    output_size: int

    @property
    def tokens_per_tile(self) -> int:
        """Patches and the class token."""
        return (self.tile_size // self.patch_size) ** 2 + 1

    @property
    def layer(self) -> int:
        """Weights of the linear layers in a layer."""
        return self.hidden_size * (4 * self.num_heads * self.head_dim + 2 * self.intermediate_size)

    @property
    def parameters(self) -> int:
        """All but the projector's."""
        size, tokens = self.hidden_size, self.tokens_per_tile
        layers = self.num_layers + self.num_global_layers
        per_layer = self.layer + self.intermediate_size + size + 4 * size
        ratios = self.num_aspect_ratios + 1
        positions = tokens * size + ratios * self.max_tiles * size * (tokens + 2)
        patches = 3 * self.patch_size**2 * self.patch_outputs
        gates = 2 * self.num_global_layers + 3
        return layers * per_layer + patches + positions + 5 * size + gates


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSizes:
    """A model, or one rank's part of it. `dtype` and `quantization` are those of its checkpoint."""

    text: TextSizes
    vision: VisionSizes
    dtype: str = "bfloat16"
    quantization: str = "none"

    @classmethod
    def of(cls, raw: Mapping[str, Any]) -> "ModelSizes":
        """Reads a config.json; omitted sizes have transformers' defaults, which are sizes of the 11B model.

        Raises:
            ValueError: it is not that of a Mllama model, or sizes are missing or not numbers.
        """
        if raw.get("model_type") != "mllama":
            raise ValueError(f"the model is of type {raw.get('model_type')!r}; only 'mllama' is served")
        try:
            return _sizes(raw)
        except (KeyError, TypeError, AttributeError, ZeroDivisionError) as error:
            raise ValueError(f"the configuration is not that of a Mllama model: {error!r}") from error

    def count(self) -> ParameterCount:
        """The parameters."""
        text, vision = self.text, self.vision
        cross = text.num_cross_layers * (text.cross_layer + text.image_kv)
        linear = text.num_self_layers * text.self_layer + cross
        norms = (2 * text.num_layers + 1) * text.hidden_size + text.num_cross_layers * 2 * (text.head_dim + 1)
        projector = (vision.output_size + 1) * text.hidden_size
        other = text.head + text.embeddings * text.hidden_size + norms + projector + vision.parameters
        return ParameterCount(linear=linear, outputs=text.outputs, other=other)

    def cache_units(self, itemsize: int) -> CacheUnits:
        """Returns the sizes of pages and tiles at `itemsize` bytes per number."""
        text, vision = self.text, self.vision
        slot = 2 * text.num_kv_heads * text.head_dim * itemsize
        return CacheUnits(
            page_size=PAGE_SIZE,
            page_bytes=PAGE_SIZE * text.num_self_layers * slot,
            tile_bytes=vision.tokens_per_tile * text.num_cross_layers * slot,
            image_tiles=vision.max_tiles,
        )

    def of_rank(self, num_ranks: int) -> "ModelSizes":
        """Returns one rank's part, of `num_ranks`, padded where sizes do not divide.

        Raises:
            ValueError: the heads cannot be divided among the ranks.
        """
        text, vision = self.text, self.vision
        heads, kv_heads = heads_of_rank(text.num_heads, text.num_kv_heads, num_ranks)
        return replace(
            self,
            text=replace(
                text,
                num_heads=heads,
                num_kv_heads=kv_heads,
                intermediate_size=per_rank(text.intermediate_size, num_ranks),
                vocab_size=per_rank(text.vocab_size, num_ranks),
                embeddings=per_rank(text.embeddings, num_ranks),
            ),
            vision=replace(
                vision,
                patch_outputs=per_rank(vision.patch_outputs, num_ranks),
                output_size=per_rank(vision.output_size, num_ranks),
                num_heads=per_rank(vision.num_heads, num_ranks),
                intermediate_size=per_rank(vision.intermediate_size, num_ranks),
            ),
        )


def read_config(name: str) -> Mapping[str, Any]:
    """Reads the configuration of a published model, by name, or from a file or a folder.

    Raises:
        ValueError, OSError: there is none.
    """
    if name.lower() in CONFIGS:
        return CONFIGS[name.lower()]
    path = Path(name).expanduser()
    path = path / "config.json" if path.is_dir() else path
    if not path.exists():
        raise ValueError(f"{name!r} is none of {', '.join(CONFIGS)}, and no folder or file")
    raw = json.loads(path.read_text("utf-8"))
    if not isinstance(raw, dict):
        raise ValueError(f"{path} holds no JSON object")
    return raw


def with_defaults(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a config.json with all omitted sizes filled in."""
    text, vision = raw.get("text_config") or {}, raw.get("vision_config") or {}
    return {**raw, "text_config": {**_TEXT, **text}, "vision_config": {**_VISION, **vision}}


_TEXT = {
    "vocab_size": 128_256, "hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 40,
    "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 131_072,
    "cross_attention_layers": (3, 8, 13, 18, 23, 28, 33, 38),
}  # fmt: skip
_VISION = {
    "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_global_layers": 8,
    "attention_heads": 16, "image_size": 448, "patch_size": 14, "max_num_tiles": 4, "vision_output_dim": 7680,
    "supported_aspect_ratios": ((1, 1), (1, 2), (1, 3), (1, 4), (2, 1), (2, 2), (3, 1), (4, 1)),
}  # fmt: skip


def _sizes(raw: Mapping[str, Any]) -> ModelSizes:
    own, whole = raw.get("text_config") or {}, with_defaults(raw)
    text, vision = whole["text_config"], whole["vision_config"]
    return ModelSizes(
        text=TextSizes(
            vocab_size=text["vocab_size"],
            embeddings=text["vocab_size"] + SPARE_EMBEDDINGS,
            hidden_size=text["hidden_size"],
            intermediate_size=text["intermediate_size"],
            num_layers=text["num_hidden_layers"],
            num_cross_layers=len(text["cross_attention_layers"]),
            num_heads=text["num_attention_heads"],
            num_kv_heads=text["num_key_value_heads"],
            head_dim=text["hidden_size"] // text["num_attention_heads"],
            max_position=text["max_position_embeddings"],
        ),
        vision=VisionSizes(
            hidden_size=vision["hidden_size"],
            patch_outputs=vision["hidden_size"],
            intermediate_size=vision["intermediate_size"],
            num_layers=vision["num_hidden_layers"],
            num_global_layers=vision["num_global_layers"],
            num_heads=vision["attention_heads"],
            head_dim=vision["hidden_size"] // vision["attention_heads"],
            tile_size=vision["image_size"],
            patch_size=vision["patch_size"],
            max_tiles=vision["max_num_tiles"],
            num_aspect_ratios=len(vision["supported_aspect_ratios"]),
            output_size=vision["vision_output_dim"],
        ),
        dtype=raw.get("dtype") or raw.get("torch_dtype") or own.get("dtype") or own.get("torch_dtype") or "float32",
        quantization="fp8" if raw.get("quantization_config") else "none",
    )
