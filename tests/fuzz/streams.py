"""A client's side of a Generate stream that obeys no rules, and what must be true of the events that it gets."""

import threading
from collections import defaultdict
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

import grpc

from fakes import auth
from fuzz.waiting import PATIENCE_S
from spyglass.v1 import inference_pb2 as pb

_GENERATE = "/spyglass.v1.InferenceService/Generate"
_ORDER = ("accepted", "started", "prompt", "delta", "finished")
"""Kinds of events; those of one generation come in this order."""


@dataclass(eq=False)
class Generation:
    """What a client knows of one of its generations.

    `may_end` are the codes that it may end with, and `all_may_end` those that all with its idempotency key may.
    """

    stream: "Stream"
    id: int
    request_id: str
    answer: str
    """A name for what it must say, or nothing where that is not known."""
    may_end: set[grpc.StatusCode]
    all_may_end: set[grpc.StatusCode] = field(default_factory=set)
    idempotency_key: str = ""
    num_announced: int = 0
    kinds: list[str] = field(default_factory=list)
    text: dict[int, str] = field(default_factory=lambda: defaultdict(str))
    num_tokens: int = 0
    finished: pb.Finished | None = None

    @property
    def has_started(self) -> bool:
        return "started" in self.kinds

    @property
    def code(self) -> grpc.StatusCode | None:
        """How it has ended."""
        if self.finished is None:
            return None
        return next(code for code in grpc.StatusCode if code.value[0] == self.finished.error.code)

    def take(self, event: pb.Event) -> None:
        """Takes its next event, which must be one that may come now."""
        kind = str(event.WhichOneof("kind"))
        assert self.finished is None, f"{kind} after Finished"
        if self.kinds:
            assert _ORDER.index(kind) >= _ORDER.index(self.kinds[-1]), f"{kind} after {self.kinds[-1]}"
        else:
            assert kind in ("accepted", "finished"), f"{kind} comes first"
        assert kind in ("delta", "prompt") or kind not in self.kinds, f"{kind} comes twice"
        assert kind not in ("delta", "prompt") or self.has_started
        self.kinds.append(kind)
        if kind == "delta":
            self.text[event.delta.index] += event.delta.text
            self.num_tokens += len(event.delta.token_ids)
        elif kind == "finished":
            self.finished = event.finished
            self._check_end(event.finished)

    def _check_end(self, finished: pb.Finished) -> None:
        assert self.code in self.may_end | self.all_may_end, f"{self.code}: {finished.error.message}"
        assert finished.HasField("usage") == self.has_started
        if self.has_started:
            assert finished.usage.completion_tokens == self.num_tokens
        if self.code is grpc.StatusCode.OK:
            assert self.has_started


class Stream:
    """One call of Generate. What comes is read in a thread of its own, unless it is to wait."""

    def __init__(self, channel: grpc.Channel, key: str) -> None:
        self.key = key
        self.last_id = -1
        self.is_open, self.is_dropped, self.is_faulty = True, False, False
        self.generations: dict[int, Generation] = {}
        self.failure: BaseException | None = None
        self._outgoing: SimpleQueue[bytes | None] = SimpleQueue()
        method: Any = channel.stream_stream(_GENERATE, response_deserializer=pb.GenerateResponse.FromString)
        self._call = method(iter(self._outgoing.get, None), metadata=auth(key))
        self._reads = threading.Event()
        self._reads.set()
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, name="reader")
        self._reader.start()

    def send(self, event_id: int, **kind: Any) -> None:
        """Sends a message, whatever the server thinks of it."""
        self.send_bytes(pb.GenerateRequest(id=event_id, **kind).SerializeToString())

    def send_bytes(self, data: bytes) -> None:
        assert self.is_open
        self._outgoing.put(data)

    def half_close(self) -> None:
        if self.is_open:
            self.is_open = False
            self._outgoing.put(None)

    def drop(self) -> None:
        """Cancels the call."""
        self.is_dropped = True
        self._call.cancel()
        self.half_close()

    def pause(self) -> None:
        self._reads.clear()

    def resume(self) -> None:
        self._reads.set()

    def wait(self, generation: Generation, kind: str) -> None:
        """Waits until an event of this kind has come, or the generation or the stream has ended."""
        with self._changed:
            is_there = self._changed.wait_for(
                lambda: kind in generation.kinds or generation.finished or not self._reader.is_alive(), PATIENCE_S
            )
        assert is_there or self.is_dropped, f"{kind} has not come, after {generation.kinds}"

    def join(self) -> grpc.StatusCode:
        """Waits for the end of the call and returns its status. Raises what was wrong with an event."""
        self.resume()
        self.half_close()
        self._reader.join(PATIENCE_S)
        assert not self._reader.is_alive(), "the stream does not end"
        if self.failure is not None:
            raise self.failure
        code: grpc.StatusCode = self._call.code()
        return code

    def _read(self) -> None:
        try:
            for frame in self._call:
                with self._changed:
                    for event in frame.events:
                        assert event.id in self.generations, "an event of what was not begun"
                        self.generations[event.id].take(event)
                    self._changed.notify_all()
                self._reads.wait()
        except grpc.RpcError:
            pass
        except BaseException as failure:
            self.failure = failure
            self._call.cancel()
        finally:
            threading.Thread(target=self._tell_the_end).start()

    def _tell_the_end(self) -> None:
        self._reader.join()
        with self._changed:
            self._changed.notify_all()
