"""Checkpoints that are stored in fp8: whether a folder is one that is served, and its linear layers.

Served is what compressed-tensors calls FP8-dynamic, the form of the published ones: weights float8_e4m3fn with a scale
for each output beside them, inputs rounded token by token as they come. Which layers are stored so is seen by their
tensors: the others are in the checkpoint's precision.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from spyglass_server.runtime.linear import FP8

_SUPPORTED = (
    "served are checkpoints without quantization, and compressed-tensors of the scheme FP8-dynamic "
    "(float weights of 8 bits by channel, inputs of 8 bits by token, dynamic)"
)
_WEIGHTS = {"num_bits": 8, "type": "float", "strategy": "channel"}
_INPUTS = {"num_bits": 8, "type": "float", "strategy": "token", "dynamic": True}


class Tensors(Protocol):
    """The tensors of a checkpoint by canonical name."""

    def __contains__(self, name: str) -> bool: ...

    def get(self, name: str) -> Tensor:
        """Reads a tensor; ValueError when there is none of that name."""


def stored_quantization(raw: Mapping[str, Any]) -> str:
    """How weights are kept in a checkpoint with this config.json: "none" or "fp8".

    Raises:
        ValueError: in a way that is not served; the text says which are.
    """
    config = raw.get("quantization_config")
    if config is None:
        return "none"
    for found in _differences(config):
        raise ValueError(f"the checkpoint is quantized with {found}; {_SUPPORTED}")
    return "fp8"


def fp8_parts(tensors: Tensors, names: Sequence[str]) -> tuple[Tensor, Tensor] | None:
    """The weight of the linear layer that these tensors make up, one after the other, where all are stored in fp8.

    Returns float8_e4m3fn [out, in] and scales [out, 1]; None where a tensor is not stored in fp8.

    Raises:
        ValueError: tensors have shapes that do not fit each other.
    """
    if not all(_scale_name(name) in tensors for name in names):
        return None
    weights, scales = zip(*(_stored(tensors, name) for name in names), strict=True)
    return torch.cat(weights), torch.cat(scales)


def full_tensor(tensors: Tensors, name: str) -> Tensor:
    """Reads a tensor; one that is stored in fp8 is multiplied by its scales, float32.

    Raises:
        ValueError: there is none of that name, or it has no scales.
    """
    tensor = tensors.get(name)
    if tensor.dtype != FP8:
        return tensor
    _, scales = _stored(tensors, name)
    return tensor.float() * scales


def _stored(tensors: Tensors, name: str) -> tuple[Tensor, Tensor]:
    """A weight [out, in] that is stored in fp8, and its scales, float32 [out, 1]."""
    weight, scale = tensors.get(name), tensors.get(_scale_name(name)).float()
    if weight.dtype != FP8 or weight.dim() != 2 or scale.numel() != len(weight):
        raise ValueError(
            f"{name} is {weight.dtype} {list(weight.shape)} with scales {list(scale.shape)}, "
            f"and not {FP8} with a scale for each output"
        )
    return weight, scale.reshape(-1, 1)


def _scale_name(name: str) -> str:
    return f"{name}_scale"


def _differences(config: Mapping[str, Any]) -> Iterator[str]:
    """What a quantization_config says that is not FP8-dynamic."""
    if (method := config.get("quant_method")) != "compressed-tensors":
        yield f"quant_method {method!r}"
    if (status := config.get("quantization_status", "compressed")) != "compressed":
        yield f"quantization_status {status!r}"
    if (sparsity := (config.get("sparsity_config") or {}).get("format", "dense")) != "dense":
        yield f"sparsity {sparsity!r}"
    if config.get("kv_cache_scheme"):
        yield "a kv_cache_scheme"
    groups = (config.get("config_groups") or {}).values()
    if not groups:
        yield "no config_groups"
    for group in groups:
        yield from _differences_of(group.get("weights"), "weights", _WEIGHTS)
        yield from _differences_of(group.get("input_activations"), "input_activations", _INPUTS)
        if group.get("output_activations"):
            yield "output_activations"


def _differences_of(arguments: Mapping[str, Any] | None, what: str, expected: Mapping[str, Any]) -> Iterator[str]:
    if arguments is None:
        yield f"no {what}"
        return
    for name, value in expected.items():
        if arguments.get(name) != value:
            yield f"{what} of {name} {arguments.get(name)!r}"
    if not arguments.get("symmetric", True):
        yield f"{what} with zero points"
