"""Answers that are given again: a Start with the idempotency key of an earlier one gets that one's events.

A generation with such a key belongs to nobody's stream: it goes on when its caller is gone, so that the caller's next
try finds it, running or complete. One that fails is forgotten, and may be tried anew.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Protocol

from spyglass.v1 import inference_pb2 as pb
from spyglass_server.config import Prices
from spyglass_server.errors import Conflict, SpyglassError, TooManyRequests, to_status

WINDOW_S = 600.0
"""So long after its end an answer is given again."""
MAX_BYTES = 64 << 20
"""Of all answers that are kept; the oldest that are complete go first."""
_RETRY_AFTER_S = 5.0

Emit = Callable[[pb.Event], None]


class Work(Protocol):
    """A generation that emits the events of an answer."""

    def start(self) -> asyncio.Task[None]:
        """Begins it as a task, which ends after its last event."""
        ...

    def add_chunk(self, chunk: pb.ImageChunk) -> None:
        """Takes a piece of an announced image."""

    @property
    def count(self) -> tuple[int, int] | None:
        """The number of its usage record while that is open, and how many tokens there are."""
        ...

    def end(self, error: SpyglassError | None = None) -> None:
        """Ends it early."""


class Answer:
    """The events of one generation, which several callers may follow from the first on."""

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
        """Has the generation run, whoever follows."""
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
        """Hands a piece of an image to the generation."""
        if self._work is not None:
            self._work.add_chunk(chunk)

    @property
    def count(self) -> tuple[int, int] | None:
        """As the generation's."""
        return self._work.count if self._work is not None else None

    def end(self, error: SpyglassError) -> None:
        """Ends the generation early."""
        self.failed = True
        if self._work is not None:
            self._work.end(error)

    async def follow(self, take: Emit) -> None:
        """Hands over all events from the first to the last, as they come; to who is cancelled, those that have come."""
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
    """One generation's part in an answer: it repeats the events, under an id of its own."""

    def __init__(self, answer: Answer, event_id: int, emit: Emit, counts: dict[int, int], *, is_first: bool) -> None:
        """`counts` is as a generation's. Only the first one's pieces of images are taken."""
        self.answer = answer
        self._id, self._emit, self._counts, self._is_first = event_id, emit, counts, is_first
        self._last_event: pb.Event | None = None
        self._sent: pb.Usage | None = None
        """How much has been sent, once the answer has started."""

    def add_chunk(self, chunk: pb.ImageChunk) -> None:
        """Takes a piece of an image."""
        if self._is_first:
            self.answer.add_chunk(chunk)

    async def run(self) -> None:
        """Repeats all events but the last, as they come."""
        await self.answer.follow(self._repeat)

    def last_event(self, error: BaseException | None, prices: Prices) -> pb.Event:
        """The answer's own, or where this one ends before that, by an error, one that says so and how much was sent."""
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
    """The answers of a server that may be asked for again, by tenant and key."""

    def __init__(self) -> None:
        self._answers: dict[tuple[str, str], Answer] = {}

    def find(self, tenant: str, key: str, digest: bytes) -> tuple[Answer, bool]:
        """The answer to an earlier request, or a new one that the caller must start; and whether it is new.

        Raises:
            Conflict: the earlier request was another.
            TooManyRequests: all room is taken by answers that are being made.
        """
        self._forget()
        answer = self._answers.get((tenant, key))
        if answer is not None and answer.failed:
            answer = None  # it says so to those who wait for it, soon
        if answer is not None and answer.digest != digest:
            raise Conflict("another request was made with this idempotency key", field="idempotency_key")
        if answer is not None:
            return answer, False
        if sum(one.num_bytes for one in self._answers.values()) > MAX_BYTES:
            raise TooManyRequests("too many answers are kept for their keys", retry_after_s=_RETRY_AFTER_S)
        answer = self._answers[tenant, key] = Answer(digest)
        return answer, True

    def abandon(self, error: SpyglassError) -> None:
        """Ends all that still run."""
        for answer in self._answers.values():
            if answer.ended_s is None:
                answer.end(error)

    def _forget(self) -> None:
        """Drops what has failed or is old and, where there is no room, the oldest."""
        now = time.monotonic()
        total = sum(answer.num_bytes for answer in self._answers.values())
        ended = [(answer.ended_s, key) for key, answer in self._answers.items() if answer.ended_s is not None]
        for ended_s, key in sorted(ended):
            answer = self._answers[key]
            if answer.failed or now - ended_s > WINDOW_S or total > MAX_BYTES:
                total -= answer.num_bytes
                del self._answers[key]
