"""The sizes of the published models, for runs with weights that the product makes up.

Sources: config.json of Llama-3.2-11B-Vision-Instruct and
Llama-3.2-90B-Vision-Instruct.
"""

import torch

from spyglass_server.runtime.config import CLIP_MEAN, CLIP_STD, ModelConfig, RopeConfig, TextConfig, VisionConfig

_VISION = VisionConfig(
    hidden_size=1280,
    intermediate_size=5120,
    num_layers=32,
    num_global_layers=8,
    num_heads=16,
    head_dim=80,
    norm_eps=1e-5,
    tile_size=560,
    patch_size=14,
    max_tiles=4,
    intermediate_layers=(3, 7, 15, 23, 30),
    aspect_ratios=((1, 1), (1, 2), (1, 3), (1, 4), (2, 1), (2, 2), (3, 1), (4, 1)),
    output_size=7680,
)


def _config(hidden_size: int, intermediate_size: int, num_layers: int, num_heads: int) -> ModelConfig:
    """A cross-attention layer stands before every fourth of the text model's own layers, from the fourth on."""
    text = TextConfig(
        vocab_size=128_256,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=8,
        head_dim=128,
        norm_eps=1e-5,
        max_position=131_072,
        cross_layers=tuple(range(3, num_layers, 5)),
        rope=RopeConfig(theta=500_000.0, factor=8.0),
        tied_embeddings=False,
    )
    return ModelConfig(text=text, vision=_VISION, dtype=torch.bfloat16, image_mean=CLIP_MEAN, image_std=CLIP_STD)


SIZES = {"11B": _config(4096, 14_336, 40, 32), "90B": _config(8192, 28_672, 100, 64)}
