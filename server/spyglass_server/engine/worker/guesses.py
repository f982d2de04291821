"""Chooses the tokens that a step guesses for each answer, and tracks the grammar's state after each of them."""

import logging
from collections.abc import Sequence as Seq

from spyglass_server.engine.structured_output import Matcher
from spyglass_server.engine.worker.budget import Limits
from spyglass_server.engine.worker.kv_cache_manager import KVCacheManager
from spyglass_server.engine.worker.sequence import Sequence

log = logging.getLogger(__name__)

_SHORTEST = 3
"""Minimum guess length; shorter guesses do not pay for the rows that they add to a step."""

Guess = tuple[tuple[int, ...], tuple[Matcher, ...]]
"""Tokens that may come next, and the grammar's matcher after each of them, if there is a grammar."""
NO_GUESS: Guess = ((), ())


class StepGuesses:
    """The guesses of one step; `running` are the sequences at its start."""

    def __init__(self, limits: Limits, cache: KVCacheManager, running: Seq[Sequence]) -> None:
        self._cache, self._running = cache, running
        answers = sum(sequence.remaining == 1 for sequence in running)
        rows = min(limits.max_draft_rows, limits.max_step_tokens)
        longest = rows // answers - 1 if answers else 0
        self._longest = longest if longest >= _SHORTEST else 0
        """Maximum tokens guessed per answer; the more answers, the fewer."""

    def of(self, sequence: Sequence) -> Guess:
        """Returns what may come next in a sequence, if there is room for it."""
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
    """Returns the tokens that a grammar forces; none if it fails, as the row itself will report the error."""
    if matcher is None:
        return ()
    try:
        return matcher.forced()
    except Exception:  # including the grammar library's
        log.debug("a grammar forces nothing", exc_info=True)
        return ()


def _matchers_behind(matcher: Matcher, tokens: Seq[int]) -> tuple[Matcher, ...]:
    """Returns the matcher's state after each token of a guess, up to the first that the grammar does not allow."""
    matchers: list[Matcher] = []
    for token in tokens:
        try:
            matcher = matcher.fork()
            matcher.advance(token)
        except Exception:  # including the grammar library's
            break
        matchers.append(matcher)
    return tuple(matchers)
