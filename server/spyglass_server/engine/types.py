"""The words that the engine's parts say to each other.

Owns the messages between server and engine process, the unit of work that the scheduler hands to
the runner, and the runner's interface. Knows neither gRPC nor torch.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple, Protocol


class FinishReason(Enum):
    """Why a choice ended. The engine knows nothing of tools: who reads the text tells TOOL_CALLS from STOP."""

    STOP = "stop"
    LENGTH = "length"
    TOOL_CALLS = "tool_calls"


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How the next token is chosen; `seed` fixes every random number of the request.

    Penalties lower the logits of tokens that are there already: `presence_penalty` once, `frequency_penalty` for each
    time that they stand in the answer; `repetition_penalty` divides positive logits and multiplies negative ones, of
    prompt and answer. `logit_bias` is added to the logits of tokens.
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
    """What an image's cached states belong to. Tenants never share."""

    tenant: str
    digest: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageInput:
    """One image of a prompt, as uint8 tiles in shared memory.

    `rows` x `columns` is the canvas in tiles. The memory block holds rows * columns tiles of
    [3, tile, tile] bytes, RGB planes, tiles in reading order.
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
    """One prompt and how to answer it. Already validated: it fits the context and the caches.

    `image_positions` are the indices in `tokens` of the image tokens, one for each of `images`.
    `stop_token_ids` end a choice and are its last token. Only requests of one `tenant` share work, and among
    them the one with the greater `priority` begins sooner. Before a choice has `min_tokens` it cannot end by a stop
    token. With `top_logprobs` each token comes with its probability and those of so many of the most probable ones.
    An answer is a text of `grammar`, in the compiler's own notation, where there is one. With `tells_prompt` the tokens
    of the prompt come with their probabilities, too.
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
    tells_prompt: bool = False
    images: tuple[ImageInput, ...] = ()
    image_positions: tuple[int, ...] = ()
    tenant: str = ""
    priority: int = 0


# --- from the server to the engine process -----------------------------------------------------


@dataclass(frozen=True, slots=True)
class Submit:
    """Begin a request."""

    request: EngineRequest


@dataclass(frozen=True, slots=True)
class CancelRequest:
    """Drop a request with all its choices; without effect on one that has ended."""

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
class EngineInfo:
    """What the engine has loaded and what fits it.

    `quantization` is how weights are kept, "none" or "int8". `max_tokens` is the longest sequence (prompt and answer)
    that model, limits and cache allow, `max_image_tiles` how many tiles of images one request may hold, `max_choices`
    how many choices it may have.
    """

    dtype: str
    quantization: str
    device: str
    max_tokens: int
    max_image_tiles: int
    max_choices: int


@dataclass(frozen=True, slots=True)
class ImagesTaken:
    """The engine has copied a request's tiles: their shared memory may go."""

    id: int


@dataclass(frozen=True, slots=True)
class RequestBegun:
    """A request is no longer waiting; `cached_tokens` of its prompt need not be computed."""

    id: int
    cached_tokens: int


class Logprobs(NamedTuple):
    """Natural logarithms of probabilities: a token's, and those of the most probable tokens, best first.

    They are the model's own, before temperature, penalties, biases and filters.
    """

    chosen: float
    top_tokens: tuple[int, ...]
    top: tuple[float, ...]


class TokenOutput(NamedTuple):
    """One more token of one choice, and why the choice ended if it did. A tuple: there is one for every token."""

    id: int
    choice: int
    token: int
    finish: FinishReason | None = None
    logprobs: Logprobs | None = None


@dataclass(frozen=True, slots=True)
class PromptTold:
    """Probabilities of the prompt's next tokens, in order; the first piece begins with the second token."""

    id: int
    logprobs: tuple[Logprobs, ...]


@dataclass(frozen=True, slots=True)
class RequestFailed:
    """A request that cannot go on. `detail` is for the log; callers learn whether its grammar did it, and no more."""

    id: int
    detail: str
    by_grammar: bool = False


Event = ImagesTaken | RequestBegun | PromptTold | TokenOutput | RequestFailed


@dataclass(frozen=True, slots=True)
class Ready:
    """The model is loaded."""

    info: EngineInfo


@dataclass(frozen=True, slots=True)
class LoadFailed:
    """The model cannot be loaded; `message` is for the operator."""

    message: str


class StepEvents:
    """All that one step of the engine produced, in order. Tokens cross the pipe as plain tuples, which is faster."""

    __slots__ = ("_packed",)

    def __init__(self, events: Iterable[Event]) -> None:
        self._packed = [tuple(event) if isinstance(event, TokenOutput) else event for event in events]

    def __iter__(self) -> Iterator[Event]:
        return (TokenOutput._make(event) if isinstance(event, tuple) else event for event in self._packed)


Message = Ready | LoadFailed | StepEvents


# --- between scheduler and runner --------------------------------------------------------------


GRAMMAR_LIMITS: dict[str, Any] = {
    "initial_lexer_fuel": 200_000,
    "step_lexer_fuel": 100_000,
    "max_grammar_size": 200_000,
    "max_lexer_states": 20_000,
}
"""What a grammar may cost to begin with, in a step, and in memory for each answer, in the compiler's units: some
tenths of a second, some milliseconds, some tens of megabytes."""


class GrammarFailed(Exception):
    """A grammar cannot be followed any further, or not at all; the text is for the log."""


class Matcher(Protocol):
    """Where one answer stands in its grammar."""

    @property
    def is_ready(self) -> bool:
        """Whether the grammar is compiled. Until then the other methods wait for that."""
        ...

    def allowed(self) -> bytes:
        """The tokens that may follow: one bit for each, that of the first one lowest in the first byte.

        Raises:
            GrammarFailed: none can be told.
        """
        ...

    def advance(self, token: int) -> None:
        """Takes the next token, which is none that ends the answer.

        Raises:
            GrammarFailed: it was not allowed.
        """

    def fork(self) -> "Matcher":
        """Another one that stands at the same place."""
        ...


class GrammarCompiler(Protocol):
    """Compiles grammars beside the steps of the engine."""

    def matcher(self, grammar: str) -> Matcher:
        """At the beginning of an answer; returns at once."""
        ...


# frozen ones take four times as long to make, and there is one for each sequence and step
@dataclass(slots=True, kw_only=True)
class Row:
    """A run of tokens of one sequence to be computed in this step.

    `tokens` stand at positions start, start + 1, … of the sequence; keys and values go to `pages`,
    which cover everything up to the last of them. `image_tiles` are where the states of the request's images
    stand, in order, and `image_positions` where their tokens do. When `choices` is not empty, the logits of the
    last token are sampled once for each of these choices. `history` is all of the sequence up to the row's end, of
    which the first `num_prompt` are the prompt; it may be left out where there are no penalties. Tokens in `barred`
    are not chosen, nor any that `matcher` does not allow. The probabilities of `told` are wanted, the tokens that
    follow those from `told_from` on, counted in the row.
    """

    tokens: Sequence[int]
    start: int
    pages: Sequence[int]
    sampling: SamplingParams
    choices: tuple[int, ...]
    image_tiles: tuple[tuple[int, ...], ...]
    image_positions: tuple[int, ...]
    history: Sequence[int] = ()
    num_prompt: int = 0
    barred: Collection[int] = ()
    matcher: Matcher | None = None
    top_logprobs: int | None = None
    told_from: int = 0
    told: Sequence[int] = ()

    @property
    def end(self) -> int:
        return self.start + len(self.tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class RowOutput:
    """The tokens sampled for a row's choices, with their probabilities if it asks for them, or why the row failed, and
    whether its grammar did it."""

    tokens: tuple[int, ...] = ()
    logprobs: tuple[Logprobs, ...] = ()
    told: tuple[Logprobs, ...] = ()
    error: str | None = None
    by_grammar: bool = False


class DeviceLost(BaseException):
    """Nothing can be computed any more until the process starts again; no row is to blame, so nobody catches it."""


class Runner(Protocol):
    """Does the arithmetic. Holds the tensors of pages and tiles, but decides nothing."""

    def take_image(self, image: ImageInput) -> None:
        """Copies an image's pixels out of shared memory and keeps them until `drop_image`."""

    def drop_image(self, key: ImageKey) -> None:
        """Forgets an image's pixels; its states stay where they are."""

    def encode_image(self, key: ImageKey, tiles: Sequence[int]) -> bool:
        """Goes on computing the states of an image whose pixels it holds, for a bounded time.

        Returns whether they are complete now, and stand in `tiles`; else it must be called again.
        """
        ...

    def copy_pages(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copies pages, each (source, target); all sources are read before any target is written."""

    def execute(self, rows: Sequence[Row]) -> list[RowOutput]:
        """Computes all rows as one batch; may be repeated with the same rows.

        Raises whatever goes wrong with the batch as a whole, DeviceLost when no other will do better; a row
        whose logits are not finite is reported in its output instead.
        """
        ...
