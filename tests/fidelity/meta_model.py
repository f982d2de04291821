"""Hugging Face Mllama checkpoints run by Meta's reference.

Owns the way back from the published layout to Meta's own, and the sizes that Meta's vision model writes
down as constants. What is computed is Meta's code alone.
"""

import copy
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file

from fidelity.meta_imports import Meta

MAX_TOKENS = 1024
Tensors = dict[str, torch.Tensor]


class MetaModel:
    """The reference with a checkpoint's weights, ready to run on one prompt at a time."""

    def __init__(self, meta: Meta, folder: Path, dtype: torch.dtype) -> None:
        config = json.loads((folder / "config.json").read_text())
        self._meta = meta
        self._dtype = dtype
        self._image_token: int = config["image_token_index"]
        with _default_dtype(dtype):
            self._model = _build(meta, config)
            _load(self._model, _to_meta(_read(folder), config))
            self._model.setup_cache(1, torch.device("cpu"), dtype)

    @torch.inference_mode()
    def prompt_logits(self, token_ids: Sequence[int], images: Sequence[Image.Image]) -> torch.Tensor:
        """Logits at every position: float32 [tokens, vocabulary]. `images` are RGB, in their tokens' order."""
        mask = self._meta.chat_format.create_vision_mask(list(token_ids), self._image_token)
        with _default_dtype(self._dtype):
            caches, cross_mask, row_mask = self._model.compute_vision_tokens_masks(
                batch_images=[list(images)],
                batch_masks=[copy.deepcopy(mask)],  # it is changed there
                total_len=len(token_ids),
                device=torch.device("cpu"),
            )
            logits = self._model(
                torch.arange(len(token_ids)),
                torch.tensor([list(token_ids)]),
                cross_mask,
                row_mask,
                caches,
                text_only_inference=not images,
            )
        assert isinstance(logits, torch.Tensor)
        return logits[0].float()


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Meta's code takes the type of masks and images from torch's default."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _build(meta: Meta, config: dict[str, Any]) -> Any:
    """Meta's model in the checkpoint's sizes, its weights not yet set."""
    args = _model_args(meta, config["text_config"], config["vision_config"])

    class Model(meta.model.CrossAttentionTransformer):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            torch.nn.Module.__init__(self)
            self.params = args
            self.model_dim = args.dim
            self.vision_model = _vision_model(meta, config["vision_config"], args.dim)
            self.text_model = _text_model(meta, config["text_config"]["cross_attention_layers"], args)
            self.image_res = args.vision_chunk_size
            self.max_num_chunks = args.vision_max_num_chunks
            transform = meta.image_transform.VariableSizeImageTransform(size=args.vision_chunk_size)
            self.image_transform = lambda image: transform(image, max_num_chunks=args.vision_max_num_chunks)

    return Model()


def _model_args(meta: Meta, text: dict[str, Any], vision: dict[str, Any]) -> Any:
    num_cross = len(text["cross_attention_layers"])
    return meta.args.ModelArgs(
        dim=text["hidden_size"],
        n_layers=text["num_hidden_layers"] - num_cross,
        n_heads=text["num_attention_heads"],
        n_kv_heads=text["num_key_value_heads"],
        vocab_size=text["vocab_size"],
        multiple_of=1,
        # Meta derives the width of the MLP as int(factor * int(8 / 3 * dim)).
        ffn_dim_multiplier=(text["intermediate_size"] + 0.5) / int(8 * text["hidden_size"] / 3),
        norm_eps=text["rms_norm_eps"],
        rope_theta=text["rope_theta"],
        use_scaled_rope=text["rope_scaling"] is not None,
        max_batch_size=1,
        max_seq_len=MAX_TOKENS,
        vision_chunk_size=vision["image_size"],
        vision_max_num_chunks=vision["max_num_tiles"],
        vision_num_cross_attention_layers=num_cross,
    )


def _text_model(meta: Meta, cross: list[int], args: Any) -> Any:
    class Text(meta.model.CrossAttentionTransformerText):  # type: ignore[misc, name-defined]
        def _init_fusion_schedule(self, num_layers: int) -> list[int]:
            """The text layers that a cross-attention layer stands before."""
            return [layer - earlier for earlier, layer in enumerate(cross)]

    return Text(args)


def _vision_model(meta: Meta, vision: dict[str, Any], dim: int) -> Any:
    class Vision(meta.model.CrossAttentionTransformerVision):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            """As in the reference, with sizes for its constants."""
            torch.nn.Module.__init__(self)
            self.image_res = vision["image_size"]
            self.patch_size = vision["patch_size"]
            self.max_num_chunks = vision["max_num_tiles"]
            self.vision_input_dim = vision["vision_output_dim"]
            self.vision_encoder = meta.model.VisionEncoder(
                max_num_tiles=vision["max_num_tiles"],
                image_size=vision["image_size"],
                patch_size=vision["patch_size"],
                width=vision["hidden_size"],
                layers=vision["num_hidden_layers"],
                heads=vision["attention_heads"],
                mlp_ratio=vision["intermediate_size"] / vision["hidden_size"],
                n_global_layers=vision["num_global_layers"],
                global_model=True,
                return_intermediate=vision["intermediate_layers_indices"],
            )
            self.vision_projection = torch.nn.Linear(self.vision_input_dim, dim)

    return Vision()


def _load(model: torch.nn.Module, weights: Tensors) -> None:
    """Sets every parameter, each exactly once, without the reference's resizing of position tables."""
    parameters = dict(model.named_parameters())
    assert parameters.keys() == weights.keys(), parameters.keys() ^ weights.keys()
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(weights[name].reshape(parameter.shape))


def _read(folder: Path) -> Tensors:
    tensors: Tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(path)
    return tensors


_TEXT_LAYER = {
    "input_layernorm.weight": "attention_norm.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "mlp.gate_proj.weight": "feed_forward.w1.weight",
    "mlp.down_proj.weight": "feed_forward.w2.weight",
    "mlp.up_proj.weight": "feed_forward.w3.weight",
    "cross_attn_attn_gate": "gate_attn",
    "cross_attn_mlp_gate": "gate_ffwd",
    "cross_attn.q_norm.weight": "attention.q_norm.weight",
    "cross_attn.k_norm.weight": "attention.k_norm.weight",
} | {
    f"{kind}_attn.{letter}_proj.weight": f"attention.w{letter}.weight"
    for kind in ("self", "cross")
    for letter in "qkvo"
}
_ENCODER_LAYER = {
    "input_layernorm": "ln_1",
    "post_attention_layernorm": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
} | {f"self_attn.{letter}_proj": f"attn.w{letter}" for letter in "qkvo"}
_ENCODER = {
    "patch_embedding.weight": "conv1._linear.weight",
    "class_embedding": "class_embedding",
    "gated_positional_embedding.gate": "gated_positional_embedding_gate",
    "gated_positional_embedding.embedding": "positional_embedding",
    "gated_positional_embedding.tile_embedding.weight": "gated_positional_embedding",
    "pre_tile_positional_embedding.gate": "pre_tile_pos_embed.gate",
    "pre_tile_positional_embedding.embedding.weight": "pre_tile_pos_embed.embedding",
    "post_tile_positional_embedding.gate": "post_tile_pos_embed.gate",
    "post_tile_positional_embedding.embedding.weight": "post_tile_pos_embed.embedding",
    "layernorm_pre.weight": "ln_pre.weight",
    "layernorm_pre.bias": "ln_pre.bias",
    "layernorm_post.weight": "ln_post.weight",
    "layernorm_post.bias": "ln_post.bias",
}
_ASPECT_RATIO_TABLES = (
    "gated_positional_embedding.tile_embedding.weight",
    "pre_tile_positional_embedding.embedding.weight",
    "post_tile_positional_embedding.embedding.weight",
)


_OTHERS = {
    "language_model.model.norm.weight": "text_model.norm.weight",
    "language_model.lm_head.weight": "text_model.output.weight",
    "multi_modal_projector.weight": "vision_model.vision_projection.weight",
    "multi_modal_projector.bias": "vision_model.vision_projection.bias",
}


def _to_meta(tensors: Tensors, config: dict[str, Any]) -> Tensors:
    """The published checkpoint's weights under Meta's names and in Meta's order."""
    text, vision = config["text_config"], config["vision_config"]
    vocab_size = text["vocab_size"]
    result: Tensors = {}
    for name, tensor in tensors.items():
        if match := re.fullmatch(r"language_model\.model\.layers\.(\d+)\.(.+)", name):
            layer, rest = int(match[1]), match[2]
            if rest == "self_attn.q_proj.weight":
                tensor = _rotate_neighbours(tensor, text["num_attention_heads"])
            elif rest == "self_attn.k_proj.weight":
                tensor = _rotate_neighbours(tensor, text["num_key_value_heads"])
            result[f"text_model.{_layer_name(layer, text['cross_attention_layers'])}.{_TEXT_LAYER[rest]}"] = tensor
        elif match := re.fullmatch(r"vision_model\.((?:global_)?transformer)\.layers\.(\d+)\.(.+)", name):
            rest = re.sub("|".join(_ENCODER_LAYER), lambda found: _ENCODER_LAYER[found[0]], match[3])
            result[f"vision_model.vision_encoder.{match[1]}.resblocks.{match[2]}.{rest}"] = tensor
        elif name.startswith("vision_model."):
            rest = name.removeprefix("vision_model.")
            if rest in _ASPECT_RATIO_TABLES:
                tensor = _by_place(tensor, vision)
            result["vision_model.vision_encoder." + _ENCODER[rest]] = tensor
        elif name == "language_model.model.embed_tokens.weight":
            result["text_model.tok_embeddings.weight"] = tensor[:vocab_size]
            result["text_model.learnable_embedding.weight"] = tensor[vocab_size:]
        else:
            result[_OTHERS[name]] = tensor
    return result


def _layer_name(layer: int, cross: list[int]) -> str:
    """Meta counts text layers and cross-attention layers apart."""
    if layer in cross:
        return f"cross_attention_layers.{cross.index(layer)}"
    return f"layers.{layer - sum(other < layer for other in cross)}"


def _rotate_neighbours(weight: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Reorders each head's rows: Hugging Face rotates halves of a head, Meta neighbouring rows."""
    rows, columns = weight.shape
    halves = weight.view(num_heads, 2, rows // num_heads // 2, columns)
    return halves.transpose(1, 2).reshape(rows, columns)


def _by_place(table: torch.Tensor, vision: dict[str, Any]) -> torch.Tensor:
    """From a row for each aspect ratio to Meta's grid of places: [tiles, tiles, positions, width].

    Fails when the table is not one that Meta's grid can give: the same place must mean the same in every
    aspect ratio, and padding tiles must be zero.
    """
    max_tiles, width = vision["max_num_tiles"], vision["hidden_size"]
    table = table.view(len(table), max_tiles, -1, width)
    grid = torch.zeros(max_tiles, max_tiles, *table.shape[2:], dtype=table.dtype)
    ratios = list(enumerate(vision["supported_aspect_ratios"], start=1))
    for index, (rows, columns) in ratios:
        grid[:rows, :columns] = table[index, : rows * columns].view(rows, columns, *table.shape[2:])
    assert not table[0].any()
    for index, (rows, columns) in ratios:
        assert torch.equal(table[index, : rows * columns], grid[:rows, :columns].flatten(0, 1))
        assert not table[index, rows * columns :].any()
    return grid
