"""One generation as its caller sees it: an async iterator of chunks, and an answer."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol, Self

from spyglass.v1 import inference_pb2 as pb
from spyglass_client.answer import Answer, Choice, FinishReason, TextChunk, TokenLogprobs, Usage, finish_reason_of
from spyglass_client.attention import ImageGrid, TokenAttention
from spyglass_client.errors import CancelledByServerError, SpyglassError, from_status
from spyglass_client.tools import ToolCall
from spyglass_common.deltas import PendingDeltas


class SentRequest(Protocol):
    """A request whose Start has been sent."""

    def send_images(self) -> None:
        """Sends the announced images; called once, after Accepted."""

    def cancel(self) -> None:
        """Asks the server to end the generation; its Finished still arrives."""


Send = Callable[["AsyncGeneration"], Awaitable[SentRequest]]
"""Sends a generation's Start; the generation receives its events from then on."""


class AsyncGeneration:
    """A generation that starts when first iterated, entered or asked for its result.

    Use it as `async with client.stream("…") as generation: async for chunk in generation: …`. Leaving
    the iteration or the `async with` early cancels it. It has one reader. A slow reader gets fewer, longer
    chunks and does not delay other generations. A failure is raised as a SpyglassError.
    """

    def __init__(self, request_id: str, num_choices: int, send: Send) -> None:
        self.request_id = request_id
        self._collected = {index: _Collected(index=index) for index in range(num_choices)}
        self._send = send
        self._has_begun = False
        self._request: SentRequest | None = None
        self._sending_again: asyncio.Task[None] | None = None
        self._cancelled = False
        self._image_grids: tuple[ImageGrid, ...] = ()
        self._pending = PendingDeltas()
        self._changed = asyncio.Event()
        self._answer: Answer | None = None
        self._error: SpyglassError | None = None

    @property
    def answer(self) -> Answer:
        """The answer, once the iteration has ended. Raises RuntimeError before that."""
        if self._answer is None:
            raise RuntimeError("there is no answer yet: iterate to the end, or call result()")
        return self._answer

    def cancel(self) -> None:
        """Ends the generation early; the iteration then ends, with the text so far as the answer."""
        if self._cancelled or self._ended:
            return
        self._cancelled = True
        if self._request is not None:
            self._request.cancel()

    async def next_chunk(self) -> TextChunk | None:
        """Returns the next chunk, or None at the end. Raises SpyglassError if the generation failed."""
        await self.begin()
        while True:
            if self._pending:
                return TextChunk.from_delta(self._pending.take())
            if self._error is not None:
                raise self._error
            if self._answer is not None:
                return None
            self._changed.clear()
            await self._changed.wait()

    async def result(self) -> Answer:
        """Waits for the end and returns the answer, including unread chunks."""
        while await self.next_chunk() is not None:
            pass
        return self.answer

    async def begin(self) -> None:
        """Sends the request unless it was already sent."""
        if self._has_begun:
            return
        self._has_begun = True
        try:
            self._request = await self._send(self)
        except BaseException:
            self._error = SpyglassError("the generation was never sent", request_id=self.request_id)
            raise
        if self._cancelled:
            self._request.cancel()

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
        """Handles an event of the stream."""
        kind = event.WhichOneof("kind")
        if kind == "delta":
            delta = event.delta
            self._collected.setdefault(delta.index, _Collected(index=delta.index)).add(delta)
            self._pending.add(delta)
            self._changed.set()
        elif kind == "finished":
            self._finish(event.finished)
            self._changed.set()
        elif kind == "started":
            self._image_grids = tuple(map(ImageGrid.from_proto, event.started.image_grids))
        elif kind == "accepted" and self._request is not None and not self._cancelled:
            self._request.send_images()

    def on_lost(self, error: SpyglassError) -> None:
        """Ends the generation with the error that ended its stream."""
        self._error = error.about(self.request_id)
        self._changed.set()

    def on_returned(self) -> None:
        """Sends the request again: its server is shutting down and has not started it."""
        self._request = None
        self._sending_again = asyncio.create_task(self._send_again(), name="spyglass request sent again")

    async def _send_again(self) -> None:
        try:
            self._request = await self._send(self)
        except SpyglassError as error:
            self.on_lost(error)
            return
        if self._cancelled:
            self._request.cancel()

    @property
    def _ended(self) -> bool:
        return self._answer is not None or self._error is not None

    def _finish(self, finished: pb.Finished) -> None:
        usage = Usage.from_proto(finished.usage)
        if finished.HasField("error"):
            error = from_status(finished.error, self.request_id, usage if finished.HasField("usage") else None)
            if not (self._cancelled and isinstance(error, CancelledByServerError)):
                self._error = error
        if self._error is None:
            choices = tuple(collected.choice() for collected in self._collected.values())
            self._answer = Answer(
                request_id=self.request_id, choices=choices, usage=usage, image_grids=self._image_grids
            )


@dataclass(slots=True, kw_only=True)
class _Collected:
    """What has arrived of one choice so far."""

    index: int
    texts: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason = "cancelled"  # kept only if the end came before the choice's last delta
    stop_string: str | None = None
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    attention: list[TokenAttention] = field(default_factory=list)
    calls: list[tuple[str, str, list[str]]] = field(default_factory=list)

    def add(self, delta: pb.Delta) -> None:
        self.texts.append(delta.text)
        self.token_ids += delta.token_ids
        self.logprobs += map(TokenLogprobs.from_proto, delta.token_ids, delta.logprobs)
        self.attention += map(TokenAttention.from_proto, delta.attention)
        for piece in delta.tool_calls:
            if piece.id:
                self.calls.append((piece.id, piece.name, []))
            self.calls[piece.index][2].append(piece.arguments_json)
        self.finish_reason = finish_reason_of(delta.finish_reason) or self.finish_reason
        if delta.HasField("stop_string"):
            self.stop_string = delta.stop_string

    def choice(self) -> Choice:
        return Choice(
            index=self.index,
            text="".join(self.texts),
            token_ids=tuple(self.token_ids),
            finish_reason=self.finish_reason,
            stop_string=self.stop_string,
            logprobs=tuple(self.logprobs),
            attention=tuple(self.attention),
            tool_calls=tuple(ToolCall(call_id, name, "".join(arguments)) for call_id, name, arguments in self.calls),
        )
