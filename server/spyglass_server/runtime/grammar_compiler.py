"""Compiles grammars for the model's vocabulary in a thread, and keeps the most recently used ones.

Grammars are in llguidance's notation and already checked.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from spyglass_server.engine.structured_output import GRAMMAR_LIMITS, GrammarFailed, Matcher
from spyglass_server.panics import LibraryPanicked, panics_as_errors

_MAX_KNOWN = 64
_MAX_CHARACTERS = 2 << 20
"""Maximum number of compiled grammars that are kept, and of their characters in total. Most take about 100 kB; those of
the largest schemas take 9 MB for 120,000 characters."""


@contextmanager
def _panics_are_failures() -> Iterator[None]:
    try:
        with panics_as_errors():
            yield
    except LibraryPanicked as panic:
        raise GrammarFailed(repr(panic.__cause__)) from panic


class ThreadedGrammarCompiler:
    """Compiles grammars one after another, and keeps the latest."""

    def __init__(self, tokenizer_path: Path, stop_token_ids: frozenset[int]) -> None:
        # Created now, not on first use: it takes a while and blocks the whole process.
        self._tokenizer = LLTokenizer(str(tokenizer_path), eos_token=sorted(stop_token_ids) or None)
        self._known: OrderedDict[str, Future[LLMatcher]] = OrderedDict()
        self._thread = ThreadPoolExecutor(1, "grammars")

    def matcher(self, grammar: str) -> Matcher:
        if grammar not in self._known:
            self._known[grammar] = self._thread.submit(self._compile, grammar)
        self._known.move_to_end(grammar)
        future = self._known[grammar]
        while len(self._known) > _MAX_KNOWN or sum(map(len, self._known)) > _MAX_CHARACTERS:
            self._known.popitem(last=False)
        return _Matcher(future.done, lambda: future.result().deep_copy())

    def _compile(self, grammar: str) -> LLMatcher:
        return LLMatcher(self._tokenizer, grammar, log_level=0, limits=LLParserLimits(**GRAMMAR_LIMITS))


class _Matcher:
    """A matcher that is created on first use."""

    def __init__(self, is_ready: Callable[[], bool], make: Callable[[], LLMatcher]) -> None:
        self._is_ready, self._make = is_ready, make

    @property
    def is_ready(self) -> bool:
        return self._is_ready()

    @cached_property
    def _matcher(self) -> LLMatcher:
        return self._make()

    @_panics_are_failures()
    def allowed(self) -> bytes:
        found = self._matcher.compute_bitmask()
        self._check()
        return found

    @_panics_are_failures()
    def advance(self, token: int) -> None:
        self._matcher.consume_token(token)
        self._check()

    @_panics_are_failures()
    def forced(self) -> tuple[int, ...]:
        found = tuple(self._matcher.compute_ff_tokens())
        self._check()
        return found

    def fork(self) -> "_Matcher":
        twin = self._matcher.deep_copy()
        return _Matcher(lambda: True, lambda: twin)

    def _check(self) -> None:
        if self._matcher.is_error():
            raise GrammarFailed(self._matcher.get_error())
