"""Turns the tokens of a choice into text as they arrive, and finds its stop strings.

Text is returned only when no later token can change it: incomplete characters and possible starts of stop strings are
held back.
"""

import codecs
from collections.abc import Sequence

from spyglass_server.prompt.tokenizer import TextTokenizer


class Detokenizer:
    """The text of one choice, in whole characters."""

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._tokenizer = tokenizer
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode

    def push(self, token: int) -> str:
        """Takes the next token and returns the text that is now certain."""
        return self._decode(self._tokenizer.token_bytes(token))

    def flush(self) -> str:
        """Returns the remaining text when the choice has ended."""
        return self._decode(b"", True)


class StopStrings:
    """Ends a text before the first of its stop strings."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = tuple(stop)
        self._longest = max(map(len, self._stop), default=0)
        self._held = ""
        self.met: str | None = None
        """The stop string found, if any; text after it is dropped."""

    def push(self, text: str) -> str:
        """Takes more of the text and returns what is now certain to be before a stop string."""
        if not self._stop:
            return text
        if self.met is not None:
            return ""
        self._held += text
        found = [(at, -len(stop), stop) for stop in self._stop if (at := self._held.find(stop)) >= 0]
        if found:
            at, _, self.met = min(found)
            text, self._held = self._held[:at], ""
            return text
        keep = self._possible_start()
        text, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return text

    def flush(self) -> str:
        """Returns the text held back, when the text is complete."""
        text, self._held = self._held, ""
        return text

    def _possible_start(self) -> int:
        """How many of the last characters could be the start of a stop string."""
        for length in range(min(self._longest - 1, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-length:]) for stop in self._stop):
                return length
        return 0
