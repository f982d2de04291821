"""The demo model's vision adapter: vision encoder, projector and gated cross-attention layers.

Sizes and weights, the latter under the names of a Hugging Face Mllama checkpoint. demo/training makes them.
"""

from importlib import resources

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load

Array = npt.NDArray[np.float32]

TILE_SIZE = 96  # pixels
PATCH_SIZE = 16  # pixels
MAX_TILES = 4
WIDTH = 192
NUM_HEADS = 6
FFN_SIZE = 768
NUM_LOCAL_LAYERS = 6
NUM_GLOBAL_LAYERS = 2
INTERMEDIATE_LAYERS = (1, 3, 5)
"""The inputs of these encoder layers are part of the encoder's output, too."""
OUTPUT_SIZE = WIDTH * (1 + len(INTERMEDIATE_LAYERS))
ASPECT_RATIOS = tuple((h, w) for h in range(1, MAX_TILES + 1) for w in range(1, MAX_TILES + 1) if h * w <= MAX_TILES)
"""(rows, columns) of tiles. An image's aspect ratio id is its index here plus 1; 0 stands for no image."""

CROSS_BEFORE = (20, 23, 26)
"""Indices of the text model's layers that a cross-attention layer precedes."""

FILE = "adapter.safetensors"
"""In this package, float16. ADAPTER.md is its model card."""


def cross_layers() -> list[int]:
    """Indices of the cross-attention layers among all layers."""
    return [before + earlier for earlier, before in enumerate(CROSS_BEFORE)]


def layer_of_text(index: int) -> int:
    """Index among all layers of the text model's layer `index`."""
    return index + sum(before <= index for before in CROSS_BEFORE)


def adapter_tensors() -> dict[str, Array]:
    """The weights that the adapter adds to the text model, by name, as float32."""
    data = resources.files(__package__).joinpath(FILE).read_bytes()
    return {name: np.asarray(array, np.float32) for name, array in load(data).items()}
