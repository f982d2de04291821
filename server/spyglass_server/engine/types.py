"""The words that the engine's parts say to each other.

Owns the messages between server and engine process, the unit of work that the scheduler hands to
the runner, and the runner's interface. Knows neither gRPC nor torch.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple, Protocol


class FinishReason(Enum):
    """Why a choice ended."""

    STOP = "stop"
    LENGTH = "length"


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is chosen; `seed` fixes every random number of the request."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int = 0

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0


@dataclass(frozen=True, slots=True)
class ImageKey:
    """What an image's cached states belong to. Tenants never share."""

    tenant: str
    digest: bytes


@dataclass(frozen=True, slots=True)
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


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """One prompt and how to answer it. Already validated: it fits the context and the caches.

    `image_positions` are the indices in `tokens` of the image tokens, one for each of `images`.
    `stop_token_ids` end a choice and are its last token. Only requests of one `tenant` share work, and among
    them the one with the greater `priority` begins sooner.
    """

    id: int
    tokens: tuple[int, ...]
    max_tokens: int
    stop_token_ids: frozenset[int] = frozenset()
    sampling: SamplingParams = SamplingParams()
    n: int = 1
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


@dataclass(frozen=True, slots=True)
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


class TokenOutput(NamedTuple):
    """One more token of one choice, and why the choice ended if it did. A tuple: there is one for every token."""

    id: int
    choice: int
    token: int
    finish: FinishReason | None = None


@dataclass(frozen=True, slots=True)
class RequestFailed:
    """A request that cannot go on. `detail` is for the log, not for callers."""

    id: int
    detail: str


Event = ImagesTaken | RequestBegun | TokenOutput | RequestFailed


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


@dataclass(slots=True)  # frozen ones take four times as long to make, and there is one for each sequence and step
class Row:
    """A run of tokens of one sequence to be computed in this step.

    `tokens` stand at positions start, start + 1, … of the sequence; keys and values go to `pages`,
    which cover everything up to the last of them. `image_tiles` are where the states of the request's images
    stand, in order, and `image_positions` where their tokens do. When `choices` is not empty, the logits of the
    last token are sampled once for each of these choices.
    """

    tokens: Sequence[int]
    start: int
    pages: Sequence[int]
    sampling: SamplingParams
    choices: tuple[int, ...]
    image_tiles: tuple[tuple[int, ...], ...]
    image_positions: tuple[int, ...]

    @property
    def end(self) -> int:
        return self.start + len(self.tokens)


@dataclass(frozen=True, slots=True)
class RowOutput:
    """The tokens sampled for a row's choices, or why the row failed."""

    tokens: tuple[int, ...] = ()
    error: str | None = None


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
