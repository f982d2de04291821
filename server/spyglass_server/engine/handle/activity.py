"""How the engine gets on with what it has to do: when it last made a step and a token, and how many tokens a second."""

import time
from collections import deque
from collections.abc import Callable

_WINDOW_S = 10


class Activity:
    """Notes steps and tokens; `clock` gives seconds that never go back.

    Ages count from the beginning of the work, where nothing has come of it yet, and there are none while there is none.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._born_s = clock()
        self._step_s = self._token_s = self._born_s
        self._work_began_s: float | None = None
        self._answers_began_s: float | None = None
        self._tokens: deque[tuple[int, int]] = deque()
        """How many tokens there were in a second, of those in which there were any."""

    def set_work(self, *, has_requests: bool, has_answers: bool) -> None:
        """Says whether the engine has requests, and whether it has begun with any of them."""
        now = self._clock()
        self._work_began_s = (self._work_began_s or now) if has_requests else None
        self._answers_began_s = (self._answers_began_s or now) if has_answers else None

    def note_step(self, num_tokens: int = 0, ago_s: float = 0.0) -> None:
        """A step has ended, and brought so many tokens of answers."""
        now = self._clock()
        self._step_s = max(self._step_s, now - ago_s)
        if not num_tokens:
            return
        self._token_s = now
        second = int(now)
        if self._tokens and self._tokens[-1][0] == second:
            num_tokens += self._tokens.pop()[1]
        self._tokens.append((second, num_tokens))
        self._forget(second)

    @property
    def last_step_age_s(self) -> float | None:
        """Seconds since the last step ended; None while there is nothing to do."""
        return None if self._work_began_s is None else self._clock() - max(self._step_s, self._work_began_s)

    @property
    def last_token_age_s(self) -> float | None:
        """Seconds since the last token of an answer; None while no answer is being written."""
        return None if self._answers_began_s is None else self._clock() - max(self._token_s, self._answers_began_s)

    @property
    def tokens_per_second(self) -> float:
        """Tokens of answers a second, on average over the last ten seconds."""
        now = self._clock()
        self._forget(int(now))
        window_s = min(max(now - self._born_s, 1.0), _WINDOW_S)
        return sum(count for _, count in self._tokens) / window_s

    def _forget(self, second: int) -> None:
        while self._tokens and self._tokens[0][0] <= second - _WINDOW_S:
            self._tokens.popleft()
