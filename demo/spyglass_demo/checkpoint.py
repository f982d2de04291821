"""Writes the files of the demo checkpoint, in the layout of the published Llama 3.2 Vision checkpoints."""

import json
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer

from spyglass_demo import adapter
from spyglass_demo.smollm2 import Sizes, SmolLM2, find_gguf

IMAGE_TOKEN = "<|image|>"
_EXTRA_EMBEDDINGS = 8  # rows of the embedding that have no logit; the image token's is the first
_CLIP_MEAN = [0.48145466, 0.4578275, 0.40821073]
_CLIP_STD = [0.26862954, 0.26130258, 0.27577711]


Tensors = Mapping[str, npt.NDArray[np.float32]]


def write_checkpoint(folder: Path, progress: Callable[[str], None], weights: Tensors | None = None) -> None:
    """Writes the checkpoint into `folder`, which exists and is empty.

    `weights` are the adapter's; None means the trained ones of this package.

    Raises:
        DemoError: the package of the text model is not installed.
    """
    text = SmolLM2(find_gguf())
    progress("demo model: unpacking the weights of SmolLM2-135M-Instruct")
    tensors = _text_tensors(text)
    progress("demo model: adding the vision encoder and the cross-attention layers")
    tensors.update(adapter.adapter_tensors() if weights is None else weights)
    num_bytes = sum(tensor.nbytes for tensor in tensors.values())
    progress(f"demo model: writing {num_bytes / 1e6:.0f} MB")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    _write_json(folder / "config.json", _config(text.sizes))
    _write_json(folder / "generation_config.json", _token_ids(text.sizes) | {"do_sample": False})
    _write_json(folder / "preprocessor_config.json", _preprocessor_config())
    _write_tokenizer(folder, text)
    progress("demo model: ready")


def _text_tensors(text: SmolLM2) -> dict[str, npt.NDArray[np.float32]]:
    tensors = {}
    for name, tensor in text.tensors():
        if name.startswith("layers."):
            _, index, rest = name.split(".", 2)
            name = f"layers.{adapter.layer_of_text(int(index))}.{rest}"
        elif name == "embed_tokens.weight":
            # SmolLM2 ties this matrix to its output; Mllama's embedding has more rows, so both are stored.
            tensors["language_model.lm_head.weight"] = tensor
            tensor = np.concatenate([tensor, np.zeros((_EXTRA_EMBEDDINGS, tensor.shape[1]), np.float32)])
        tensors["language_model.model." + name] = tensor
    return tensors


def _config(text: Sizes) -> dict[str, Any]:
    return {
        "architectures": ["MllamaForConditionalGeneration"],
        "model_type": "mllama",
        "image_token_index": text.vocab_size,
        "torch_dtype": "float32",
        "text_config": _text_config(text),
        "vision_config": _vision_config(),
    }


def _text_config(text: Sizes) -> dict[str, Any]:
    return _token_ids(text) | {
        "model_type": "mllama_text_model",
        "cross_attention_layers": adapter.cross_layers(),
        "hidden_act": "silu",
        "hidden_size": text.hidden_size,
        "intermediate_size": text.intermediate_size,
        "max_position_embeddings": text.context_length,
        "num_attention_heads": text.num_heads,
        "num_hidden_layers": text.num_layers + len(adapter.CROSS_BEFORE),
        "num_key_value_heads": text.num_kv_heads,
        "rms_norm_eps": text.rms_norm_eps,
        "rope_scaling": None,
        "rope_theta": text.rope_theta,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "vocab_size": text.vocab_size,
    }


def _vision_config() -> dict[str, Any]:
    return {
        "model_type": "mllama_vision_model",
        "attention_heads": adapter.NUM_HEADS,
        "hidden_act": "gelu",
        "hidden_size": adapter.WIDTH,
        "image_size": adapter.TILE_SIZE,
        "intermediate_layers_indices": list(adapter.INTERMEDIATE_LAYERS),
        "intermediate_size": adapter.FFN_SIZE,
        "max_num_tiles": adapter.MAX_TILES,
        "norm_eps": 1e-5,
        "num_channels": 3,
        "num_global_layers": adapter.NUM_GLOBAL_LAYERS,
        "num_hidden_layers": adapter.NUM_LOCAL_LAYERS,
        "patch_size": adapter.PATCH_SIZE,
        "supported_aspect_ratios": [list(ratio) for ratio in adapter.ASPECT_RATIOS],
        "torch_dtype": "float32",
        "vision_output_dim": adapter.OUTPUT_SIZE,
    }


def _token_ids(text: Sizes) -> dict[str, Any]:
    return {
        "bos_token_id": text.bos_token_id,
        "eos_token_id": text.eos_token_id,
        "pad_token_id": text.pad_token_id,
    }


def _preprocessor_config() -> dict[str, Any]:
    return {
        "image_processor_type": "MllamaImageProcessor",
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_pad": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": _CLIP_MEAN,
        "image_std": _CLIP_STD,
        "max_image_tiles": adapter.MAX_TILES,
        "resample": 2,
        "rescale_factor": 1 / 255,
        "size": {"height": adapter.TILE_SIZE, "width": adapter.TILE_SIZE},
    }


def _write_tokenizer(folder: Path, text: SmolLM2) -> None:
    tokenizer = text.tokenizer()
    add_image_token(tokenizer)
    assert tokenizer.token_to_id(IMAGE_TOKEN) == text.sizes.vocab_size
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {
        "bos_token": tokenizer.id_to_token(text.sizes.bos_token_id),
        "eos_token": tokenizer.id_to_token(text.sizes.eos_token_id),
        "pad_token": tokenizer.id_to_token(text.sizes.pad_token_id),
        "unk_token": tokenizer.id_to_token(text.sizes.unk_token_id),
    }
    common = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": text.sizes.context_length,
    }
    _write_json(folder / "tokenizer_config.json", names | common)
    template = resources.files(__package__).joinpath("chat_template.jinja").read_text(encoding="utf-8")
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")


def add_image_token(tokenizer: Tokenizer) -> None:
    """Adds the image placeholder token to SmolLM2's tokenizer."""
    tokenizer.add_special_tokens([AddedToken(IMAGE_TOKEN, special=True, normalized=False)])


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
