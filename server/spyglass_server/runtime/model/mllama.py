"""The whole model, and the names of its parameters in Hugging Face checkpoints.

Fused parameters are the concatenation of several tensors of a checkpoint.
"""

import re

from torch import nn

from spyglass_server.runtime.config import ModelConfig
from spyglass_server.runtime.mesh import ALONE, Mesh
from spyglass_server.runtime.model.text import TextModel
from spyglass_server.runtime.model.vision import VisionEncoder, check_vision_config


class Mllama(nn.Module):
    """Vision encoder and text model, or one rank's part of them. `config` is that of the whole model."""

    def __init__(self, config: ModelConfig, mesh: Mesh = ALONE) -> None:
        """Raises ValueError if the configuration is inconsistent, or cannot be divided among the mesh's ranks."""
        super().__init__()
        check_vision_config(config.vision)
        self.config = config
        self.mesh = mesh
        self.text = TextModel(config.text, mesh)
        self.vision = VisionEncoder(config.vision, config.text.hidden_size, mesh)


_MODULES = {
    "text.embedding": "language_model.embed_tokens",
    "text.layers": "language_model.layers",
    "text.norm": "language_model.norm",
    "text.head": "lm_head",
    "vision.patch": "vision_model.patch_embedding",
    "vision.class_embedding": "vision_model.class_embedding",
    "vision.position": "vision_model.gated_positional_embedding.embedding",
    "vision.position_gate": "vision_model.gated_positional_embedding.gate",
    "vision.tile_position": "vision_model.gated_positional_embedding.tile_embedding.weight",
    "vision.pre_tile": "vision_model.pre_tile_positional_embedding.embedding.weight",
    "vision.pre_tile_gate": "vision_model.pre_tile_positional_embedding.gate",
    "vision.post_tile": "vision_model.post_tile_positional_embedding.embedding.weight",
    "vision.post_tile_gate": "vision_model.post_tile_positional_embedding.gate",
    "vision.pre_norm": "vision_model.layernorm_pre",
    "vision.post_norm": "vision_model.layernorm_post",
    "vision.layers": "vision_model.transformer.layers",
    "vision.global_layers": "vision_model.global_transformer.layers",
    "vision.projector": "multi_modal_projector",
}
_SELF = {
    "attention_norm": ("input_layernorm",),
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "o": ("self_attn.o_proj",),
    "mlp_norm": ("post_attention_layernorm",),
    "mlp.gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "mlp.down": ("mlp.down_proj",),
}
_CROSS = {
    **_SELF,
    "q": ("cross_attn.q_proj",),
    "kv": ("cross_attn.k_proj", "cross_attn.v_proj"),
    "o": ("cross_attn.o_proj",),
    "q_norm": ("cross_attn.q_norm",),
    "k_norm": ("cross_attn.k_norm",),
    "attention_gate": ("cross_attn_attn_gate",),
    "mlp_gate": ("cross_attn_mlp_gate",),
}
_VISION = {
    "attention_norm": ("input_layernorm",),
    "attention.qkv": _SELF["qkv"],
    "attention.o": _SELF["o"],
    "mlp_norm": ("post_attention_layernorm",),
    "fc1": ("mlp.fc1",),
    "fc2": ("mlp.fc2",),
    "attention_gate": ("gate_attn",),
    "mlp_gate": ("gate_ffn",),
}


def checkpoint_names(parameter: str, config: ModelConfig) -> tuple[str, ...]:
    """Returns the checkpoint's tensors, in order, that make up one of our parameters."""
    layer = re.fullmatch(r"(text\.layers|vision\.layers|vision\.global_layers)\.(\d+)\.(.+)", parameter)
    if layer is None:
        stem, kind = _split_kind(parameter)
        return (_MODULES[stem] + kind,)
    stack, index, rest = layer.groups()
    stem, kind = _split_kind(rest)
    if stack != "text.layers":
        parts = _VISION[stem]
    else:
        parts = (_CROSS if int(index) in config.text.cross_layers else _SELF)[stem]
    return tuple(f"{_MODULES[stack]}.{index}.{part}{kind}" for part in parts)


def canonical_name(name: str) -> str:
    """Returns a checkpoint's tensor name in the form that `checkpoint_names` uses; versions differ in prefixes."""
    name = name.removeprefix("model.")
    name = name.removeprefix("language_model.") if name.startswith("language_model.lm_head") else name
    return name.replace("language_model.model.", "language_model.", 1)


def _split_kind(name: str) -> tuple[str, str]:
    """Splits "qkv.weight" into "qkv" and ".weight"; a bare parameter has no kind."""
    stem, dot, kind = name.rpartition(".")
    return (stem, dot + kind) if kind in ("weight", "bias") else (name, "")
