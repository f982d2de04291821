"""Drafts of what an answer says next, which the model then checks several tokens at a time.

A draft is a guess: its tokens are computed together, each position gives the token that would have been drawn there,
and as many guesses are kept as are the same. So an answer is the same with and without; only how many tokens a step
brings differs.

Guesses come from what stands in the sequence already: after the last few tokens the same follows as followed them
before. And from a text that the caller expects (`EngineRequest.prediction`).
"""

from collections.abc import Sequence

_LENGTHS = (3, 2)
"""How many last tokens are looked for, the longer first."""
_FIRST_LENGTH, _MAX_LENGTH = 4, 16
"""How many tokens are guessed at once: at first, and at most when all guesses are right."""
_PATIENCE = 0.3
"""Guesses that are right less often than this, on average, do not pay."""
_MEMORY = 0.8
"""How much of the average is what was before."""
_REST = 16
"""So many steps go without a guess after some that did not pay."""
_STRIDE = 1024
"""So many tokens of a long prompt are looked through at once: a few milliseconds of a step."""


class _Places:
    """Where in some tokens that stands which follows the latest occurrence of a few of them."""

    __slots__ = ("_found", "_num_seen")

    def __init__(self) -> None:
        self._found: dict[tuple[int, ...], int] = {}
        self._num_seen = 0

    def look_through(self, tokens: Sequence[int]) -> bool:
        """Notes some more of tokens that may have grown; returns whether all are noted."""
        until = min(len(tokens), self._num_seen + _STRIDE)
        for end in range(max(self._num_seen, 1), until):
            for count in _LENGTHS:
                if count <= end:
                    self._found[tuple(tokens[end - count : end])] = end
        self._num_seen = until
        return until == len(tokens)

    def after(self, tokens: Sequence[int]) -> int | None:
        """What follows the last few of these tokens stands here."""
        found = (self._found.get(tuple(tokens[-count:])) for count in _LENGTHS)
        return next((place for place in found if place is not None), None)


class Drafter:
    """Guesses for one sequence, and how good they have been."""

    __slots__ = ("_expected", "_length", "_num_prompt", "_own", "_predicted", "_rest", "_success")

    def __init__(self, num_prompt: int, predicted: Sequence[int] = ()) -> None:
        """`num_prompt` tokens are not of the answer; `predicted` is what that is expected to be."""
        self._num_prompt = num_prompt
        self._predicted = tuple(predicted)
        self._own, self._expected = _Places(), _Places()
        self._length = _FIRST_LENGTH
        self._success = 1.0
        self._rest = 0

    def guess(self, tokens: Sequence[int], limit: int) -> tuple[int, ...]:
        """At most so many tokens that may come after those of the sequence; none where there is nothing to go by."""
        self._expected.look_through(self._predicted)
        is_known = self._own.look_through(tokens)
        if self._rest:
            self._rest -= 1
            return ()
        if not is_known:
            return ()
        source, begin = self._place(tokens)
        return tuple(source[begin : begin + min(limit, self._length)])

    def learn(self, num_guessed: int, num_right: int) -> None:
        """Takes in how many tokens of the last guess were right."""
        self._success = _MEMORY * self._success + (1 - _MEMORY) * num_right / num_guessed
        if num_right == num_guessed:
            self._length = min(2 * self._length, _MAX_LENGTH)
        else:
            self._length = max(2, num_right + 1)
        if self._success < _PATIENCE:
            self._rest, self._success, self._length = _REST, 2 * _PATIENCE, 2

    def _place(self, tokens: Sequence[int]) -> tuple[Sequence[int], int]:
        """Where a guess begins."""
        answered = len(tokens) - self._num_prompt
        if (
            self._predicted
            and answered < _LENGTHS[0]
            and tuple(tokens[self._num_prompt :]) == self._predicted[:answered]
        ):
            return self._predicted, answered
        for places, source in ((self._expected, self._predicted), (self._own, tokens)):
            if (place := places.after(tokens)) is not None:
                return source, place
        return (), 0
