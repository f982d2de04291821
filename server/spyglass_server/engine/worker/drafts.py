"""Drafts an answer's next tokens, which the model then checks several at a time.

A draft is a guess: its tokens are computed together, each position yields the token that would have been drawn there,
and guesses are kept up to the first that differs. So the answer is the same with and without drafts; only the number of
tokens per step changes.

Guesses come from the sequence itself, by repeating what followed the last few tokens earlier, and from a text that the
caller expects (`EngineRequest.prediction`).
"""

from collections.abc import Sequence

_LENGTHS = (3, 2)
"""How many of the last tokens to search for, longest first."""
_FIRST_LENGTH, _MAX_LENGTH = 4, 16
"""How many tokens to guess at once: initially, and at most, when all guesses are right."""
_PATIENCE = 0.3
"""Minimum average share of right guesses; below it, guessing does not pay."""
_MEMORY = 0.8
"""Weight of earlier guesses in the moving average."""
_REST = 16
"""Number of steps without a guess after guessing did not pay."""
_STRIDE = 1024
"""Maximum tokens of a long prompt to index at once, which takes a few milliseconds of a step."""


class _Places:
    """Indexes tokens by short runs: where each run last occurred, and so what followed it."""

    __slots__ = ("_found", "_num_seen")

    def __init__(self) -> None:
        self._found: dict[tuple[int, ...], int] = {}
        self._num_seen = 0

    def look_through(self, tokens: Sequence[int]) -> bool:
        """Indexes some more of `tokens`, which may have grown; returns whether all are indexed."""
        until = min(len(tokens), self._num_seen + _STRIDE)
        for end in range(max(self._num_seen, 1), until):
            for count in _LENGTHS:
                if count <= end:
                    self._found[tuple(tokens[end - count : end])] = end
        self._num_seen = until
        return until == len(tokens)

    def after(self, tokens: Sequence[int]) -> int | None:
        """Returns the position after the latest indexed occurrence of the last few tokens, or None."""
        found = (self._found.get(tuple(tokens[-count:])) for count in _LENGTHS)
        return next((place for place in found if place is not None), None)


class Drafter:
    """Guesses for one sequence, and tracks how good the guesses are."""

    __slots__ = ("_expected", "_length", "_num_prompt", "_own", "_predicted", "_rest", "_success")

    def __init__(self, num_prompt: int, predicted: Sequence[int] = ()) -> None:
        """The first `num_prompt` tokens are the prompt; `predicted` is the expected answer."""
        self._num_prompt = num_prompt
        self._predicted = tuple(predicted)
        self._own, self._expected = _Places(), _Places()
        self._length = _FIRST_LENGTH
        self._success = 1.0
        self._rest = 0

    def guess(self, tokens: Sequence[int], limit: int) -> tuple[int, ...]:
        """Returns at most `limit` tokens that may follow those of the sequence; none without a basis for a guess."""
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
        """Records how many tokens of the last guess were right."""
        self._success = _MEMORY * self._success + (1 - _MEMORY) * num_right / num_guessed
        if num_right == num_guessed:
            self._length = min(2 * self._length, _MAX_LENGTH)
        else:
            self._length = max(2, num_right + 1)
        if self._success < _PATIENCE:
            self._rest, self._success, self._length = _REST, 2 * _PATIENCE, 2

    def _place(self, tokens: Sequence[int]) -> tuple[Sequence[int], int]:
        """Returns the tokens to guess from, and where in them the guess begins."""
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
