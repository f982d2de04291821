"""Tiny Mllama checkpoints in the Hugging Face layout, made from a seed, for tests of every part.

Owns their tokenizer, configuration and files; random_weights owns the rest. Needs torch and tokenizers,
neither transformers nor Meta's reference.
"""

import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from random_weights import Sizes, Tensors, VisionSizes, random_tensors
from spyglass_demo import default_folder, prepare

IMAGE_TOKEN = "<|image|>"
SPECIAL_TOKENS = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|finetune_right_pad_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|python_tag|>",
)
CHAT_TEMPLATE = """\
{{- '<|begin_of_text|>' -}}
{%- for message in messages -%}
    {%- set role = 'ipython' if message['role'] == 'tool' else message['role'] -%}
    {{- '<|start_header_id|>' + role + '<|end_header_id|>\\n\\n' -}}
    {%- if message['content'] is string -%}
        {{- message['content'] -}}
    {%- elif message['content'] is not none -%}
        {%- for part in message['content'] -%}
            {{- '<|image|>' if part['type'] == 'image' else part['text'] -}}
        {%- endfor -%}
    {%- endif -%}
    {%- for call in message['tool_calls'] or [] -%}
        {{- '{"type": "function", "name": ' -}}
        {{- call['function']['name'] | tojson -}}
        {{- ', "parameters": ' -}}
        {{- call['function']['arguments'] | tojson -}}
        {{- '}' -}}
    {%- endfor -%}
    {{- '<|eot_id|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}
{%- endif -%}
"""
"""Says what Meta's ChatFormat says: no default system block, nothing trimmed, tool results as ipython."""


def random_checkpoint(
    folder: Path,
    seed: int = 0,
    *,
    sizes: Sizes | None = None,
    tokenizer: Tokenizer | None = None,
    chat_template: str | None = CHAT_TEMPLATE,
    dtype: torch.dtype = torch.float32,
    num_shards: int = 1,
) -> Path:
    """Writes a whole random checkpoint into `folder`, which may not exist yet, and returns the folder.

    Args:
        seed: the same seed gives the same weights.
        sizes: `Sizes()` when None: 4 text and 2 cross-attention layers, under 2 MB.
        tokenizer: `byte_tokenizer()` when None. Its last token must be `<|image|>`: the model has a logit
            for each token before that one.
        chat_template: None leaves the checkpoint without one.
        dtype: what the weights are rounded to and stored in.
        num_shards: with 2 or more, that many safetensors files and their index.
    """
    sizes = sizes or Sizes()
    tokenizer = tokenizer or byte_tokenizer()
    write_prompt_files(folder, tokenizer, sizes=sizes, chat_template=chat_template, dtype=dtype)
    vocab_size = tokenizer.get_vocab_size() - 1
    tensors = {name: tensor.to(dtype) for name, tensor in random_tensors(sizes, vocab_size, seed).items()}
    _write_weights(folder, tensors, num_shards)
    return folder


def write_prompt_files(
    folder: Path,
    tokenizer: Tokenizer,
    *,
    sizes: Sizes | None = None,
    chat_template: str | None = CHAT_TEMPLATE,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Writes all files of a checkpoint but its weights: enough to make prompts, however many tokens there are."""
    sizes = sizes or Sizes()
    vocab_size = tokenizer.get_vocab_size() - 1
    assert tokenizer.token_to_id(IMAGE_TOKEN) == vocab_size
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    _write_json(folder / "tokenizer_config.json", _TOKENIZER_CONFIG)
    if chat_template is not None:
        (folder / "chat_template.jinja").write_text(chat_template, encoding="utf-8")
    tokens = _token_ids(tokenizer)
    _write_json(folder / "config.json", _config(sizes, vocab_size, tokens, str(dtype).removeprefix("torch.")))
    _write_json(folder / "generation_config.json", tokens | {"do_sample": False})
    _write_json(folder / "preprocessor_config.json", _preprocessor_config(sizes.vision))
    return folder


def byte_tokenizer() -> Tokenizer:
    """One token a byte (0 to 255 in byte-level BPE's order), Llama's control tokens, then `<|image|>`."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({symbol: index for index, symbol in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    finish_tokenizer(tokenizer, (*SPECIAL_TOKENS, IMAGE_TOKEN))
    return tokenizer


def finish_tokenizer(tokenizer: Tokenizer, special_tokens: tuple[str, ...]) -> None:
    """Adds control tokens and, as the published tokenizers do, a begin token before every text."""
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special_tokens])
    begin = "<|begin_of_text|>"
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A",
        pair=f"{begin} $A {begin} $B",
        special_tokens=[(begin, tokenizer.token_to_id(begin))],
    )


def demo_checkpoint() -> Path:
    """The demo model, made once and kept in $SPYGLASS_TEST_CACHE or the user's cache."""
    cache = os.environ.get("SPYGLASS_TEST_CACHE")
    folder = Path(cache) / default_folder().name if cache else default_folder()
    return prepare(folder, lambda line: None)


def endless_checkpoint(folder: Path, like: Path) -> Path:
    """A copy of a checkpoint that never chooses to stop."""
    shutil.copytree(like, folder)
    never_chosen = json.loads((folder / "config.json").read_text())["image_token_index"]
    _write_json(folder / "generation_config.json", {"eos_token_id": never_chosen})
    return folder


_TOKENIZER_CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": "<|begin_of_text|>",
    "eos_token": "<|eot_id|>",
    "pad_token": "<|finetune_right_pad_id|>",
    "clean_up_tokenization_spaces": False,
}


def _write_weights(folder: Path, tensors: Tensors, num_shards: int) -> None:
    if num_shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return
    names = list(tensors)
    per_shard = math.ceil(len(names) / num_shards)
    weight_map = {}
    for shard in range(num_shards):
        file = f"model-{shard + 1:05}-of-{num_shards:05}.safetensors"
        chosen = names[shard * per_shard : (shard + 1) * per_shard]
        save_file({name: tensors[name] for name in chosen}, folder / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(chosen, file))
    size = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    _write_json(folder / "model.safetensors.index.json", index)


def _config(sizes: Sizes, vocab_size: int, tokens: dict[str, Any], dtype: str) -> dict[str, Any]:
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    return {
        "architectures": ["MllamaForConditionalGeneration"],
        "model_type": "mllama",
        "image_token_index": vocab_size,
        "torch_dtype": dtype,
        "text_config": tokens
        | {
            "model_type": "mllama_text_model",
            "cross_attention_layers": list(sizes.cross_layers),
            "hidden_act": "silu",
            "hidden_size": sizes.hidden_size,
            "intermediate_size": sizes.intermediate_size,
            "max_position_embeddings": sizes.context_length,
            "num_attention_heads": sizes.num_heads,
            "num_hidden_layers": sizes.num_layers,
            "num_key_value_heads": sizes.num_kv_heads,
            "rms_norm_eps": 1e-5,
            "rope_scaling": scaling if sizes.rope_scaled else None,
            "rope_theta": sizes.rope_theta,
            "tie_word_embeddings": False,
            "torch_dtype": dtype,
            "vocab_size": vocab_size,
        },
        "vision_config": _vision_config(sizes.vision, dtype),
    }


def _vision_config(vision: VisionSizes, dtype: str) -> dict[str, Any]:
    return {
        "model_type": "mllama_vision_model",
        "attention_heads": vision.num_heads,
        "hidden_act": "gelu",
        "hidden_size": vision.hidden_size,
        "image_size": vision.tile_size,
        "intermediate_layers_indices": list(vision.intermediate_layers),
        "intermediate_size": vision.intermediate_size,
        "max_num_tiles": vision.max_tiles,
        "norm_eps": 1e-5,
        "num_channels": 3,
        "num_global_layers": vision.num_global_layers,
        "num_hidden_layers": vision.num_layers,
        "patch_size": vision.patch_size,
        "supported_aspect_ratios": [list(ratio) for ratio in vision.aspect_ratios],
        "torch_dtype": dtype,
        "vision_output_dim": vision.output_size,
    }


def _preprocessor_config(vision: VisionSizes) -> dict[str, Any]:
    return {
        "image_processor_type": "MllamaImageProcessor",
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_pad": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "max_image_tiles": vision.max_tiles,
        "resample": 2,
        "rescale_factor": 1 / 255,
        "size": {"height": vision.tile_size, "width": vision.tile_size},
    }


def _token_ids(tokenizer: Tokenizer) -> dict[str, Any]:
    stops = ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>")
    return {
        "bos_token_id": tokenizer.token_to_id("<|begin_of_text|>"),
        "eos_token_id": [tokenizer.token_to_id(token) for token in stops],
        "pad_token_id": tokenizer.token_to_id("<|finetune_right_pad_id|>"),
    }


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
