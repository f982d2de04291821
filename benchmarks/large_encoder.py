"""A checkpoint with a larger vision encoder of random weights, for measuring the cost of images.

The encoder has width 384 with patches of 14 pixels and, by default, tiles of 560, like the published models. From the
demo model it takes 6 local and 2 global layers.
"""

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

from spyglass_server.runtime.config import load_config
from spyglass_server.runtime.model.mllama import Mllama, checkpoint_names

TILE, PATCH, WIDTH = 560, 14, 384


def make_large_encoder(folder: Path, source: Path, tile: int = TILE) -> Path:
    """Writes the checkpoint into a folder, and returns the folder. The text model remains that of `source`.

    `tile` is the side of a tile in pixels, a multiple of 14.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for file in source.iterdir():
        if file.suffix in (".json", ".jinja"):
            (folder / file.name).write_bytes(file.read_bytes())
    num_states = 1 + len(load_config(source).vision.intermediate_layers)
    sizes = {
        "attention_heads": 6,
        "hidden_size": WIDTH,
        "image_size": tile,
        "intermediate_size": 4 * WIDTH,
        "patch_size": PATCH,
        "vision_output_dim": num_states * WIDTH,
    }
    _change(folder / "config.json", "vision_config", sizes)
    _change(folder / "preprocessor_config.json", "size", {"height": tile, "width": tile})
    config = load_config(folder)
    with torch.device("meta"):
        model = Mllama(config)
    rng = np.random.default_rng(0)
    small = load_file(source / "model.safetensors")
    encoder = ("vision_model", "multi_modal_projector")
    tensors = {name: tensor for name, tensor in small.items() if not name.startswith(encoder)}
    for name, parameter in model.named_parameters():
        if name.startswith("vision."):
            parts = checkpoint_names(name, config)
            shape = (parameter.shape[0] // len(parts), *parameter.shape[1:])
            for part in parts:
                weights = _weights(rng, name, shape)
                if small[part].ndim == 4:  # the patches' kernel
                    weights = weights.reshape(len(weights), 3, PATCH, PATCH)
                elif small[part].ndim == 2:  # tables by aspect ratio
                    weights = weights.reshape(len(weights), -1)
                tensors[part] = weights
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def _weights(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
    if "norm" in name or "gate" in name:
        return np.full(shape, 0.0 if name.endswith("bias") else 1.0, np.float32)
    return rng.standard_normal(shape, dtype=np.float32) * np.float32(shape[-1] ** -0.5)


def _change(file: Path, group: str, values: dict[str, int]) -> None:
    content = json.loads(file.read_text(encoding="utf-8"))
    content[group] |= values
    file.write_text(json.dumps(content, indent=2), encoding="utf-8")
