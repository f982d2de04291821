"""Writes the text model of a checkpoint as a plain Llama, in a folder that other servers can load.

    python benchmarks/plain_model.py .cache/plain-smollm2
    vllm serve .cache/plain-smollm2 --dtype float32 --port 8081
    make bench ARGS="--peer vLLM=http://127.0.0.1:8081/v1 --peer-model .cache/plain-smollm2"

Cross-attention layers are omitted: text passes through them unchanged. The weights are the same, in float32. For the
demo model the result is SmolLM2-135M-Instruct.
"""

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, MllamaConfig

from processes import checkpoint_or_demo
from spyglass_server.runtime.model.mllama import canonical_name


def plain_model(folder: Path) -> Any:
    """Loads the LlamaForCausalLM inside a Mllama checkpoint."""
    text = MllamaConfig.from_pretrained(folder).text_config
    same = (
        "vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "rms_norm_eps",
        "max_position_embeddings", "rope_parameters", "bos_token_id", "eos_token_id", "pad_token_id",
    )  # fmt: skip
    config = LlamaConfig(
        num_hidden_layers=text.num_hidden_layers - len(text.cross_attention_layers),
        tie_word_embeddings=False,
        **{name: getattr(text, name) for name in same},
    )
    weights = _plain_weights(folder, text.cross_attention_layers, text.vocab_size)
    return LlamaForCausalLM.from_pretrained(None, config=config, state_dict=weights, dtype=torch.float32).eval()


def _plain_weights(folder: Path, cross_layers: Sequence[int], vocab_size: int) -> dict[str, Tensor]:
    """Returns the weights under the names of LlamaForCausalLM."""
    found: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= {canonical_name(name): tensor.float() for name, tensor in load_file(file).items()}
    embedding = found["language_model.embed_tokens.weight"][:vocab_size]  # without the image token
    weights = {"model.embed_tokens.weight": embedding, "lm_head.weight": found.get("lm_head.weight", embedding)}
    weights["model.norm.weight"] = found["language_model.norm.weight"]
    for name, tensor in found.items():
        layer = re.fullmatch(r"language_model\.layers\.(\d+)\.(.+)", name)
        if layer and int(layer[1]) not in cross_layers:
            index = int(layer[1]) - sum(cross < int(layer[1]) for cross in cross_layers)
            weights[f"model.layers.{index}.{layer[2]}"] = tensor
    return weights


def _plain_tokenizer(folder: Path, vocab_size: int) -> str:
    """Returns tokenizer.json without the image token, which follows the vocabulary."""
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    content["added_tokens"] = [token for token in content["added_tokens"] if token["id"] < vocab_size]
    return json.dumps(content, ensure_ascii=False)


def write(checkpoint: Path, folder: Path) -> int:
    """Writes the text model of a checkpoint and its tokenizer; returns how many parameters it has."""
    model = plain_model(checkpoint)
    model.save_pretrained(folder)
    for name in ("tokenizer_config.json", "generation_config.json", "chat_template.jinja"):
        if (checkpoint / name).exists():
            (folder / name).write_bytes((checkpoint / name).read_bytes())
    tokenizer = _plain_tokenizer(checkpoint, model.config.vocab_size)
    (folder / "tokenizer.json").write_text(tokenizer, encoding="utf-8")
    return sum(parameter.numel() for parameter in model.parameters())


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where to write it")
    parser.add_argument("--model", type=Path, help="a checkpoint (default: the demo model)")
    given = parser.parse_args(arguments)
    print(f"{write(checkpoint_or_demo(given.model), given.folder):,} parameters in {given.folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
