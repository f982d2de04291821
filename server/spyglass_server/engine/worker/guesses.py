"""Which tokens a step may guess: how many of each answer, what they are, and where a grammar stands behind each."""

import logging
from collections.abc import Sequence as Seq

from spyglass_server.engine.structured_output import Matcher
from spyglass_server.engine.worker.budget import Limits
from spyglass_server.engine.worker.kv_cache_manager import KVCacheManager
from spyglass_server.engine.worker.sequence import Sequence

log = logging.getLogger(__name__)

_SHORTEST = 3
"""Where fewer tokens of each answer may be guessed, the rows that they add to a step cost more than they bring."""

Guess = tuple[tuple[int, ...], tuple[Matcher, ...]]
"""Tokens that may come next, and the grammar behind each of them, where there is one."""
NO_GUESS: Guess = ((), ())


class StepGuesses:
    """The guesses of one step, which begins with these running sequences."""

    def __init__(self, limits: Limits, cache: KVCacheManager, running: Seq[Sequence]) -> None:
        self._cache, self._running = cache, running
        answers = sum(sequence.remaining == 1 for sequence in running)
        rows = min(limits.max_draft_rows, limits.max_step_tokens)
        longest = rows // answers - 1 if answers else 0
        self._longest = longest if longest >= _SHORTEST else 0
        """Tokens of each answer: the fewer, the more answers there are."""

    def of(self, sequence: Sequence) -> Guess:
        """What may come next in a sequence, where there is room for it."""
        if not self._longest or not sequence.can_guess:
            return NO_GUESS
        limit = min(self._longest, sequence.request.max_tokens - sequence.num_answered - 1)
        forced = _forced(sequence.matcher)[:limit]
        tokens, sequence.is_forced = forced or sequence.guess(limit), bool(forced)
        end = sequence.num_computed + 1 + len(tokens)
        if not tokens or not self._cache.has_spare_room(sequence, end, len(self._running)):
            return NO_GUESS
        if sequence.matcher is None:
            return tokens, ()
        matchers = _matchers_behind(sequence.matcher, tokens)
        return tokens[: len(matchers)], matchers


def _forced(matcher: Matcher | None) -> tuple[int, ...]:
    """What a grammar forces. One that cannot be followed forces nothing here: the row itself will say what is wrong."""
    if matcher is None:
        return ()
    try:
        return matcher.forced()
    except Exception:  # of the grammar's library, too
        log.debug("a grammar forces nothing", exc_info=True)
        return ()


def _matchers_behind(matcher: Matcher, tokens: Seq[int]) -> tuple[Matcher, ...]:
    """Where the grammar stands behind each token of a guess, up to the first that it does not allow."""
    matchers: list[Matcher] = []
    for token in tokens:
        try:
            matcher = matcher.fork()
            matcher.advance(token)
        except Exception:  # of the grammar's library, too
            break
        matchers.append(matcher)
    return tuple(matchers)
