"""One generation as its caller sees it: an async iteration of chunks, and an answer.

Owns the merging of what a slow reader has not taken yet, and the collecting of the answer. Knows the
protocol's events, not how they travel.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Self

from spyglass.v1 import inference_pb2 as pb
from spyglass_client.answer import Answer, Choice, FinishReason, TextChunk, TokenLogprobs, Usage
from spyglass_client.errors import CancelledByServerError, SpyglassError, from_status
from spyglass_client.tools import ToolCall, ToolCallPiece

Begin = Callable[["AsyncGeneration"], Awaitable[Callable[[], None]]]
"""Sends the Start for a generation and returns what cancels it."""


class AsyncGeneration:
    """A generation that begins when it is first awaited, iterated or entered.

    Use it as `async with client.stream("…") as generation: async for chunk in generation: …`. Leaving
    the iteration or the `async with` early cancels it. It has one reader. A reader that is slow gets
    fewer, longer chunks and holds up nobody else. A failure is raised as a SpyglassError.
    """

    def __init__(self, request_id: str, num_choices: int, begin: Begin) -> None:
        self.request_id = request_id
        self._collected = {index: _Collected(index=index) for index in range(num_choices)}
        self._begin = begin
        self._begun = False
        self._send_cancel: Callable[[], None] | None = None
        self._cancelled = False
        self._pending: dict[int, TextChunk] = {}
        self._usage: Usage | None = None
        self._changed = asyncio.Event()
        self._answer: Answer | None = None
        self._error: SpyglassError | None = None

    @property
    def answer(self) -> Answer:
        """The answer, once the iteration has ended. Raises RuntimeError before."""
        if self._answer is None:
            raise RuntimeError("there is no answer yet: iterate to the end, or call result()")
        return self._answer

    def cancel(self) -> None:
        """Ends the generation early; the iteration then ends by itself, with the text so far as answer."""
        if self._cancelled or self._ended:
            return
        self._cancelled = True
        if self._send_cancel is not None:
            self._send_cancel()

    async def next_chunk(self) -> TextChunk | None:
        """The next chunk; None at the end. Raises SpyglassError when the generation failed."""
        await self.begin()
        while True:
            if self._pending:
                chunk = self._pending.pop(next(iter(self._pending)))
                return replace(chunk, usage=self._usage)
            if self._error is not None:
                raise self._error
            if self._answer is not None:
                return None
            self._changed.clear()
            await self._changed.wait()

    async def result(self) -> Answer:
        """Waits for the end and returns the answer; chunks that nobody took are in it."""
        while await self.next_chunk() is not None:
            pass
        return self.answer

    async def begin(self) -> None:
        """Sends the request, if that has not happened yet."""
        if self._begun:
            return
        self._begun = True
        try:
            self._send_cancel = await self._begin(self)
        except BaseException:
            self._error = SpyglassError("the generation was never sent", request_id=self.request_id)
            raise
        if self._cancelled:
            self._send_cancel()

    async def __aiter__(self) -> AsyncIterator[TextChunk]:
        try:
            while (chunk := await self.next_chunk()) is not None:
                yield chunk
        finally:
            self.cancel()

    async def __aenter__(self) -> Self:
        await self.begin()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()

    def on_event(self, event: pb.Event) -> None:
        """Takes an event from the stream."""
        kind = event.WhichOneof("kind")
        if kind == "delta":
            self._add(event.delta)
        elif kind == "finished":
            self._finish(event.finished)

    def on_lost(self, error: SpyglassError) -> None:
        """Ends the generation with the error that ended its stream."""
        self._error = error.about(self.request_id)
        self._changed.set()

    @property
    def _ended(self) -> bool:
        return self._answer is not None or self._error is not None

    def _add(self, delta: pb.Delta) -> None:
        chunk = TextChunk.from_proto(delta)
        if delta.HasField("usage"):
            self._usage = Usage.from_proto(delta.usage)
        collected = self._collected.setdefault(delta.index, _Collected(index=delta.index))
        collected.add(chunk, delta.stop_string if delta.HasField("stop_string") else None)
        if earlier := self._pending.get(delta.index):
            chunk = earlier.joined_with(chunk)
        self._pending[delta.index] = chunk
        self._changed.set()

    def _finish(self, finished: pb.Finished) -> None:
        usage = Usage.from_proto(finished.usage)
        if finished.HasField("error"):
            error = from_status(finished.error, self.request_id, usage if finished.HasField("usage") else None)
            if not (self._cancelled and isinstance(error, CancelledByServerError)):
                self._error = error
        if self._error is None:
            choices = tuple(collected.choice() for collected in self._collected.values())
            self._answer = Answer(self.request_id, choices, usage)
        self._changed.set()


@dataclass(slots=True, kw_only=True)
class _Collected:
    """What has come of one choice so far."""

    index: int
    texts: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason = "cancelled"  # stays so only when the end came before the choice's last delta
    stop_string: str | None = None
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    calls: list[tuple[ToolCallPiece, list[str]]] = field(default_factory=list)

    def add(self, chunk: TextChunk, stop_string: str | None) -> None:
        self.texts.append(chunk.text)
        self.token_ids += chunk.token_ids
        self.logprobs += chunk.logprobs
        for piece in chunk.tool_calls:
            if piece.id:
                self.calls.append((piece, []))
            self.calls[piece.index][1].append(piece.arguments)
        self.finish_reason = chunk.finish_reason or self.finish_reason
        self.stop_string = stop_string if stop_string is not None else self.stop_string

    def choice(self) -> Choice:
        return Choice(
            index=self.index,
            text="".join(self.texts),
            token_ids=tuple(self.token_ids),
            finish_reason=self.finish_reason,
            stop_string=self.stop_string,
            logprobs=tuple(self.logprobs),
            tool_calls=tuple(ToolCall(first.id, first.name, "".join(arguments)) for first, arguments in self.calls),
        )
