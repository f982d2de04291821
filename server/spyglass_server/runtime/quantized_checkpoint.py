"""Checkpoints that are stored in fp8: which ones are served, and how their numbers are read.

The served form is what compressed-tensors calls FP8-dynamic, that of the published checkpoints: weights float8_e4m3fn
with a scale for each output, inputs rounded token by token at run time. The tensors show which layers are stored this
way; the others are in the checkpoint's precision.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

_SUPPORTED = (
    "served are checkpoints without quantization, and compressed-tensors of the scheme FP8-dynamic "
    "(float weights of 8 bits by channel, inputs of 8 bits by token, dynamic)"
)
_WEIGHTS = {"num_bits": 8, "type": "float", "strategy": "channel"}
_INPUTS = {"num_bits": 8, "type": "float", "strategy": "token", "dynamic": True}


def stored_quantization(raw: Mapping[str, Any]) -> str:
    """Returns how a checkpoint with this config.json quantizes weights: "none" or "fp8".

    Raises:
        ValueError: in a way that is not served; the text says which ways are.
    """
    config = raw.get("quantization_config")
    if config is None:
        return "none"
    for found in _differences(config):
        raise ValueError(f"the checkpoint is quantized with {found}; {_SUPPORTED}")
    return "fp8"


def check_scales(name: str, weight: Sequence[int], scale: Sequence[int]) -> None:
    """Checks the shape of an fp8 weight, and that it has one scale for each output.

    Raises:
        ValueError: it does not.
    """
    if len(weight) != 2 or tuple(scale) not in ((weight[0], 1), (weight[0],)):
        raise ValueError(f"{name} {list(weight)} has scales {list(scale)} and not one for each output; {_SUPPORTED}")


def dequantized(weight: Tensor, scale: Tensor) -> Tensor:
    """Returns the float32 values [out, in] of a weight float8_e4m3fn [out, in] with a scale for each output."""
    return weight.float() * scale.float().reshape(-1, 1)


def _differences(config: Mapping[str, Any]) -> Iterator[str]:
    """Yields what in a quantization_config is not FP8-dynamic."""
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
