"""How much one step may compute.

A step that decodes delays every running answer by whatever else it computes. So it has few prompt tokens
(`max_chunk_tokens`), and either these or a slice of an image.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much one step may hold: sequences (choices) at once, and tokens computed.

    `max_chunk_tokens` are the tokens of prompts in a step in which answers go on; None sets no other limit
    there. A token counts for more the more context it reads: by `context_cost` for each. Tokens are guessed as long as
    answers have no more than `max_draft_rows` in a step, guesses included; 0 guesses none.
    """

    max_batch: int
    max_step_tokens: int
    max_chunk_tokens: int | None = None
    context_cost: float = 0.0
    max_draft_rows: int = 0


class StepBudget:
    """What is left of one step. Answers must ask first, then prompts."""

    def __init__(self, limits: Limits, is_images_turn: bool) -> None:
        """`is_images_turn`: beside answers there is a piece of an image in this step, and no prompt."""
        self._context_cost = limits.context_cost
        self._tokens = limits.max_step_tokens
        self._chunk: float = limits.max_chunk_tokens or limits.max_step_tokens
        self._is_images_turn = is_images_turn
        self._has_answers = self._has_prompts = False

    @property
    def has_room_for_image(self) -> bool:
        """Whether a piece of an image may be in the step, as it is planned by now."""
        return self._is_images_turn or not (self._has_answers and self._has_prompts)

    def tokens_for(self, remaining: int, num_computed: int) -> int:
        """How many of a sequence's remaining tokens fit; a sequence with one decodes."""
        if remaining == 1 or not self._has_answers:
            return min(remaining, self._tokens)
        if self._is_images_turn or self._chunk <= 0:
            return 0
        return min(remaining, self._tokens, max(1, int(self._chunk / self._cost(num_computed))))

    def spend(self, num_tokens: int, remaining: int, num_computed: int) -> None:
        """Notes what was planned of a sequence."""
        self._tokens -= num_tokens
        if remaining == 1:
            self._has_answers = True
        else:
            self._has_prompts = True
            self._chunk -= num_tokens * self._cost(num_computed)

    def _cost(self, num_computed: int) -> float:
        return 1 + self._context_cost * num_computed
