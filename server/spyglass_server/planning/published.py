"""The configurations of the published models.

Sources: config.json of Llama-3.2-11B-Vision-Instruct and Llama-3.2-90B-Vision-Instruct.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

_VISION = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_global_layers": 8,
    "attention_heads": 16,
    "norm_eps": 1e-5,
    "image_size": 560,
    "patch_size": 14,
    "max_num_tiles": 4,
    "intermediate_layers_indices": [3, 7, 15, 23, 30],
    "supported_aspect_ratios": [[1, 1], [1, 2], [1, 3], [1, 4], [2, 1], [2, 2], [3, 1], [4, 1]],
    "vision_output_dim": 7680,
}


def _config(hidden_size: int, intermediate_size: int, num_layers: int, num_heads: int) -> Mapping[str, Any]:
    """A cross-attention layer precedes every fourth of the text model's own layers, from the fourth on."""
    text = {
        "vocab_size": 128_256,
        "hidden_size": hidden_size,
        "intermediate_size": intermediate_size,
        "num_hidden_layers": num_layers,
        "num_attention_heads": num_heads,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 131_072,
        "cross_attention_layers": list(range(3, num_layers, 5)),
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 500_000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        "tie_word_embeddings": False,
    }
    return {"model_type": "mllama", "dtype": "bfloat16", "text_config": text, "vision_config": _VISION}


CONFIGS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {"11b": _config(4096, 14_336, 40, 32), "90b": _config(8192, 28_672, 100, 64)}
)
"""The contents of their config.json, by size."""
