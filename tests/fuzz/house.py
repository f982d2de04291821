"""The server of the life cycle's clients, seen from outside: what it is asked, and that nothing is left in it."""

import asyncio
import io
import itertools
from pathlib import Path
from typing import Any

import grpc
from PIL import Image

from fakes import KEY, TestServer, auth, chat, image_chat
from fuzz.background import Background
from fuzz.streams import Generation, Stream
from fuzz.waiting import wait_until
from spyglass.v1 import admin_pb2, admin_pb2_grpc, inference_pb2_grpc, options_pb2
from spyglass.v1 import inference_pb2 as pb

MAX_CONCURRENT = 3
"""Generations at a time of the limited key."""
OK, CANCELLED = grpc.StatusCode.OK, grpc.StatusCode.CANCELLED
WRONG, FULL = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED
GONE, LATE = grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED
TAKEN = grpc.StatusCode.ALREADY_EXISTS


def picture(size: tuple[int, int], colour: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


PICTURES = (picture((40, 20), "red"), picture((50, 50), "blue"))


def options(max_tokens: int, **more: Any) -> dict[str, Any]:
    stopping = options_pb2.Stopping(max_tokens=max_tokens, **more)
    return {"stopping": stopping, "sampling": options_pb2.Sampling(seed=7)}


GOOD = {
    "short": chat("hi", **options(3)),
    "long": chat("hi", **options(50)),
    "ready": pb.Start(text="Once upon a time", **options(20)),
    "tokens": pb.Start(tokens=pb.TokenIds(ids=[65, 66, 67]), **options(12)),
    "two": chat("both", n=2, **options(15)),
    "told": chat("told", output=options_pb2.Output(logprobs=False, echo=True, running_usage=True), **options(20)),
    "stopped": chat("stop", **options(40, strings=["a", "b", "cd"])),
    "shaped": chat("shape", format=options_pb2.OutputFormat(regex="[a-z]*"), **options(10)),
    "inline": image_chat("look", [PICTURES[0]], **options(8)),
}
BAD = {
    "nothing": pb.Start(),
    "no messages": pb.Start(chat=pb.Start().chat),
    "too long": chat("x" * 500),
    "a model": chat("hi", model="another"),
    "a range": chat("hi", sampling=options_pb2.Sampling(top_p=7)),
    "a token": pb.Start(tokens=pb.TokenIds(ids=[10**6])),
    "a picture": image_chat("look", [b"no picture"]),
    "a shape": chat("hi", format=options_pb2.OutputFormat(regex="(")),
    "not yet": chat("hi", cache_salt="x"),
    "a caller": chat("hi", caller=pb.Caller(bearer_key=KEY)),
    "an image token": pb.Start(text="<|image|>"),
}
BAD_CODES = {"a model": grpc.StatusCode.NOT_FOUND, "a caller": grpc.StatusCode.PERMISSION_DENIED}


class House:
    """A server for all examples, seen from outside, and what it has been found to answer."""

    def __init__(self, server: TestServer, loop: Background, channel: grpc.Channel, admin_key: str) -> None:
        self.server, self.loop, self.channel = server, loop, channel
        self.answers: dict[tuple[str, str, int], str] = {}
        self._stub = inference_pb2_grpc.InferenceServiceStub(channel)
        limits = admin_pb2.KeyLimits(concurrent_generations=MAX_CONCURRENT, usd_per_day=10.0)
        request = admin_pb2.CreateKeyRequest(key=admin_pb2.ApiKey(name="limited", limits=limits))
        created = admin_pb2_grpc.AdminServiceStub(channel).CreateKey(request, metadata=auth(admin_key))
        self.keys = (KEY, str(created.secret))
        self.names = itertools.count()
        self._canary = self._ask_canary()
        assert self._canary

    def records(self) -> dict[str, pb.UsageRecord]:
        """The latest usage records, by the names of their requests."""
        found: dict[str, pb.UsageRecord] = {}
        for key in self.keys:
            usage = self._stub.GetUsage(pb.GetUsageRequest(max_records=300), metadata=auth(key))
            for record in usage.records:
                assert record.request_id not in found, "a generation has two usage records"
                found[record.request_id] = record
        return found

    def check_nothing_is_left(self) -> None:
        """All places, tasks, parts of keys' limits, pages, tiles and blocks of memory must be free again."""
        wait_until(lambda: self.server.server.num_admitted == 0, "a place is held")
        wait_until(lambda: not self.loop.run(_tasks()), "a task is left")
        status = self._stub.GetStatus(pb.GetStatusRequest(), metadata=auth())
        assert (status.running, status.waiting) == (0, 0)
        assert "/dev/shm/psm_" not in Path("/proc/self/maps").read_text()
        assert self._ask_canary() == self._canary, "the canary sings another song"
        self._check_limits()

    def wait_for_another_engine(self, pid: int) -> None:
        """Waits until the server has noticed that this process is dead, and has another."""
        engine = self.server.server.engine
        wait_until(lambda: engine.pid not in (None, pid) and engine.is_ready, "the engine does not come back")

    def _ask_canary(self) -> str:
        """An answer that needs every page of the KV cache and every tile of the image cache."""
        start = image_chat("canary", [picture((50, 50), colour) for colour in ("yellow", "green")], **options(1000))
        stream = Stream(self.channel, KEY)
        bird = begin(stream, start, "", "", {OK})
        assert stream.join() is OK
        return bird.text[0]

    def _check_limits(self) -> None:
        """As many generations at a time as the limited key may have."""
        stream = Stream(self.channel, self.keys[1])
        for _ in range(MAX_CONCURRENT):
            begin(stream, GOOD["short"], "", "", {OK})
        assert stream.join() is OK


async def _tasks() -> list[str]:
    """Tasks that belong to a stream."""
    names = [task.get_name() for task in asyncio.all_tasks()]
    return [name for name in names if name.startswith(("generation-", "stream-"))]


def begin(
    stream: Stream,
    start: pb.Start,
    request_id: str,
    answer: str,
    may_end: set[grpc.StatusCode],
    *,
    all_may_end: set[grpc.StatusCode] | None = None,
    gap: int = 1,
) -> Generation:
    own = pb.Start()
    own.CopyFrom(start)
    own.request_id = request_id
    stream.last_id += gap
    parts = [part for message in start.chat.messages for part in message.parts]
    generation = stream.generations[stream.last_id] = Generation(
        stream,
        stream.last_id,
        request_id,
        answer,
        may_end,
        all_may_end=set() if all_may_end is None else all_may_end,
        idempotency_key=start.idempotency_key,
        num_announced=sum(part.image.HasField("announced") for part in parts),
    )
    stream.send(stream.last_id, start=own)
    return generation
