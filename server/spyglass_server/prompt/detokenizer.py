"""Tokens of one choice to text, as they come.

Owns incomplete characters and stop strings: text is given out only when no later token can change
it. Knows nothing of other choices or of the wire.
"""

import codecs
from collections.abc import Sequence

from spyglass_server.prompt.tokenizer import TextTokenizer


class Detokenizer:
    """The text of one choice."""

    def __init__(self, tokenizer: TextTokenizer, stop: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._stop = tuple(stop)
        self._longest = max(map(len, self._stop), default=0)
        self._held = ""
        self.stopped_by: str | None = None
        """The stop string that the text has met, if any; then no more tokens may be pushed."""

    def push(self, token: int) -> str:
        """Takes the next token and returns the text that is now certain."""
        assert self.stopped_by is None
        return self._emit(self._decode(self._tokenizer.token_bytes(token)))

    def flush(self) -> str:
        """Returns what is left when the choice has ended without a stop string."""
        text = self._emit(self._decode(b"", True))
        if self.stopped_by is None:
            text, self._held = text + self._held, ""
        return text

    def _emit(self, text: str) -> str:
        if not self._stop:
            return text
        self._held += text
        found = [(at, -len(stop), stop) for stop in self._stop if (at := self._held.find(stop)) >= 0]
        if found:
            at, _, self.stopped_by = min(found)
            text, self._held = self._held[:at], ""
            return text
        keep = self._possible_start()
        text, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return text

    def _possible_start(self) -> int:
        """How many of the last characters could be the beginning of a stop string."""
        for length in range(min(self._longest - 1, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-length:]) for stop in self._stop):
                return length
        return 0
