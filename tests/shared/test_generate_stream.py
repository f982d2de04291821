"""The client's side of a Generate call: ids, loss, go-away, cancel."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import cast

import grpc
import pytest
from google.rpc import code_pb2

from fake_service import PATIENCE_S, FakeService, Turn, repeat, run_fake_service, until_cancelled
from spyglass.v1 import inference_pb2 as pb
from spyglass.v1 import inference_pb2_grpc as pb_grpc
from spyglass_common.generate_stream import GenerateCall, GenerateStream
from spyglass_common.limits import MAX_IMAGE_CHUNK_BYTES
from spyglass_common.status import make_status

HELLO = pb.Start(text="hello")


@dataclass
class Recorder:
    """A receiver that keeps all it gets."""

    kinds: list[str | None] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    num_returned: int = 0
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def on_event(self, event: pb.Event) -> None:
        self.kinds.append(event.WhichOneof("kind"))
        self._changed.set()

    def on_lost(self, failure: str) -> None:
        self.failures.append(failure)
        self._changed.set()

    def on_returned(self) -> None:
        self.num_returned += 1
        self._changed.set()

    async def wait(self, kind: str) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while kind not in self.kinds:
                self._changed.clear()
                await self._changed.wait()


@dataclass
class Running:
    """A stream, the service behind it, and the task that runs it."""

    stream: GenerateStream[str]
    service: FakeService
    task: "asyncio.Task[grpc.aio.AioRpcError | None]"

    def start(self, start: pb.Start = HELLO) -> tuple[int, Recorder]:
        recorder = Recorder()
        return self.stream.start(start, recorder), recorder

    async def end(self) -> grpc.aio.AioRpcError | None:
        return await asyncio.wait_for(self.task, PATIENCE_S)


@asynccontextmanager
async def run_stream() -> AsyncIterator[Running]:
    async with run_fake_service() as service, grpc.aio.insecure_channel(service.target) as channel:
        stream = GenerateStream[str](pb_grpc.InferenceServiceStub(channel).Generate())
        task = asyncio.create_task(stream.run())
        try:
            yield Running(stream, service, task)
        finally:
            stream.close("closed")
            task.cancel()
            await asyncio.wait([task])


@pytest.fixture
async def running() -> AsyncIterator[Running]:
    async with run_stream() as running:
        yield running


async def test_generations_share_the_call_under_growing_ids(running: Running) -> None:
    started = [running.start() for _ in range(20)]
    for _, recorder in started:
        await recorder.wait("finished")
        assert recorder.kinds == ["accepted", "started", "delta", "delta", "finished"]
    assert [generation_id for generation_id, _ in started] == list(range(1, 21))
    assert [request.id for request in running.service.streams[0].requests] == list(range(1, 21))
    assert running.stream.has_served


async def test_a_cancelled_generation_still_gets_its_finished(running: Running) -> None:
    running.service.script = until_cancelled
    generation_id, recorder = running.start()
    await recorder.wait("delta")
    running.stream.cancel(generation_id)
    await recorder.wait("finished")
    running.stream.cancel(generation_id)
    _, other = running.start()
    await running.service.turn(2)
    assert running.service.streams[0].kinds == [(1, "start"), (1, "cancel"), (2, "start")]
    assert not other.failures


async def test_an_abandoned_generation_gets_nothing_any_more(running: Running) -> None:
    running.service.script = until_cancelled
    generation_id, recorder = running.start()
    await recorder.wait("delta")
    seen = list(recorder.kinds)
    running.stream.abandon(generation_id)
    await (await running.service.turn()).over.wait()
    running.service.script = repeat
    _, other = running.start()
    await other.wait("finished")
    running.stream.close("closed")
    assert (recorder.kinds, recorder.failures, other.failures) == (seen, [], [])


@pytest.mark.parametrize("is_abandoned", [False, True])
async def test_after_a_go_away_the_call_ends_when_its_last_generation_has(running: Running, is_abandoned: bool) -> None:
    running.service.script = until_cancelled
    generation_id, recorder = running.start()
    await recorder.wait("delta")
    stream = running.service.streams[0]
    stream.go_away()
    await asyncio.wait_for(running.stream.wait_draining(), PATIENCE_S)
    assert not running.stream.is_accepting
    assert not stream.half_closed.is_set()
    if is_abandoned:
        running.stream.abandon(generation_id)
    else:
        running.stream.cancel(generation_id)
    assert await running.end() is None
    assert stream.half_closed.is_set()
    assert recorder.kinds.count("finished") == (not is_abandoned)


async def test_a_go_away_returns_what_was_not_begun(running: Running) -> None:
    """Once, whatever is said of it on the old stream; what was begun goes on there."""
    running.service.script = until_cancelled
    begun_id, begun = running.start()
    _, ended = running.start()
    await begun.wait("delta")
    await ended.wait("delta")
    later = [running.start() for _ in range(3)]
    turn = await running.service.turn(5)
    refusal = make_status(code_pb2.UNAVAILABLE, "going down", "server_draining")
    running.service.streams[0].go_away(first_refused_id=begun_id + 2)
    turn.send(finished=pb.Finished(error=refusal))
    await asyncio.wait_for(running.stream.wait_draining(), PATIENCE_S)
    running.stream.cancel(begun_id)
    await begun.wait("finished")
    assert [(recorder.num_returned, recorder.failures) for _, recorder in later] == [(1, [])] * 3
    assert all("finished" not in recorder.kinds for _, recorder in later)
    assert (begun.num_returned, ended.num_returned) == (0, 0)


async def test_an_idle_stream_ends_at_a_go_away(running: Running) -> None:
    _, recorder = running.start()
    await recorder.wait("finished")
    running.service.streams[0].go_away()
    assert await running.end() is None


async def test_a_call_that_fails_ends_each_generation_once(running: Running) -> None:
    running.service.script = until_cancelled
    recorders = [running.start()[1] for _ in range(3)]
    for recorder in recorders:
        await recorder.wait("delta")
    running.service.streams[0].end(make_status(code_pb2.UNAVAILABLE, "going down", "STOPPING"))
    error = await running.end()
    assert error is not None
    assert (error.code(), error.details()) == (grpc.StatusCode.UNAVAILABLE, "going down")
    assert not running.stream.is_accepting
    running.stream.close("lost")
    running.stream.close("again")
    assert [recorder.failures for recorder in recorders] == [["lost"]] * 3


async def test_a_call_that_ends_too_early_has_no_error(running: Running) -> None:
    running.service.script = until_cancelled
    _, recorder = running.start()
    await recorder.wait("delta")
    running.service.streams[0].end()
    (await running.service.turn()).cancelled.set()
    assert await running.end() is None


async def test_failing_all_leaves_the_call_open(running: Running) -> None:
    running.service.script = until_cancelled
    _, recorder = running.start()
    await recorder.wait("delta")
    running.stream.fail_all("enough")
    assert recorder.failures == ["enough"]
    running.service.script = repeat
    _, other = running.start()
    await other.wait("finished")


async def test_images_go_to_generations_that_run_and_stop_at_a_cancel(running: Running) -> None:
    async def script(turn: Turn) -> None:
        turn.accept()
        await turn.cancelled.wait()
        turn.finish()

    running.service.script = script
    generation_id, recorder = running.start()
    await recorder.wait("accepted")
    running.stream.send_image(generation_id, 0, bytes(400 * MAX_IMAGE_CHUNK_BYTES))
    running.stream.cancel(generation_id)
    await recorder.wait("finished")
    running.stream.send_image(generation_id, 1, b"too late")
    running.service.script = repeat
    _, other = running.start()
    await other.wait("finished")
    kinds = running.service.streams[0].kinds
    assert kinds.count((1, "image_chunk")) < 400
    assert kinds[-1] == (2, "start")


class EndedCall:
    """A call that has to go away, and ends while its client half-closes it: gRPC raises an error of its own then."""

    def __init__(self) -> None:
        self._responses = iter([pb.GenerateResponse(go_away=pb.GoAway(reason="restarting"))])
        self._over = asyncio.Event()

    async def read(self) -> object:
        for response in self._responses:
            return response
        await self._over.wait()
        return grpc.aio.EOF

    async def write(self, request: pb.GenerateRequest) -> None:
        raise AssertionError(request)

    async def done_writing(self) -> None:
        self._over.set()
        raise grpc.aio.InternalError("execute_batch failed")

    def cancel(self) -> bool:
        return True


async def test_a_call_that_ends_while_it_is_half_closed_ends_well() -> None:
    assert await asyncio.wait_for(GenerateStream[str](cast("GenerateCall", EndedCall())).run(), PATIENCE_S) is None
