"""The parts of the product that the training uses: the served model, its loader and its image preprocessing.

Every other module here imports them from this one.
"""

from spyglass_server.images import ImageSpec, choose_canvas, tile_image
from spyglass_server.runtime.checkpoint import load_model
from spyglass_server.runtime.config import ModelConfig, TextConfig, VisionConfig, load_config
from spyglass_server.runtime.model.layers import rotary_angles, rotary_frequencies, rotate
from spyglass_server.runtime.model.mllama import Mllama, canonical_name, checkpoint_names
from spyglass_server.runtime.model.text import TextModel
from spyglass_server.runtime.model.vision import VisionEncoder, whole

__all__ = [
    "ImageSpec",
    "Mllama",
    "ModelConfig",
    "TextConfig",
    "TextModel",
    "VisionConfig",
    "VisionEncoder",
    "canonical_name",
    "checkpoint_names",
    "choose_canvas",
    "load_config",
    "load_model",
    "rotary_angles",
    "rotary_frequencies",
    "rotate",
    "tile_image",
    "whole",
]
