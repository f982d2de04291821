"""Checkpoints in the form in which fp8 ones are published: compressed-tensors, FP8-dynamic.

Owns what their files look like, and rounds weights by its own arithmetic. Knows nothing of how they are served.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

KEPT = ("lm_head", "multi_modal_projector", "vision_model")
"""What the published folders leave in bfloat16, wherever it stands in the name of a module."""


def fp8_checkpoint(
    source: Path,
    folder: Path,
    *,
    kept: tuple[str, ...] = KEPT,
    scale_dtype: torch.dtype = torch.float32,
    change: Callable[[dict[str, Any]], None] = lambda config: None,
) -> Path:
    """Writes a checkpoint of one file into `folder` with the weights of its linear layers in fp8; returns the folder.

    Args:
        kept: parts of the names of modules that stay as they are.
        scale_dtype: what scales are rounded to before weights are divided by them; the published are in bfloat16.
        change: edits the quantization_config before it is written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    stored: dict[str, torch.Tensor] = {}
    ignored = []
    for name, tensor in load_file(source / "model.safetensors").items():
        module = name.removesuffix(".weight")
        is_linear = name.endswith(".weight") and tensor.dim() == 2 and "embed" not in name
        if not is_linear or any(part in module for part in kept):
            stored[name] = tensor
            ignored += [module] if is_linear else []
            continue
        scale = (tensor.float().abs().max(dim=1, keepdim=True).values / 448).to(scale_dtype)
        stored[name] = (tensor.float() / scale.float()).clamp(-448, 448).to(torch.float8_e4m3fn)
        stored[f"{name}_scale"] = scale
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = quantization_config(ignored)
    change(config["quantization_config"])
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def quantization_config(ignored: list[str]) -> dict[str, Any]:
    """What such a folder's config.json says, with these modules left as they were."""
    arguments: dict[str, Any] = {"actorder": None, "block_structure": None, "group_size": None, "num_bits": 8}
    arguments |= {"observer_kwargs": {}, "symmetric": True, "type": "float"}
    return {
        "config_groups": {
            "group_0": {
                "input_activations": arguments | {"dynamic": True, "observer": None, "strategy": "token"},
                "output_activations": None,
                "targets": ["Linear"],
                "weights": arguments | {"dynamic": False, "observer": "minmax", "strategy": "channel"},
            }
        },
        "format": "float-quantized",
        "global_compression_ratio": 1.5,
        "ignore": sorted(ignored),
        "kv_cache_scheme": None,
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
    }
