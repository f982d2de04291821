"""Loads weights from a checkpoint folder into the model.

Only (sharded) safetensors files are opened, so a checkpoint cannot run code. Each tensor is read from the mapped file
when its parameter's turn comes, so that loading needs little more memory than the model.
"""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from accelerate.utils import set_module_tensor_to_device
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from spyglass_server.runtime.config import ModelConfig
from spyglass_server.runtime.linear import Fp8Linear
from spyglass_server.runtime.model.mllama import Mllama, canonical_name, checkpoint_names
from spyglass_server.runtime.quantized_checkpoint import fp8_parts, full_tensor

log = logging.getLogger(__name__)


def load_model(
    folder: Path,
    config: ModelConfig,
    dtype: torch.dtype,
    device: torch.device,
    convert: Callable[[nn.Linear], nn.Module] | None = None,
) -> Mllama:
    """Builds the model with a checkpoint's weights.

    `convert` makes other modules of the linear ones in the text model's layers, each as soon as it is loaded, so that
    there is never more than one of them in full. Those that the checkpoint stores in fp8 are `Fp8Linear`.

    Raises:
        ValueError: tensors are missing or of the wrong shape, or a file is damaged.
        OSError: a file cannot be read.
    """
    with init_empty_weights():
        model = Mllama(config)
    try:
        tensors = _Tensors(folder)
        for name, parameter in list(model.named_parameters()):
            if name.startswith("text.layers.") and _load_fp8(model, tensors, name, device):
                continue
            value = _read(tensors, name, config, parameter.shape)
            set_module_tensor_to_device(model, name, device, value=value, dtype=dtype)
            if convert and name.startswith("text.layers."):
                _convert(model, name.rpartition(".")[0], convert)
    except SafetensorError as error:
        raise ValueError(f"a weight file in {folder} is damaged: {error}") from error
    if unused := tensors.unused():
        log.warning("%d tensors of the checkpoint are not used, such as %s", len(unused), unused[0])
    return model.requires_grad_(False).eval()


def _load_fp8(model: Mllama, tensors: "_Tensors", name: str, device: torch.device) -> bool:
    """Loads the weight of a linear layer as it is stored, if that is in fp8."""
    parts = fp8_parts(tensors, checkpoint_names(name, model.config))
    if parts is None:
        return False
    weight, scales = parts
    if weight.shape != (shape := model.get_parameter(name).shape):
        raise ValueError(f"{name} should have shape {list(shape)}, but the checkpoint has {list(weight.shape)}")
    model.set_submodule(name.rpartition(".")[0], Fp8Linear(weight.to(device), scales.to(device)))
    return True


def _convert(model: Mllama, name: str, convert: Callable[[nn.Linear], nn.Module]) -> None:
    """Replaces a module if it is a linear layer."""
    module = model.get_submodule(name)
    if isinstance(module, nn.Linear):
        model.set_submodule(name, convert(module))


def _read(tensors: "_Tensors", name: str, config: ModelConfig, shape: torch.Size) -> Tensor:
    if name == "text.head.weight" and config.text.tied_embeddings:
        return tensors.get("language_model.embed_tokens.weight")[: shape[0]]
    parts = [full_tensor(tensors, source) for source in checkpoint_names(name, config)]
    fits = len({part.shape[1:] for part in parts}) == 1 and sum(len(part) for part in parts) == shape[0]
    if not fits or sum(part.numel() for part in parts) != shape.numel():
        found = ", ".join(str(list(part.shape)) for part in parts)
        raise ValueError(f"{name} should have shape {list(shape)}, but the checkpoint has {found}")
    return torch.cat(parts).reshape(shape)


class _Tensors:
    """The tensors of a folder's safetensors files by canonical name."""

    def __init__(self, folder: Path) -> None:
        files = _weight_files(folder)
        self._files: list[Any] = [safe_open(path, framework="pt", device="cpu") for path in files]
        self._where = {canonical_name(name): (file, name) for file in self._files for name in file.keys()}  # noqa: SIM118
        self._unused = set(self._where)

    def __contains__(self, name: str) -> bool:
        return name in self._where

    def get(self, name: str) -> Tensor:
        if name not in self._where:
            raise ValueError(f"the checkpoint has no tensor {name!r}")
        self._unused.discard(name)
        file, raw = self._where[name]
        tensor: Tensor = file.get_tensor(raw)
        return tensor

    def unused(self) -> list[str]:
        return sorted(self._unused)


def _weight_files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.exists():
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        if any("/" in name or not name.endswith(".safetensors") for name in names):
            raise ValueError(f"{index.name} names a file that is not a safetensors file of this folder")
        return [folder / name for name in names]
    if (folder / "model.safetensors").exists():
        return [folder / "model.safetensors"]
    raise ValueError(f"{folder} has no model.safetensors; other weight formats are not loaded")
