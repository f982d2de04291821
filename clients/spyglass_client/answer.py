"""Results of a generation: chunks while it runs, an answer at its end."""

from dataclasses import dataclass
from typing import Literal

from spyglass.v1 import inference_pb2 as pb
from spyglass_client.attention import ImageGrid, TokenAttention
from spyglass_client.tools import ToolCall, ToolCallPiece
from spyglass_common.deltas import ChoiceDelta

FinishReason = Literal["stop", "length", "tool_calls", "cancelled"]

_FINISH_REASONS: dict[pb.FinishReason.ValueType, FinishReason] = {
    pb.FINISH_REASON_STOP: "stop",
    pb.FINISH_REASON_LENGTH: "length",
    pb.FINISH_REASON_TOOL_CALLS: "tool_calls",
}


def finish_reason_of(reason: pb.FinishReason.ValueType) -> FinishReason | None:
    """Converts a reason of the protocol to its name; None while the choice is unfinished."""
    return _FINISH_REASONS.get(reason)


@dataclass(frozen=True, slots=True)
class TokenProbability:
    """A token's id, its bytes, and the natural logarithm of its probability."""

    token_id: int
    bytes: bytes
    logprob: float


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """The probabilities of the chosen token and of the most probable ones, best first."""

    chosen: TokenProbability
    top: tuple[TokenProbability, ...] = ()

    @classmethod
    def from_proto(cls, token_id: int, found: pb.TokenLogprobs) -> "TokenLogprobs":
        top = tuple(TokenProbability(rival.token_id, rival.bytes, rival.logprob) for rival in found.top)
        return cls(TokenProbability(token_id, found.bytes, found.logprob), top)


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Metered tokens, their cost in US dollars, and how many predicted tokens were accepted and rejected."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    estimated_cost: float = 0.0
    accepted_prediction_tokens: int = 0
    rejected_prediction_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    @classmethod
    def from_proto(cls, usage: pb.Usage) -> "Usage":
        return cls(
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            cached_tokens=usage.cached_tokens,
            estimated_cost=usage.estimated_cost,
            accepted_prediction_tokens=usage.accepted_prediction_tokens,
            rejected_prediction_tokens=usage.rejected_prediction_tokens,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TextChunk:
    """More text of one choice.

    `index` is the choice's number within its generation, from 0. `text` contains only whole characters and may
    be empty while one is incomplete. `token_ids` are its tokens, and `logprobs` their probabilities, if requested.
    `tool_calls` are pieces of calls. `finish_reason` is set in a choice's last chunk. If requested, `usage` covers all
    choices so far, and `attention` is each token's attention to the pictures.
    """

    index: int
    text: str
    token_ids: tuple[int, ...] = ()
    finish_reason: FinishReason | None = None
    logprobs: tuple[TokenLogprobs, ...] = ()
    tool_calls: tuple[ToolCallPiece, ...] = ()
    usage: Usage | None = None
    attention: tuple[TokenAttention, ...] = ()

    @classmethod
    def from_delta(cls, delta: ChoiceDelta) -> "TextChunk":
        return cls(
            index=delta.index,
            text=delta.text,
            token_ids=tuple(delta.token_ids),
            finish_reason=finish_reason_of(delta.finish_reason),
            logprobs=tuple(map(TokenLogprobs.from_proto, delta.token_ids, delta.logprobs)),
            tool_calls=tuple(
                ToolCallPiece(index=one.index, id=one.id, name=one.name, arguments=one.arguments_json)
                for one in delta.tool_calls
            ),
            usage=None if delta.usage is None else Usage.from_proto(delta.usage),
            attention=tuple(map(TokenAttention.from_proto, delta.attention)),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One finished answer. `stop_string` is the stop string that ended it, if one did.

    If requested, `logprobs` has its tokens' probabilities and `attention` their attention to the pictures; `tool_calls`
    are its calls of tools.
    """

    index: int
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    stop_string: str | None = None
    logprobs: tuple[TokenLogprobs, ...] = ()
    tool_calls: tuple[ToolCall, ...] = ()
    attention: tuple[TokenAttention, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A finished generation: at least one choice, ordered by index.

    `image_grids` has the patch grid of each picture of the conversation, if attention was requested.
    """

    request_id: str
    choices: tuple[Choice, ...]
    usage: Usage
    image_grids: tuple[ImageGrid, ...] = ()

    @property
    def text(self) -> str:
        """The text of the first choice."""
        return self.choices[0].text

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """The calls of the first choice."""
        return self.choices[0].tool_calls

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The tokens of the first choice."""
        return self.choices[0].token_ids

    @property
    def finish_reason(self) -> FinishReason:
        """Why the first choice ended; "cancelled" after `cancel()`."""
        return self.choices[0].finish_reason
