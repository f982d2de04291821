"""The engine's interface to grammars that answers must follow."""

from typing import Any, Protocol

GRAMMAR_LIMITS: dict[str, Any] = {
    "initial_lexer_fuel": 200_000,
    "step_lexer_fuel": 100_000,
    "max_grammar_size": 200_000,
    "max_lexer_states": 20_000,
}
"""Maximum cost of a grammar at the start, in a step, and in memory for each answer, in the compiler's units: some
tenths of a second, some milliseconds, some tens of megabytes."""


class GrammarFailed(Exception):
    """A grammar cannot be followed any further, or at all; the text is for the log."""


class Matcher(Protocol):
    """The state of one answer in its grammar."""

    @property
    def is_ready(self) -> bool:
        """Whether the grammar is compiled. Until then, the other methods block."""
        ...

    def allowed(self) -> bytes:
        """Returns a bit mask of the tokens that may follow, starting at the lowest bit of the first byte.

        Raises:
            GrammarFailed: the grammar cannot be followed.
        """
        ...

    def advance(self, token: int) -> None:
        """Takes the next token, which must not be one that ends the answer.

        Raises:
            GrammarFailed: the token is not allowed.
        """

    def forced(self) -> tuple[int, ...]:
        """Returns the tokens of the only text that may follow; none if there is a choice.

        Raises:
            GrammarFailed: the grammar cannot be followed.
        """
        ...

    def fork(self) -> "Matcher":
        """Returns an independent copy in the same state."""
        ...


class GrammarCompiler(Protocol):
    """Compiles grammars concurrently with the engine's steps."""

    def matcher(self, grammar: str) -> Matcher:
        """Returns a matcher at the start of an answer, without waiting for compilation."""
        ...


# frozen ones take four times as long to make, and there is one for each sequence and step
