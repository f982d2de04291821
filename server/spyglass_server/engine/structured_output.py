"""What the engine needs of a grammar that an answer must follow."""

from typing import Any, Protocol

GRAMMAR_LIMITS: dict[str, Any] = {
    "initial_lexer_fuel": 200_000,
    "step_lexer_fuel": 100_000,
    "max_grammar_size": 200_000,
    "max_lexer_states": 20_000,
}
"""What a grammar may cost to begin with, in a step, and in memory for each answer, in the compiler's units: some
tenths of a second, some milliseconds, some tens of megabytes."""


class GrammarFailed(Exception):
    """A grammar cannot be followed any further, or not at all; the text is for the log."""


class Matcher(Protocol):
    """Where one answer stands in its grammar."""

    @property
    def is_ready(self) -> bool:
        """Whether the grammar is compiled. Until then the other methods wait for that."""
        ...

    def allowed(self) -> bytes:
        """The tokens that may follow: one bit for each, that of the first one lowest in the first byte.

        Raises:
            GrammarFailed: the grammar cannot be followed.
        """
        ...

    def advance(self, token: int) -> None:
        """Takes the next token, which is none that ends the answer.

        Raises:
            GrammarFailed: it was not allowed.
        """

    def forced(self) -> tuple[int, ...]:
        """Tokens that spell what must follow, as far as only one text may; none where there is a choice.

        Raises:
            GrammarFailed: the grammar cannot be followed.
        """
        ...

    def fork(self) -> "Matcher":
        """A copy at the same place of the grammar."""
        ...


class GrammarCompiler(Protocol):
    """Compiles grammars beside the steps of the engine."""

    def matcher(self, grammar: str) -> Matcher:
        """At the beginning of an answer; returns at once."""
        ...


# frozen ones take four times as long to make, and there is one for each sequence and step
