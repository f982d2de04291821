"""The messages between the server and its engine process."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple


class FinishReason(Enum):
    """Why a choice ended. The engine never returns TOOL_CALLS: the server finds tool calls in the text."""

    STOP = "stop"
    LENGTH = "length"
    TOOL_CALLS = "tool_calls"


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How the next token is chosen; `seed` fixes every random number of the request.

    Penalties lower the logits of tokens that already occur: `presence_penalty` once, `frequency_penalty` for each
    occurrence in the answer; `repetition_penalty` divides positive logits and multiplies negative ones, for tokens of
    prompt and answer. `logit_bias` pairs tokens with values to add to their logits.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int = 0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0

    @property
    def has_penalties(self) -> bool:
        return self.presence_penalty != 0 or self.frequency_penalty != 0 or self.repetition_penalty != 1


@dataclass(frozen=True, slots=True)
class ImageKey:
    """Identifies an image's cached states. Tenants never share them."""

    tenant: str
    digest: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageInput:
    """One image of a prompt, as uint8 tiles in shared memory.

    `rows` x `columns` is the canvas in tiles. The memory block holds rows * columns tiles of [3, tile, tile] bytes, as
    RGB planes, in reading order.
    """

    key: ImageKey
    rows: int
    columns: int
    memory_name: str

    @property
    def num_tiles(self) -> int:
        return self.rows * self.columns


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRequest:
    """One prompt and how to answer it, already validated: it fits the context and the caches.

    `image_positions` are the indices in `tokens` of the image tokens, one for each of `images`. A token of
    `stop_token_ids` ends a choice and is its last token, but not before the choice has `min_tokens`. Requests of one
    `tenant` share cached work; among them, those of greater `priority` are scheduled first. With `top_logprobs`, each
    token comes with its own logprob and those of that many alternatives. Answers follow `grammar`, in the compiler's
    notation, if there is one. With `prompt_logprobs`, prompt tokens come with their logprobs, too. The first
    `attention_tokens` of an answer come with their attention to the images, averaged over the cross-attention layers
    `attention_layers`, or over all. `prediction` is the expected answer; it only affects speed.
    """

    id: int
    tokens: tuple[int, ...]
    max_tokens: int
    min_tokens: int = 0
    stop_token_ids: frozenset[int] = frozenset()
    sampling: SamplingParams = SamplingParams()
    n: int = 1
    top_logprobs: int | None = None
    grammar: str = ""
    prompt_logprobs: bool = False
    images: tuple[ImageInput, ...] = ()
    image_positions: tuple[int, ...] = ()
    attention_tokens: int = 0
    attention_layers: tuple[int, ...] = ()
    prediction: tuple[int, ...] = ()
    tenant: str = ""
    priority: int = 0


# --- from the server to the engine process -----------------------------------------------------


@dataclass(frozen=True, slots=True)
class Submit:
    """Begin a request."""

    request: EngineRequest


@dataclass(frozen=True, slots=True)
class CancelRequest:
    """Drop a request with all its choices; no effect if it has ended."""

    id: int


@dataclass(frozen=True, slots=True)
class CancelChoice:
    """Drop one choice, because its text met a stop string."""

    id: int
    index: int


@dataclass(frozen=True, slots=True)
class Shutdown:
    """End the engine process."""


Command = Submit | CancelRequest | CancelChoice | Shutdown


# --- from the engine process to the server -----------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryInfo:
    """How a device's memory is used, in bytes, and how many text tokens and image tiles the caches hold.

    For a CPU, `device_bytes` is the memory of the machine, whose name is `host`.
    """

    host: str
    device_name: str
    device_bytes: int
    weight_bytes: int
    kv_cache_tokens: int
    kv_cache_bytes: int
    image_cache_tiles: int
    image_cache_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineInfo:
    """What the engine has loaded, and its limits.

    `quantization` is the format of the weights: "none", "fp8" or "int8". `max_tokens` is the longest sequence (prompt
    and answer) that model, limits and cache allow; `max_image_tiles` and `max_choices` bound the image tiles and the
    choices of one request. The model has `num_cross_layers` cross-attention layers, and a tile has `patches_per_side`
    patches in each row and column. `ranks` lists the memory of each rank, in rank order.
    """

    dtype: str
    quantization: str
    device: str
    max_tokens: int
    max_image_tiles: int
    max_choices: int
    num_cross_layers: int
    patches_per_side: int
    ranks: tuple[MemoryInfo, ...]

    @property
    def memory(self) -> MemoryInfo:
        """The first rank's."""
        return self.ranks[0]


@dataclass(frozen=True, slots=True)
class ImagesTaken:
    """The engine has copied a request's tiles; their shared memory may be freed."""

    id: int


@dataclass(frozen=True, slots=True)
class RequestScheduled:
    """A request is no longer waiting; `cached_tokens` of its prompt need not be computed.

    `at_s` is when its first step began, on the machine's monotonic clock.
    """

    id: int
    cached_tokens: int
    at_s: float = 0.0


@dataclass(frozen=True, slots=True)
class ImageEncoded:
    """An image of a request was fully encoded at `at_s`, on the machine's monotonic clock."""

    id: int
    at_s: float


class Logprobs(NamedTuple):
    """Natural logarithms of probabilities: the chosen token's, and those of the most probable tokens, best first.

    They come straight from the model, before temperature, penalties, biases and filters.
    """

    chosen: float
    top_tokens: tuple[int, ...]
    top: tuple[float, ...]


class ImageMap(NamedTuple):
    """How much a token attends to each patch of an image: one byte per patch, row by row, times `scale` / 255."""

    scale: float
    data: bytes


class TokenOutput(NamedTuple):
    """The next token of a choice, and why the choice ended if it did. A tuple, as there is one for every token.

    `attention`, if requested, has a map for each image of the request, None for an image that the token does not see.
    """

    id: int
    choice: int
    token: int
    finish: FinishReason | None = None
    logprobs: Logprobs | None = None
    attention: tuple[ImageMap | None, ...] | None = None


@dataclass(frozen=True, slots=True)
class Drafted:
    """How many tokens a step guessed for a request, and how many of them were right."""

    id: int
    num_guessed: int
    num_right: int


@dataclass(frozen=True, slots=True)
class PromptLogprobs:
    """Logprobs of the next prompt tokens, in order; the first piece begins with the second token."""

    id: int
    logprobs: tuple[Logprobs, ...]


@dataclass(frozen=True, slots=True)
class RequestFailed:
    """A request cannot continue. `detail` is for the log; callers only learn whether its grammar was the cause."""

    id: int
    detail: str
    by_grammar: bool = False


Event = ImagesTaken | RequestScheduled | ImageEncoded | PromptLogprobs | Drafted | TokenOutput | RequestFailed


@dataclass(frozen=True, slots=True)
class Ready:
    """The model is loaded."""

    info: EngineInfo


@dataclass(frozen=True, slots=True)
class LoadFailed:
    """The model cannot be loaded; `message` is for the operator."""

    message: str


class StepStats(NamedTuple):
    """What a step did, and how full the caches are after it, from 0 to 1.

    Prefix cache queries and hits are in prompt tokens, those of the image cache in images. `encode_s` is how long the
    vision encoder took for each image that it completed.
    """

    num_tokens: int
    kv_cache_usage: float
    image_cache_usage: float
    prefix_cache_queries: int = 0
    prefix_cache_hits: int = 0
    image_cache_queries: int = 0
    image_cache_hits: int = 0
    num_preemptions: int = 0
    encode_s: tuple[float, ...] = ()


class StepEvents:
    """All events of one engine step, in order. Tokens cross the pipe as plain tuples, which is faster.

    `stats` is None if nothing was computed.
    """

    __slots__ = ("_packed", "_stats", "num_tokens")

    def __init__(self, events: Iterable[Event], stats: StepStats | None = None) -> None:
        self._stats = None if stats is None else tuple(stats)
        self._packed = [tuple(event) if isinstance(event, TokenOutput) else event for event in events]
        self.num_tokens = sum(type(event) is tuple for event in self._packed)
        """How many of them are answer tokens."""

    @property
    def stats(self) -> StepStats | None:
        return None if self._stats is None else StepStats._make(self._stats)

    def __iter__(self) -> Iterator[Event]:
        return (TokenOutput._make(event) if isinstance(event, tuple) else event for event in self._packed)


@dataclass(frozen=True, slots=True)
class Alive:
    """The process is alive.

    `step_s` is how long the current step has been running, 0 if there is none; `since_step_s` is how long ago the last
    one ended.
    """

    step_s: float
    since_step_s: float


Message = Ready | LoadFailed | StepEvents | Alive
