"""What steps of a model must read and compute at least, by the product's own figures.

All is in bfloat16, but for layers with weights in fp8.
"""

from spyglass_server.planning import costs
from spyglass_server.planning.costs import Precision, Step
from spyglass_server.planning.sizes import ModelSizes, TextSizes, VisionSizes
from spyglass_server.runtime.config import ModelConfig

_BF16 = Precision.of(2, "none")


def layer_bytes(config: ModelConfig, sees_image: bool, bytes_of_weight: int = 2) -> float:
    """What a step reads of its layers' weights, without the keys and values of images."""
    precision = Precision(itemsize=2, linear_itemsize=bytes_of_weight)
    return costs.weight_bytes(_sizes(config), precision, sees_images=sees_image, has_logits=False)


def head_bytes(config: ModelConfig) -> float:
    """What a step that samples reads of the head."""
    return float(_BF16.itemsize * _sizes(config).text.head)


def kv_bytes(config: ModelConfig, context: int, num_seeing: int) -> float:
    """What a decode step reads of its caches: `context` tokens of text in all rows together, and an image of as many
    tiles as one may have for each row that sees one."""
    sizes = _sizes(config)
    text = costs.kv_bytes(sizes, _BF16, Step(num_rows=1, context=context))
    seen = costs.image_tokens(sizes, sizes.vision.max_tiles)
    return text + costs.kv_bytes(sizes, _BF16, Step(num_rows=num_seeing, image_tokens=seen))


def prefill_operations(config: ModelConfig, tokens: int, start: int) -> float:
    """Of `tokens` tokens of a prompt without images that has `start` tokens before them, without the head."""
    work = costs.step_work(_sizes(config), _BF16, Step(prompt_tokens=tokens, start=start), is_end=False)
    return work.linear_operations + work.operations


def image_operations(config: ModelConfig) -> float:
    """Of encoding an image of as many tiles as one may have."""
    work = costs.image_work(_sizes(config), _BF16, config.vision.max_tiles)
    return work.linear_operations + work.operations


def _sizes(config: ModelConfig) -> ModelSizes:
    text, vision = config.text, config.vision
    return ModelSizes(
        text=TextSizes(
            vocab_size=text.vocab_size,
            embeddings=text.num_embeddings,
            hidden_size=text.hidden_size,
            intermediate_size=text.intermediate_size,
            num_layers=text.num_layers,
            num_cross_layers=len(text.cross_layers),
            num_heads=text.num_heads,
            num_kv_heads=text.num_kv_heads,
            head_dim=text.head_dim,
            max_position=text.max_position,
        ),
        vision=VisionSizes(
            hidden_size=vision.hidden_size,
            patch_outputs=vision.hidden_size,
            intermediate_size=vision.intermediate_size,
            num_layers=vision.num_layers,
            num_global_layers=vision.num_global_layers,
            num_heads=vision.num_heads,
            head_dim=vision.head_dim,
            tile_size=vision.tile_size,
            patch_size=vision.patch_size,
            max_tiles=vision.max_tiles,
            num_aspect_ratios=len(vision.aspect_ratios),
            output_size=vision.output_size,
        ),
    )
