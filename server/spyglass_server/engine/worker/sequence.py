"""A sequence of tokens, which the scheduler advances from its prompt to the end of its answer."""

import itertools
from dataclasses import dataclass, field
from enum import Enum, auto

from spyglass_server.engine.messages import EngineRequest, FinishReason, ImageKey
from spyglass_server.engine.structured_output import Matcher
from spyglass_server.engine.worker.drafts import Drafter


class SequenceStatus(Enum):
    """A sequence's state. Only a running sequence holds pages and images."""

    WAITING = auto()
    """It has never run."""
    RUNNING = auto()
    PREEMPTED = auto()
    """It is waiting again, to be recomputed."""
    ENDED = auto()


@dataclass(eq=False, slots=True, kw_only=True)
class Sequence:
    """One choice of a request; before the fork, all of its choices."""

    request: EngineRequest
    choices: tuple[int, ...]
    tokens: list[int]
    """The last one may be a placeholder while a step computes it: -1 - i, for draw i of that step."""
    status: SequenceStatus = SequenceStatus.WAITING
    pages: list[int] = field(default_factory=list)
    """Its block table."""
    hashes: list[bytes] = field(default_factory=list)
    """Block hashes of its full pages, as far as computed."""
    num_computed: int = 0
    """Tokens whose keys and values are in its pages."""
    matcher: Matcher | None = None
    drafter: Drafter | None = None
    """Guesses its next tokens; created on first use."""
    num_guessed: int = 0
    """Number of guesses in its current step."""
    is_forced: bool = False
    """Whether its grammar forces these guesses."""
    num_prompt_logprobs: int = 0
    """Number of prompt positions whose next token's logprob has been returned."""
    image_keys: tuple[ImageKey, ...] = field(init=False)
    number: int = field(init=False, default_factory=itertools.count().__next__)
    """Unique among sequences."""

    def __post_init__(self) -> None:
        self.image_keys = tuple(image.key for image in self.request.images)

    @property
    def tenant(self) -> str:
        return self.request.tenant

    @property
    def is_running(self) -> bool:
        return self.status is SequenceStatus.RUNNING

    @property
    def remaining(self) -> int:
        """Tokens that are not computed yet; 1 while it decodes."""
        return len(self.tokens) - self.num_computed

    @property
    def num_answered(self) -> int:
        """Tokens of its answer so far."""
        return len(self.tokens) - len(self.request.tokens)

    @property
    def image_sizes(self) -> list[tuple[ImageKey, int]]:
        """Its images, each (key, tiles)."""
        return [(image.key, image.num_tiles) for image in self.request.images]

    @property
    def can_be_computed(self) -> bool:
        """Whether there seems to be a next token to compute: one that is not drawn yet may still end the sequence."""
        return self.remaining > 0 and self.num_answered < self.request.max_tokens

    @property
    def needs_last_token(self) -> bool:
        """Whether its last token is not drawn yet and must be known before the next one can be."""
        waits = self.matcher is not None or self.num_guessed > 0 or self.request.sampling.has_penalties
        return self.tokens[-1] < 0 and waits

    def finish_reason(self, length: int) -> FinishReason | None:
        """Why the last of its first `length` tokens ends it, or None."""
        request = self.request
        if self.tokens[length - 1] in request.stop_token_ids:
            return FinishReason.STOP
        return FinishReason.LENGTH if length - len(request.tokens) >= request.max_tokens else None

    def forget_undrawn(self) -> None:
        """Removes the token that is not drawn yet, if any."""
        if self.tokens[-1] < 0:
            self.tokens.pop()

    @property
    def can_guess(self) -> bool:
        """Whether its next tokens may be guessed: it decodes, all its tokens are known, and it has a single choice."""
        return (
            self.remaining == 1
            and self.tokens[-1] >= 0
            and len(self.choices) == 1
            and not self.request.attention_tokens
            and self.num_answered + 1 < self.request.max_tokens
        )

    def guess(self, limit: int) -> tuple[int, ...]:
        """Returns at most `limit` tokens that may come next."""
        if self.drafter is None:
            self.drafter = Drafter(len(self.request.tokens), self.request.prediction)
        return self.drafter.guess(self.tokens, limit)

    def fork(self) -> "Sequence":
        """Returns a copy with the same tokens and pages, and no choices yet."""
        return Sequence(
            request=self.request,
            choices=(),
            tokens=list(self.tokens),
            status=self.status,
            pages=list(self.pages),
            hashes=list(self.hashes),
            num_computed=self.num_computed,
            matcher=self.matcher and self.matcher.fork(),
            num_prompt_logprobs=self.num_prompt_logprobs,
        )
