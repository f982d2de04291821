"""Weights that nobody trained, made on the device: for benchmarks, and to see what a machine can hold.

Speed and memory depend on sizes, not on what a model knows.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from spyglass_server.runtime.config import ModelConfig
from spyglass_server.runtime.mesh import ALONE, Mesh
from spyglass_server.runtime.model.mllama import Mllama
from spyglass_server.runtime.weights import Convert, empty_model, install

_SEED = 0
_STD = 0.02
_GATE = 0.1
"""Of tanh gates, which the published models begin with at zero; images count a little."""


def dummy_model(
    config: ModelConfig,
    dtype: torch.dtype,
    device: torch.device,
    convert: Convert | None = None,
    mesh: Mesh = ALONE,
) -> Mllama:
    """Builds the model with random weights, the same each time on one kind of device; `convert` as in `install`.

    Matrices are normal with a standard deviation of 0.02, norms do nothing, so states stay of ordinary size through
    however many layers.

    Raises:
        ValueError: the configuration contradicts itself.
    """
    model = empty_model(config, mesh)
    return install(model, _values(model, dtype, device), convert)


def _values(model: Mllama, dtype: torch.dtype, device: torch.device) -> Iterator[tuple[str, Tensor]]:
    generator = torch.Generator(device).manual_seed(_SEED)
    for name, parameter in list(model.named_parameters()):
        yield name, _value(name, torch.empty(parameter.shape, dtype=dtype, device=device), generator)


def _value(name: str, empty: Tensor, generator: torch.Generator) -> Tensor:
    if name.endswith("gate"):
        return empty.fill_(_GATE)
    if name.endswith("norm.weight"):
        return empty.fill_(1.0)
    if name.endswith(".bias"):
        return empty.zero_()
    return empty.normal_(0.0, _STD, generator=generator)
