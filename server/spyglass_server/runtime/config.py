"""The configuration of a Mllama checkpoint, read from config.json by transformers, which knows its versions."""

import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from spyglass_server.planning.division import SPARE_EMBEDDINGS
from spyglass_server.runtime.described import described
from spyglass_server.runtime.quantized_checkpoint import stored_quantization

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeConfig:
    """Rotary position embedding; `factor` 1 means plain, any other value Llama 3's scaling."""

    theta: float
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position: int = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class TextConfig:
    """The text model. `cross_layers` are indices among all `num_layers`."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    norm_eps: float
    max_position: int
    cross_layers: tuple[int, ...]
    rope: RopeConfig
    tied_embeddings: bool

    @property
    def num_embeddings(self) -> int:
        """Tokens that have an embedding: some, such as the image token, have no logit."""
        return self.vocab_size + SPARE_EMBEDDINGS

    @property
    def num_self_layers(self) -> int:
        return self.num_layers - len(self.cross_layers)


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionConfig:
    """The vision encoder. The states before each of the `intermediate_layers` are part of the output."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_global_layers: int
    num_heads: int
    head_dim: int
    norm_eps: float
    tile_size: int
    patch_size: int
    max_tiles: int
    intermediate_layers: tuple[int, ...]
    aspect_ratios: tuple[tuple[int, int], ...]
    output_size: int

    @property
    def patches_per_side(self) -> int:
        """Patches in each row and each column of a tile."""
        return self.tile_size // self.patch_size

    @property
    def tokens_per_tile(self) -> int:
        """Patches and the class token."""
        return self.patches_per_side**2 + 1

    def aspect_ratio_id(self, rows: int, columns: int) -> int:
        """The row of the aspect-ratio tables for a canvas; 0 is for padding."""
        return self.aspect_ratios.index((rows, columns)) + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """The configuration of a checkpoint.

    `dtype` is that of its saved weights, except in linear layers if `quantization` is "fp8" rather than "none".
    """

    text: TextConfig
    vision: VisionConfig
    dtype: torch.dtype
    image_mean: tuple[float, ...]
    image_std: tuple[float, ...]
    quantization: str = "none"


def load_config(folder: Path) -> ModelConfig:
    """Reads a checkpoint folder's configuration.

    Raises:
        ValueError: it is not a Mllama checkpoint, or not one that this engine can run.
        OSError: a file cannot be read.
    """
    raw = json.loads((folder / "config.json").read_text())
    if raw.get("model_type") != "mllama":
        raise ValueError(f"{folder} holds a model of type {raw.get('model_type')!r}; only 'mllama' is served")
    found = described(folder)
    text, vision = SimpleNamespace(**found["text_config"]), SimpleNamespace(**found["vision_config"])
    if text.hidden_act != "silu" or vision.hidden_act != "gelu":
        raise ValueError(f"activations {text.hidden_act!r} and {vision.hidden_act!r} are not those of Mllama")
    mean, std = _normalisation(folder)
    return ModelConfig(
        text=TextConfig(
            vocab_size=text.vocab_size,
            hidden_size=text.hidden_size,
            intermediate_size=text.intermediate_size,
            num_layers=text.num_hidden_layers,
            num_heads=text.num_attention_heads,
            num_kv_heads=text.num_key_value_heads,
            head_dim=text.hidden_size // text.num_attention_heads,
            norm_eps=text.rms_norm_eps,
            max_position=text.max_position_embeddings,
            cross_layers=tuple(text.cross_attention_layers),
            rope=_rope(text.rope_parameters),
            tied_embeddings=bool(text.tie_word_embeddings),
        ),
        vision=VisionConfig(
            hidden_size=vision.hidden_size,
            intermediate_size=vision.intermediate_size,
            num_layers=vision.num_hidden_layers,
            num_global_layers=vision.num_global_layers,
            num_heads=vision.attention_heads,
            head_dim=vision.hidden_size // vision.attention_heads,
            norm_eps=vision.norm_eps,
            tile_size=vision.image_size,
            patch_size=vision.patch_size,
            max_tiles=vision.max_num_tiles,
            intermediate_layers=tuple(vision.intermediate_layers_indices),
            aspect_ratios=tuple((rows, columns) for rows, columns in vision.supported_aspect_ratios),
            output_size=vision.vision_output_dim,
        ),
        dtype=_dtype(found.get("dtype") or text.dtype),
        image_mean=mean,
        image_std=std,
        quantization=stored_quantization(raw),
    )


def _rope(parameters: dict[str, Any]) -> RopeConfig:
    kind = parameters.get("rope_type", "default")
    theta = float(parameters["rope_theta"])
    if kind == "default":
        return RopeConfig(theta=theta)
    if kind != "llama3":
        raise ValueError(f"rotary embedding of type {kind!r} is not supported; Mllama has 'llama3'")
    return RopeConfig(
        theta=theta,
        factor=float(parameters["factor"]),
        low_freq_factor=float(parameters["low_freq_factor"]),
        high_freq_factor=float(parameters["high_freq_factor"]),
        original_max_position=int(parameters["original_max_position_embeddings"]),
    )


def _dtype(name: str | None) -> torch.dtype:
    found = getattr(torch, name) if name else torch.float32
    assert isinstance(found, torch.dtype)
    return found


def _normalisation(folder: Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    path = folder / "preprocessor_config.json"
    raw = json.loads(path.read_text()) if path.exists() else {}
    return tuple(raw.get("image_mean", CLIP_MEAN)), tuple(raw.get("image_std", CLIP_STD))
