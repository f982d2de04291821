"""What steps of a model must read and compute at least: all is in bfloat16, but for layers with weights in fp8.

Knows no device and no engine.
"""

from spyglass_server.runtime.config import ModelConfig

_BYTES = 2
"""Of a number in bfloat16. A weight is also two operations for each token, so bytes of weights are operations, too."""


def image_tokens(config: ModelConfig) -> int:
    """Tokens of an image of as many tiles as one may have."""
    return config.vision.tokens_per_tile * config.vision.max_tiles


def layer_bytes(config: ModelConfig, sees_image: bool, bytes_of_weight: int = _BYTES) -> float:
    """What a step reads of its layers' weights, without the keys and values of images."""
    text = config.text
    mlp = 3 * text.hidden_size * text.intermediate_size
    queries_and_output = 2 * text.hidden_size * text.num_heads * text.head_dim
    self_layer = mlp + queries_and_output + 2 * text.hidden_size * text.num_kv_heads * text.head_dim
    cross_layers = len(text.cross_layers) * (mlp + queries_and_output) if sees_image else 0
    return float(bytes_of_weight * (text.num_self_layers * self_layer + cross_layers))


def head_bytes(config: ModelConfig) -> float:
    """What a step that samples reads of the head."""
    return float(_BYTES * config.text.hidden_size * config.text.vocab_size)


def kv_bytes(config: ModelConfig, context: int, num_seeing: int) -> float:
    """What a decode step reads of its caches: `context` tokens of text in all rows together, and an image for each
    row that sees one."""
    text = config.text
    slot = 2 * _BYTES * text.num_kv_heads * text.head_dim
    cross_tokens = len(text.cross_layers) * num_seeing * image_tokens(config)
    return slot * (text.num_self_layers * context + cross_tokens)


def prefill_operations(config: ModelConfig, tokens: int, start: int) -> float:
    """Of `tokens` tokens of a prompt without images that has `start` tokens before them, without the head."""
    text = config.text
    attention = 4 * text.num_self_layers * text.num_heads * text.head_dim * (start + tokens / 2)
    return tokens * (layer_bytes(config, sees_image=False) + attention)


def image_operations(config: ModelConfig) -> float:
    """Of encoding an image of as many tiles as one may have."""
    vision, text = config.vision, config.text
    tokens, width = image_tokens(config), vision.hidden_size
    layers = vision.num_layers + vision.num_global_layers
    encoder = layers * tokens * (8 * width**2 + 4 * width * vision.intermediate_size + 4 * tokens * width)
    keys_and_values = len(text.cross_layers) * 2 * text.num_kv_heads * text.head_dim
    return encoder + 2 * tokens * text.hidden_size * (vision.output_size + keys_and_values)
