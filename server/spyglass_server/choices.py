"""The state of a generation's choices: their text, tool calls and token counts.

A choice's tokens count up to the one that completed its stop. Tokens that the engine computed beyond it are neither
sent nor billed.
"""

from collections.abc import Collection, Sequence
from typing import NamedTuple

from spyglass_server.engine.messages import FinishReason, TokenOutput
from spyglass_server.prompt.detokenizer import Detokenizer, StopStrings
from spyglass_server.prompt.tool_calls import CallPiece, ToolParser


class DeltaParts(NamedTuple):
    """More of one choice, in the order of `events.fill`'s arguments."""

    text: str
    token_ids: tuple[int, ...]
    finish: FinishReason | None
    stop_string: str | None
    calls: Sequence[CallPiece]


class Choices:
    """The choices of one generation."""

    def __init__(
        self,
        detokenizers: Sequence[Detokenizer],
        stop: Sequence[str] = (),
        tool_names: Collection[str] = (),
        tool_tag_id: int | None = None,
        calls_are_constrained: bool = False,
    ) -> None:
        """Tool calls are recognised at the beginning of an answer, and after the token `tool_tag_id`.

        `calls_are_constrained`: a grammar constrains the format of calls.
        """
        self._detokenizers = detokenizers
        self._stops = [StopStrings(stop) for _ in detokenizers]
        self._parsers = [ToolParser(tool_names, calls_are_constrained) for _ in detokenizers] if tool_names else []
        self._tool_tag_id = tool_tag_id
        self._running = set(range(len(detokenizers)))
        self.num_tokens = 0
        """Generated tokens that count, over all choices."""

    @property
    def is_done(self) -> bool:
        return not self._running

    def push(self, output: TokenOutput) -> DeltaParts | None:
        """Takes a token; returns None if its choice has already ended.

        Stop strings are matched in text only, not in tool calls.
        """
        if output.choice not in self._running:
            return None
        detokenizer, stop = self._detokenizers[output.choice], self._stops[output.choice]
        self.num_tokens += 1
        finish = output.finish
        text = "" if finish is FinishReason.STOP else detokenizer.push(output.token)  # a stop token has no text
        if finish is not None:
            text += detokenizer.flush()
        calls: Sequence[CallPiece] = ()
        parser = self._parsers[output.choice] if self._parsers else None
        if parser is not None:
            text, calls = self._parse(parser, output.token, text, is_over=finish is not None)
        text = stop.push(text)  # within one push, calls come before text
        if stop.met is not None:
            finish = FinishReason.STOP
        if finish is FinishReason.STOP and parser is not None and parser.has_called:
            finish = FinishReason.TOOL_CALLS
        if finish is not None:
            text += stop.flush()
            self._running.discard(output.choice)
        return DeltaParts(text, (output.token,), finish, stop_string=stop.met, calls=calls)

    def _parse(self, parser: ToolParser, token: int, text: str, *, is_over: bool) -> tuple[str, Sequence[CallPiece]]:
        """Separates text from tool calls."""
        if token == self._tool_tag_id:
            parser.see_tag()
        text, calls = parser.push(text)
        if is_over:
            text += parser.finish()
        return text, calls
