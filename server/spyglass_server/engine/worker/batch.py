"""The unit of work that the scheduler hands to the runner, and the runner's interface."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from spyglass_server.engine.messages import EngineRequest, ImageInput, ImageKey, ImageMap, Logprobs
from spyglass_server.engine.structured_output import Matcher


@dataclass(slots=True, kw_only=True)  # not frozen, which would triple the time to make one
class Row:
    """A run of tokens of one sequence to be computed in this step.

    `sequence` is the unique number of its sequence. `tokens` are at positions start, start + 1, … of it; their keys and
    values go to `pages`, its block table, which covers everything up to the last of them. `image_tiles` are the tiles
    that hold the cross-attention states of the request's images, in order. If `choices` is not empty, the logits of the
    last token are sampled once for each of these choices. `history` is the sequence up to the row's end if the request
    has penalties, and empty otherwise. Stop tokens are not sampled unless `may_stop`, nor are tokens that `matcher`
    does not allow. If the request wants prompt logprobs, this row's begin with those after token
    `prompt_logprobs_start` of `tokens`. The last `num_drafts` of `tokens` are guesses: the logits of each of them, and
    of the token before them, are sampled. With a `matcher`, `draft_matchers` are its states after each guess.
    """

    request: EngineRequest
    tokens: tuple[int, ...]
    start: int
    pages: tuple[int, ...]
    choices: tuple[int, ...] = ()
    image_tiles: tuple[tuple[int, ...], ...] = ()
    history: tuple[int, ...] = ()
    may_stop: bool = True
    matcher: Matcher | None = None
    prompt_logprobs_start: int = 0
    sequence: int = 0
    num_drafts: int = 0
    draft_matchers: tuple[Matcher, ...] = ()

    @property
    def end(self) -> int:
        return self.start + len(self.tokens)

    def sampled(self) -> "list[Row]":
        """Returns a row for each position whose logits are sampled, ending there."""
        if not self.num_drafts:
            return [self] if self.choices else []
        rows = []
        matchers = (self.matcher, *self.draft_matchers) if self.draft_matchers else (self.matcher,) * len(self.tokens)
        for number, left in enumerate(range(self.num_drafts, -1, -1)):
            rows.append(
                replace(
                    self,
                    tokens=self.tokens[: len(self.tokens) - left],
                    history=self.history[: len(self.history) - left],
                    may_stop=self.num_answered + number >= self.request.min_tokens,
                    matcher=matchers[number],
                    num_drafts=0,
                    draft_matchers=(),
                )
            )
        return rows

    @property
    def num_answered(self) -> int:
        """How many tokens the answer has before the first one that this row samples."""
        return self.end - self.num_drafts - len(self.request.tokens)

    @property
    def tells_attention(self) -> bool:
        """Whether its last token's attention to images is returned."""
        return bool(self.choices) and 0 <= self.end - len(self.request.tokens) < self.request.attention_tokens

    @property
    def prompt_targets(self) -> tuple[int, ...]:
        """The prompt tokens whose logprobs this row yields."""
        if not self.request.prompt_logprobs:
            return ()
        return self.request.tokens[self.start + self.prompt_logprobs_start + 1 : self.end + 1]


@dataclass(frozen=True, slots=True, kw_only=True)
class RowOutput:
    """The tokens sampled for a row's choices, with logprobs and attention to images if requested, or why the row failed
    and whether its grammar was the cause."""

    tokens: tuple[int, ...] = ()
    logprobs: tuple[Logprobs, ...] = ()
    prompt_logprobs: tuple[Logprobs, ...] = ()
    attention: tuple[ImageMap | None, ...] | None = None
    error: str | None = None
    by_grammar: bool = False
    drafted: "tuple[RowOutput, ...]" = ()
    """The output after each of the row's guesses."""


Pending = Callable[[], list[RowOutput]]
"""Waits for the outputs of a batch and returns them."""


class DeviceLost(BaseException):
    """Nothing can be computed until the process restarts. Derives from BaseException, as no row is to blame and no
    caller should catch it."""


class Runner(Protocol):
    """Does the arithmetic. Holds the tensors of pages and tiles, but makes no decisions."""

    looks_ahead: bool
    """Whether it computes asynchronously. If so, a batch is best started before the outputs of the previous one are
    known: calls take effect in order, and a token -1 - i of a row stands for the result of draw i of the previous
    batch."""

    def take_image(self, image: ImageInput) -> None:
        """Copies an image's pixels out of shared memory and keeps them until `drop_image`."""

    def drop_image(self, key: ImageKey) -> None:
        """Forgets an image's pixels; its states stay."""

    def encode_image(self, key: ImageKey, tiles: Sequence[int]) -> bool:
        """Continues computing the states of an image whose pixels it holds, for a bounded time.

        Returns whether they are complete and stored in `tiles`; if not, call it again.
        """
        ...

    def copy_pages(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copies pages, each (source, target); all sources are read before any target is written."""

    def start(self, rows: Sequence[Row]) -> Pending:
        """Starts computing rows as one batch. This call or the `Pending` raises what `execute` raises."""
        ...

    def execute(self, rows: Sequence[Row]) -> list[RowOutput]:
        """Computes all rows as one batch; may be repeated with the same rows.

        Raises any error of the batch as a whole, DeviceLost if no other batch would succeed either; a row whose logits
        are not finite is reported in its output instead.
        """
        ...

    def close(self) -> None:
        """Releases other processes; nothing can be computed after this."""
