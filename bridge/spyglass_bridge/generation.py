"""What has happened to one generation and has not been read yet.

Owns the mailbox between the shared stream and one HTTP request. Its size is bounded however slowly
it is read: pending deltas of a choice are merged into one. Knows neither gRPC calls nor HTTP.
"""

import asyncio
from dataclasses import dataclass, field

from google.rpc import status_pb2

from spyglass.v1 import inference_pb2 as pb
from spyglass_common.deltas import append_tool_calls


@dataclass(slots=True, kw_only=True)
class ChoiceDelta:
    """More of one choice. `finish_reason` is FINISH_REASON_UNSPECIFIED until the choice has ended.

    `token_ids` are there where `logprobs` are, one for each. `usage` is that of all choices so far, where it is told.
    """

    index: int
    text: str = ""
    finish_reason: pb.FinishReason.ValueType = pb.FINISH_REASON_UNSPECIFIED
    logprobs: list[pb.TokenLogprobs] = field(default_factory=list)
    tool_calls: list[pb.ToolCallDelta] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    usage: pb.Usage | None = None

    def merge(self, later: pb.Delta) -> None:
        self.text += later.text
        self.finish_reason = later.finish_reason
        self.logprobs += later.logprobs
        append_tool_calls(self.tool_calls, later.tool_calls)
        if later.logprobs:
            self.token_ids += later.token_ids


@dataclass(slots=True)
class Update:
    """Everything that happened since the last one: usually what one frame brought."""

    deltas: list[ChoiceDelta] = field(default_factory=list)
    finished: pb.Finished | None = None


class Generation:
    """One generation as its reader sees it: `wait_accepted`, `wait_started`, then `next` until it is over."""

    def __init__(self, n: int = 1) -> None:
        self._n = n
        self.accepted = False
        self.started: pb.Started | None = None
        self._deltas: dict[int, ChoiceDelta] = {}
        self._usage: pb.Usage | None = None
        self._finished: pb.Finished | None = None
        self._news = asyncio.Event()

    @property
    def over(self) -> bool:
        """Whether its Finished has come; there may still be something to read."""
        return self._finished is not None

    def push(self, event: pb.Event) -> None:
        """Takes an event of the stream."""
        kind = event.WhichOneof("kind")
        if kind == "delta":
            self._add(event.delta)
        elif kind == "prompt":  # every choice begins with it
            for index in range(self._n):
                self._add(pb.Delta(index=index, text=event.prompt.text, logprobs=event.prompt.logprobs))
        elif kind == "finished":
            self._finished = event.finished
        elif kind == "started":
            self.started = event.started
        elif kind == "accepted":
            self.accepted = True
        self._news.set()

    def _add(self, delta: pb.Delta) -> None:
        pending = self._deltas.get(delta.index)
        if pending is None:
            pending = self._deltas[delta.index] = ChoiceDelta(index=delta.index)
        pending.merge(delta)
        if delta.HasField("usage"):
            self._usage = delta.usage

    def fail(self, status: status_pb2.Status) -> None:
        """Ends it from this side. Without effect when it is over."""
        if self._finished is None:
            self._finished = pb.Finished(error=status)
            self._news.set()

    async def wait_accepted(self) -> None:
        """Returns when it has its place in the queue, or is over."""
        while not (self.accepted or self.over):
            await self._wait()

    async def wait_started(self) -> None:
        """Returns when its prompt is ready, or it is over."""
        while self.started is None and not self.over:
            await self._wait()

    async def next(self) -> Update:
        """Waits for something new and returns all of it; the last update has `finished`."""
        while not self._deltas and self._finished is None:
            await self._wait()
        update = Update(list(self._deltas.values()), self._finished)
        for delta in update.deltas:
            delta.usage = self._usage
        self._deltas.clear()
        return update

    async def _wait(self) -> None:
        self._news.clear()
        await self._news.wait()
