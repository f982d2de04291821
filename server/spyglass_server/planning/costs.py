"""The minimum that a model's steps read, compute and send. Independent of device and engine."""

from dataclasses import dataclass
from typing import Protocol

from spyglass_server.planning.sizes import ModelSizes

_ATTENTION_SLOWNESS = 2.0
"""How much longer an operation of attention takes than one of a linear layer."""
_SUM_BYTES = 4
"""Sums over ranks, and logits, are in float32."""
_KERNELS, _SELF_KERNELS, _CROSS_KERNELS, _VISION_KERNELS = 11, 10, 19, 16
"""Kernels of a step, and of each layer in it, counted in steps of the published models' shapes."""


class Widths(Protocol):
    """The sizes of a text model that determine a token's operations."""

    @property
    def hidden_size(self) -> int: ...
    @property
    def intermediate_size(self) -> int: ...
    @property
    def num_layers(self) -> int: ...
    @property
    def num_self_layers(self) -> int: ...
    @property
    def num_heads(self) -> int: ...
    @property
    def num_kv_heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...


def context_cost(text: Widths) -> float:
    """The cost of a token of context for each token that reads it, as a share of a token's cost without context."""
    width = 2 * (text.num_heads + text.num_kv_heads) * text.head_dim + 3 * text.intermediate_size
    operations = 2 * text.num_layers * text.hidden_size * width
    reading = 4 * text.num_self_layers * text.num_heads * text.head_dim
    return _ATTENTION_SLOWNESS * reading / operations


@dataclass(frozen=True, slots=True, kw_only=True)
class Precision:
    """Bytes per number, and per weight in the linear layers of the text model."""

    itemsize: int
    linear_itemsize: int

    @classmethod
    def of(cls, itemsize: int, quantization: str) -> "Precision":
        return cls(itemsize=itemsize, linear_itemsize=itemsize if quantization == "none" else 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """The bytes that one rank reads, the operations of its text model's linear layers and all others, the sums over
    ranks that it takes part in and their bytes, and the kernels that it runs."""

    read_bytes: float = 0.0
    linear_operations: float = 0.0
    operations: float = 0.0
    num_sums: int = 0
    sum_bytes: float = 0.0
    num_kernels: int = 0

    def __add__(self, other: "Work") -> "Work":
        return Work(
            read_bytes=self.read_bytes + other.read_bytes,
            linear_operations=self.linear_operations + other.linear_operations,
            operations=self.operations + other.operations,
            num_sums=self.num_sums + other.num_sums,
            sum_bytes=self.sum_bytes + other.sum_bytes,
            num_kernels=self.num_kernels + other.num_kernels,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Rows of a step: decoding rows with `context` tokens before each, and tokens of one prompt with `start` tokens
    before them. In both, those that see images read `image_tokens` states each."""

    num_rows: int = 0
    context: float = 0.0
    prompt_tokens: int = 0
    start: int = 0
    image_tokens: int = 0

    @property
    def tokens(self) -> int:
        """All computed tokens."""
        return self.num_rows + self.prompt_tokens


def step_work(model: ModelSizes, precision: Precision, step: Step, *, is_end: bool = True) -> Work:
    """The work of a step of the text model, or of one rank's part; prompts that do not end with it have no logits."""
    text, sees = model.text, step.image_tokens > 0
    num_logits = step.num_rows + (1 if step.prompt_tokens and is_end else 0)
    num_cross = text.num_cross_layers if sees else 0
    prompt_pairs = step.prompt_tokens * (step.start + step.prompt_tokens / 2)
    pairs = text.num_self_layers * (step.num_rows * (step.context + 1) + prompt_pairs)
    pairs += num_cross * step.tokens * step.image_tokens
    num_sums = 2 * (text.num_self_layers + num_cross) + 1  # two in a layer, and the embedding's
    logits = num_logits * text.vocab_size
    return Work(
        read_bytes=weight_bytes(model, precision, sees_images=sees, has_logits=num_logits > 0)
        + kv_bytes(model, precision, step),
        linear_operations=2.0 * step.tokens * _layer_weights(model, sees_images=sees),
        operations=2.0 * num_logits * text.head + 4 * text.num_heads * text.head_dim * pairs,
        num_sums=num_sums + 1,
        sum_bytes=_SUM_BYTES * (num_sums * step.tokens * text.hidden_size + logits),
        num_kernels=_KERNELS + _SELF_KERNELS * text.num_self_layers + _CROSS_KERNELS * num_cross,
    )


def weight_bytes(model: ModelSizes, precision: Precision, *, sees_images: bool, has_logits: bool = True) -> float:
    """The bytes of weights that a step reads: those of the layers that it uses, and of the head."""
    head = model.text.head if has_logits else 0
    layers = _layer_weights(model, sees_images=sees_images)
    return float(precision.linear_itemsize * layers + precision.itemsize * head)


def _layer_weights(model: ModelSizes, *, sees_images: bool) -> int:
    text = model.text
    return text.num_self_layers * text.self_layer + (text.num_cross_layers * text.cross_layer if sees_images else 0)


def kv_bytes(model: ModelSizes, precision: Precision, step: Step) -> float:
    """The bytes that a step reads from its caches: the text before each row and prompt, and the images they see."""
    text = model.text
    slot = 2 * precision.itemsize * text.num_kv_heads * text.head_dim
    sequences = step.num_rows + (1 if step.prompt_tokens else 0)
    context = step.num_rows * step.context + step.start
    return slot * (text.num_self_layers * context + text.num_cross_layers * sequences * step.image_tokens)


def image_tokens(model: ModelSizes, num_tiles: int) -> int:
    """The number of states of an image with `num_tiles` tiles."""
    return num_tiles * model.vision.tokens_per_tile


def image_work(model: ModelSizes, precision: Precision, num_tiles: int) -> Work:
    """The work of encoding an image with `num_tiles` tiles: the encoder always computes the maximum number of tiles."""
    vision, text = model.vision, model.text
    tokens, real = image_tokens(model, vision.max_tiles), image_tokens(model, num_tiles)
    layers = vision.num_layers + vision.num_global_layers
    seen = real * tokens + (tokens - real) * real
    encoder = layers * (2 * tokens * vision.layer + 4 * seen * vision.num_heads * vision.head_dim)
    projector = vision.output_size * text.hidden_size
    states = text.num_cross_layers * text.image_kv
    weights = precision.itemsize * (layers * vision.layer + projector)
    return Work(
        read_bytes=weights + precision.linear_itemsize * states,
        linear_operations=2.0 * real * states,
        operations=encoder + 2.0 * real * projector,
        num_sums=2 * layers + 2,  # two in a layer, the projector's, and the patches joined
        sum_bytes=_SUM_BYTES * ((2.0 * layers + 1) * tokens * vision.hidden_size + real * text.hidden_size),
        num_kernels=_VISION_KERNELS * layers,
    )


def step_bytes(model: ModelSizes, itemsize: int, max_tokens: int, max_batch: int) -> int:
    """Estimates what the largest step takes besides weights and caches while the largest image is encoded; the engine
    measures this instead.

    For a step: the residual stream and what is added to it in float32, the widest layer's inputs and outputs; for
    sampling: the logits, and twice as much to draw from them; for an image: the states that the projector reads in
    float32, and a layer's queries, keys, values and feed-forward.
    """
    text, vision = model.text, model.vision
    per_token = 4 * 3 * text.hidden_size + itemsize * (3 * text.intermediate_size + text.hidden_size)
    logits = 3 * 4 * max_batch * text.vocab_size
    tokens = image_tokens(model, vision.max_tiles)
    widths = 4 * (vision.output_size + 3 * vision.hidden_size)
    layer = itemsize * (4 * vision.num_heads * vision.head_dim + 2 * vision.intermediate_size + vision.hidden_size)
    projected = itemsize * text.hidden_size
    return max_tokens * per_token + logits + tokens * (widths + layer + projected)
