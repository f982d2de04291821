"""The eyes of the embedded model: vision encoder, projector and gated cross-attention layers.

Owns their sizes and their weights, which training/ made, under the names of a Hugging Face Mllama
checkpoint. Knows the text model only by the places where the cross-attention layers stand.
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
"""The encoder also hands out the states that go into these layers."""
OUTPUT_SIZE = WIDTH * (1 + len(INTERMEDIATE_LAYERS))
ASPECT_RATIOS = tuple((h, w) for h in range(1, MAX_TILES + 1) for w in range(1, MAX_TILES + 1) if h * w <= MAX_TILES)
"""(rows, columns) of tiles; an image's aspect ratio id is its place here plus 1, and 0 is no image."""

CROSS_BEFORE = (20, 23, 26)
"""A cross-attention layer stands before each of these layers of the text model."""

FILE = "adapter.safetensors"
"""Beside this module; 16-bit. ADAPTER.md there is its model card."""


def cross_layers() -> list[int]:
    """Where the cross-attention layers stand when all layers are counted."""
    return [before + earlier for earlier, before in enumerate(CROSS_BEFORE)]


def layer_of_text(index: int) -> int:
    """The place among all layers of the text model's own layer `index`."""
    return index + sum(before <= index for before in CROSS_BEFORE)


def adapter_tensors() -> dict[str, Array]:
    """Every weight that the text model lacks: name to float32 array."""
    data = resources.files(__package__).joinpath(FILE).read_bytes()
    return {name: np.asarray(array, np.float32) for name, array in load(data).items()}
