"""Gives a model its weights, one parameter after another, from any source."""

from collections.abc import Callable, Iterable

from accelerate import init_empty_weights
from torch import Tensor, nn

from spyglass_server.planning.memory import ParameterCount
from spyglass_server.runtime.config import ModelConfig
from spyglass_server.runtime.fp8 import FP8
from spyglass_server.runtime.linear import Fp8Linear
from spyglass_server.runtime.mesh import ALONE, Mesh
from spyglass_server.runtime.model.mllama import Mllama

_SCALE = ".weight_scale"
Convert = Callable[[nn.Linear], nn.Module]
"""Converts a linear module to another one."""


def empty_model(config: ModelConfig, mesh: Mesh = ALONE) -> Mllama:
    """A model, or a rank's part of it, whose parameters have shapes and no memory.

    Raises:
        ValueError: the configuration is wrong, or the model cannot be cut for the mesh.
    """
    with init_empty_weights():
        return Mllama(config, mesh)


def is_layer_linear(name: str, module: nn.Module) -> bool:
    """Whether a module with this name, or its parameter's, is a linear one in the text model's layers."""
    return name.startswith("text.layers.") and isinstance(module, nn.Linear)


def count_parameters(model: nn.Module) -> ParameterCount:
    """Counts the parameters of a model, which may be an empty one."""
    linears = [module for name, module in model.named_modules() if is_layer_linear(name, module)]
    weights = [module.get_parameter("weight") for module in linears]
    linear = sum(weight.numel() for weight in weights)
    total = sum(parameter.numel() for parameter in model.parameters())
    return ParameterCount(linear=linear, outputs=sum(len(weight) for weight in weights), other=total - linear)


def install(model: Mllama, values: Iterable[tuple[str, Tensor]], convert: Convert | None) -> Mllama:
    """Replaces the parameters of an empty model with values, and makes it ready to compute.

    A value named after a weight, with `_scale`, turns the module that has been given that weight in fp8 into an
    `Fp8Linear`. `convert` is applied to each linear module of the text model's layers as soon as it has its weight, so
    that the whole model never exists unconverted. Values may be made one by one while the model is filled.
    """
    for name, value in values:
        if name.endswith(_SCALE):
            _install_scale(model, name.removesuffix(_SCALE), value)
            continue
        _install(model, name, value, convert)
        del value  # the next value is made before this name is rebound to it
    return model.eval()


def _install(model: Mllama, name: str, value: Tensor, convert: Convert | None) -> None:
    owner, _, leaf = name.rpartition(".")
    module = model.get_submodule(owner)
    setattr(module, leaf, nn.Parameter(value, requires_grad=False))
    if convert and value.dtype != FP8 and is_layer_linear(name, module):
        assert isinstance(module, nn.Linear)
        model.set_submodule(owner, convert(module))


def _install_scale(model: Mllama, owner: str, scale: Tensor) -> None:
    weight = model.get_submodule(owner).get_parameter("weight")
    model.set_submodule(owner, Fp8Linear(weight.detach(), scale))
