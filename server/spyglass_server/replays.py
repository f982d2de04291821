"""Replays answers: a Start with the idempotency key of an earlier one gets the earlier one's events.

A generation with such a key belongs to no stream: it continues when its caller is gone, so that the caller's retry
finds it, running or complete. A failed generation is forgotten, and may be retried.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Protocol

from spyglass.v1 import inference_pb2 as pb
from spyglass_server.config import Prices
from spyglass_server.errors import Conflict, SpyglassError, TooManyRequests, to_status

WINDOW_S = 600.0
"""How long a finished answer can be replayed."""
MAX_BYTES = 64 << 20
"""Maximum size of all stored answers; the oldest complete ones are dropped first."""
_RETRY_AFTER_S = 5.0

Emit = Callable[[pb.Event], None]


class Work(Protocol):
    """A generation that emits the events of an answer."""

    def start(self) -> asyncio.Task[None]:
        """Starts it as a task, which ends after its last event."""
        ...

    def add_chunk(self, chunk: pb.ImageChunk) -> None:
        """Takes a chunk of an announced image."""

    @property
    def count(self) -> tuple[int, int] | None:
        """The usage record's number and token count while the record is open."""
        ...

    def end(self, error: SpyglassError | None = None) -> None:
        """Ends it early."""


class Answer:
    """The events of one generation, which several callers may follow from the first event on."""

    def __init__(self, digest: bytes) -> None:
        self.digest = digest
        self.num_bytes = 0
        self.ended_s: float | None = None
        self.has_started = False
        self.failed = False
        """Whether it has failed, or is about to."""
        self.num_followers = 0
        self._events: list[pb.Event] = []
        self._more = asyncio.Event()
        self._work: Work | None = None

    def begin(self, work: Work) -> None:
        """Starts the generation, whether or not a caller follows it."""
        self._work = work
        self._task = work.start()

    def emit(self, event: pb.Event) -> None:
        """Takes the generation's next event."""
        self._events.append(event)
        self.num_bytes += event.ByteSize()
        self.has_started = self.has_started or event.HasField("started")
        if event.HasField("finished"):
            self.ended_s = time.monotonic()
            self.failed = event.finished.HasField("error")
        self._more.set()

    def add_chunk(self, chunk: pb.ImageChunk) -> None:
        """Passes a chunk of an image to the generation."""
        if self._work is not None:
            self._work.add_chunk(chunk)

    @property
    def count(self) -> tuple[int, int] | None:
        """The generation's `count`."""
        return self._work.count if self._work is not None else None

    def end(self, error: SpyglassError) -> None:
        """Ends the generation early."""
        self.failed = True
        if self._work is not None:
            self._work.end(error)

    async def follow(self, take: Emit) -> None:
        """Passes on all events as they arrive; a cancelled follower still gets those that have arrived."""
        taken = 0
        self.num_followers += 1
        try:
            while self.ended_s is None:
                self._more.clear()
                for event in self._events[taken:]:
                    take(event)
                taken = len(self._events)
                await self._more.wait()
        finally:
            self.num_followers -= 1
            for event in self._events[taken:]:
                take(event)


class Follower:
    """Repeats the events of an answer under the id of another generation."""

    def __init__(self, answer: Answer, event_id: int, emit: Emit, counts: dict[int, int], *, is_first: bool) -> None:
        """`counts` is as in `Generation`. Only the first follower's image chunks are used."""
        self.answer = answer
        self._id, self._emit, self._counts, self._is_first = event_id, emit, counts, is_first
        self._last_event: pb.Event | None = None
        self._sent: pb.Usage | None = None
        """The usage sent so far, once the answer has started."""

    def add_chunk(self, chunk: pb.ImageChunk) -> None:
        """Takes a chunk of an image."""
        if self._is_first:
            self.answer.add_chunk(chunk)

    async def run(self) -> None:
        """Repeats all events but the last, as they arrive."""
        await self.answer.follow(self._repeat)

    def last_event(self, error: BaseException | None, prices: Prices) -> pb.Event:
        """Returns the answer's last event or, if `error` ends this one earlier, one with it and the usage sent."""
        if self._last_event is not None:
            return self._last_event
        assert error is not None, "an answer has a last event"
        if (sent := self._sent) is not None:
            sent.estimated_cost = prices.cost(sent.prompt_tokens, sent.cached_tokens, sent.completion_tokens)
        return pb.Event(id=self._id, finished=pb.Finished(usage=sent, error=to_status(error)))

    def _repeat(self, event: pb.Event) -> None:
        own = pb.Event()
        own.CopyFrom(event)
        own.id = self._id
        if own.HasField("finished"):
            self._last_event = own
            return
        if (count := self.answer.count) is not None:
            self._counts[count[0]] = count[1]
        if own.HasField("started"):
            started = own.started
            self._sent = pb.Usage(prompt_tokens=started.prompt_tokens, cached_tokens=started.cached_tokens)
        elif own.HasField("delta") and self._sent is not None:
            self._sent.completion_tokens += len(own.delta.token_ids)
        self._emit(own)


class Replays:
    """A server's answers that can be replayed, by tenant and key."""

    def __init__(self) -> None:
        self._answers: dict[tuple[str, str], Answer] = {}

    def find(self, tenant: str, key: str, digest: bytes) -> tuple[Answer, bool]:
        """Returns the answer to an earlier request, or a new one that the caller must start, and whether it is new.

        Raises:
            Conflict: the earlier request was a different one.
            TooManyRequests: unfinished answers take all the room.
        """
        self._forget()
        answer = self._answers.get((tenant, key))
        if answer is not None and answer.failed:
            answer = None  # its followers will soon get the error
        if answer is not None and answer.digest != digest:
            raise Conflict("another request was made with this idempotency key", field="idempotency_key")
        if answer is not None:
            return answer, False
        if sum(one.num_bytes for one in self._answers.values()) > MAX_BYTES:
            raise TooManyRequests("too many answers are kept for their keys", retry_after_s=_RETRY_AFTER_S)
        answer = self._answers[tenant, key] = Answer(digest)
        return answer, True

    def abandon(self, error: SpyglassError) -> None:
        """Ends all that are still running."""
        for answer in self._answers.values():
            if answer.ended_s is None:
                answer.end(error)

    def _forget(self) -> None:
        """Drops failed and expired answers and, to make room, the oldest."""
        now = time.monotonic()
        total = sum(answer.num_bytes for answer in self._answers.values())
        ended = [(answer.ended_s, key) for key, answer in self._answers.items() if answer.ended_s is not None]
        for ended_s, key in sorted(ended):
            answer = self._answers[key]
            if answer.failed or now - ended_s > WINDOW_S or total > MAX_BYTES:
                total -= answer.num_bytes
                del self._answers[key]
