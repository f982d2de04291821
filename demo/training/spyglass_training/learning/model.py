"""The model in training: the served one, its parameters laid out for training and exported as an adapter again."""

import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn.utils import parametrize

from spyglass_demo.checkpoint import Tensors, add_image_token, write_checkpoint
from spyglass_demo.smollm2 import Sizes, SmolLM2, find_gguf
from spyglass_training.learning.precision import suited_attention
from spyglass_training.learning.start import start_tensors
from spyglass_training.served import (
    Mllama,
    ModelConfig,
    VisionConfig,
    VisionEncoder,
    canonical_name,
    checkpoint_names,
    load_config,
    load_model,
    whole,
)

_ALL = 2**30
"""More tokens than any picture has."""
TABLES = ("tile_position", "pre_tile", "post_tile")


class ByAspectRatio(nn.Module):
    """A table by aspect ratio, made from what belongs to each place of a tile on the canvas.

    So pictures of every shape train the same values. Rows of padding tiles are zeros.
    """

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        side = config.max_tiles
        place = torch.full((len(config.aspect_ratios) + 1, side), side * side)
        for ratio, (rows, columns) in enumerate(config.aspect_ratios, start=1):
            place[ratio, : rows * columns] = torch.arange(side * side).view(side, side)[:rows, :columns].flatten()
        self.register_buffer("place", place)

    def forward(self, grid: Tensor) -> Tensor:
        """From [places, …] to [ratios, tiles, …]."""
        place = self.get_buffer("place")
        return torch.cat((grid, grid.new_zeros(1, *grid.shape[1:])))[place]

    def right_inverse(self, table: Tensor) -> Tensor:
        """The grid behind a table."""
        place = self.get_buffer("place")
        grid = table.new_zeros(int(place.max()) + 1, *table.shape[2:])
        grid[place] = table
        return grid[:-1].clone()


def trainable_model(weights: Tensors | None = None, dtype: torch.dtype = torch.float32) -> Mllama:
    """The whole model with frozen text layers. `weights` are the adapter's; None means freshly initialised ones."""
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(Path(folder), lambda line: None, start_tensors(text_sizes()) if weights is None else weights)
        model = load_model(Path(folder), load_config(Path(folder)), dtype, torch.device("cpu"))
    for table in TABLES:
        parametrize.register_parametrization(model.vision, table, ByAspectRatio(model.config.vision))
    return model


@cache
def text_sizes() -> Sizes:
    """The sizes of the frozen text model."""
    return SmolLM2(find_gguf()).sizes


def tokenizer() -> Tokenizer:
    """The demo model's tokenizer."""
    found = SmolLM2(find_gguf()).tokenizer()
    add_image_token(found)
    return found


def features(encoder: VisionEncoder, pixels: Tensor, canvas: tuple[int, int], config: ModelConfig) -> Tensor:
    """The encoder's states of pictures uint8 [images, tiles, 3, tile, tile] on a canvas of (columns, rows)."""
    columns, rows = canvas
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (config.image_mean, config.image_std))
    dtype = encoder.class_embedding.dtype
    with suited_attention(dtype):
        return whole(encoder.features(((pixels.float() / 255 - mean) / std).to(dtype), rows, columns, _ALL))


def fused_parts(name: str, parameter: Tensor, config: ModelConfig) -> list[int]:
    """The rows of each of the checkpoint's tensors that a parameter of the adapter is the concatenation of."""
    count = len(checkpoint_names(name, config))
    return [len(parameter) // count] * count  # all parts are of one size


def adapter_tensors(model: Mllama) -> dict[str, npt.NDArray[np.float32]]:
    """Everything but the text model's own layers, under the names and in the shapes of a checkpoint."""
    found = {}
    for name, parameter in _adapter_parameters(model):
        sources = checkpoint_names(name, model.config)
        for source, part in zip(
            sources, torch.split(parameter, fused_parts(name, parameter, model.config)), strict=True
        ):
            found[source] = part.float().numpy()
    shapes = {name: tensor.shape for name, tensor in start_tensors(text_sizes()).items()}
    return {name: found[canonical_name(name)].reshape(shape) for name, shape in shapes.items()}


def _adapter_parameters(model: Mllama) -> Iterator[tuple[str, Tensor]]:
    """By the product's names, tables as it has them."""
    for layer in model.config.text.cross_layers:
        for name, parameter in model.text.layers[layer].named_parameters():
            yield f"text.layers.{layer}.{name}", parameter.detach()
    for name, parameter in model.vision.named_parameters():
        if not name.startswith("parametrizations."):
            yield f"vision.{name}", parameter.detach()
    for name in TABLES:
        yield f"vision.{name}", getattr(model.vision, name).detach()
