"""Limits how much one step may compute.

Whatever else a decoding step computes delays every running answer. So it computes either a few prompt tokens
(`max_chunk_tokens`) or a slice of an image.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of one step: concurrent sequences (choices), and tokens computed.

    `max_chunk_tokens` bounds prompt tokens in a step that also decodes; None sets no separate limit. Each token of
    context adds `context_cost` to what a prompt token counts there. `max_draft_rows` bounds a step's answer tokens,
    guesses included, when tokens are guessed; 0 disables guessing.
    """

    max_batch: int
    max_step_tokens: int
    max_chunk_tokens: int | None = None
    context_cost: float = 0.0
    max_draft_rows: int = 0


class StepBudget:
    """The remaining budget of one step. Answers must be planned before prompts."""

    def __init__(self, limits: Limits, is_images_turn: bool) -> None:
        """`is_images_turn`: beside answers, this step computes a slice of an image and no prompt."""
        self._context_cost = limits.context_cost
        self._tokens = limits.max_step_tokens
        self._chunk: float = limits.max_chunk_tokens or limits.max_step_tokens
        self._is_images_turn = is_images_turn
        self._has_answers = self._has_prompts = False

    @property
    def has_room_for_image(self) -> bool:
        """Whether the step, as planned so far, may include a slice of an image."""
        return self._is_images_turn or not (self._has_answers and self._has_prompts)

    def tokens_for(self, remaining: int, num_computed: int) -> int:
        """How many of a sequence's remaining tokens fit; a sequence with one remaining token decodes."""
        if remaining == 1 or not self._has_answers:
            return min(remaining, self._tokens)
        if self._is_images_turn or self._chunk <= 0:
            return 0
        return min(remaining, self._tokens, max(1, int(self._chunk / self._cost(num_computed))))

    def spend(self, num_tokens: int, remaining: int, num_computed: int) -> None:
        """Deducts the tokens planned for a sequence."""
        self._tokens -= num_tokens
        if remaining == 1:
            self._has_answers = True
        else:
            self._has_prompts = True
            self._chunk -= num_tokens * self._cost(num_computed)

    def _cost(self, num_computed: int) -> float:
        return 1 + self._context_cost * num_computed
