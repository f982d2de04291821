"""Tracks the engine's progress: when it last completed a step and a token, and how many tokens it makes a second."""

import time
from collections import deque
from collections.abc import Callable

_WINDOW_S = 10


class Activity:
    """Records steps and tokens; `clock` returns monotonic seconds.

    Until work yields a first result, ages count from when it began; without work they are None.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._born_s = clock()
        self._step_s = self._token_s = self._born_s
        self._work_began_s: float | None = None
        self._answers_began_s: float | None = None
        self._tokens: deque[tuple[int, int]] = deque()
        """Each second that had tokens, and their number."""

    def set_work(self, *, has_requests: bool, has_answers: bool) -> None:
        """Sets whether the engine has requests, and whether it has begun any of them."""
        now = self._clock()
        self._work_began_s = (self._work_began_s or now) if has_requests else None
        self._answers_began_s = (self._answers_began_s or now) if has_answers else None

    def note_step(self, num_tokens: int = 0, ago_s: float = 0.0) -> None:
        """Records a step that ended `ago_s` seconds ago and produced `num_tokens` answer tokens."""
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
        """Seconds since the last step ended; None while there is no work."""
        return None if self._work_began_s is None else self._clock() - max(self._step_s, self._work_began_s)

    @property
    def last_token_age_s(self) -> float | None:
        """Seconds since the last answer token; None while no answer is being generated."""
        return None if self._answers_began_s is None else self._clock() - max(self._token_s, self._answers_began_s)

    @property
    def tokens_per_second(self) -> float:
        """Answer tokens per second, averaged over the last ten seconds."""
        now = self._clock()
        self._forget(int(now))
        window_s = min(max(now - self._born_s, 1.0), _WINDOW_S)
        return sum(count for _, count in self._tokens) / window_s

    def _forget(self, second: int) -> None:
        while self._tokens and self._tokens[0][0] <= second - _WINDOW_S:
            self._tokens.popleft()
