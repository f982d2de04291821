"""Untrained weights, made on the device: for benchmarks, and to see what a machine can hold.

Speed and memory depend on sizes, not on trained values.
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
"""Value of tanh gates, which start at zero in the published models; with this value images have a small effect."""


def dummy_model(
    config: ModelConfig,
    dtype: torch.dtype,
    device: torch.device,
    convert: Convert | None = None,
    mesh: Mesh = ALONE,
) -> Mllama:
    """Builds the model with random weights, the same each time on one kind of device; `convert` as in `install`.

    Matrices are normal with a standard deviation of 0.02 and norms have no effect, so states keep an ordinary size
    through any number of layers.

    Raises:
        ValueError: the configuration is inconsistent.
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
