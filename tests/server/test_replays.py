"""Idempotency keys: one generation and one charge, however often it is asked for."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from fakes import KEY, FakeLoader, Stream, TestServer, auth, chat, image_chat, run_test_server
from pictures import encoded, noise
from spyglass.v1 import inference_pb2 as pb
from spyglass.v1 import options_pb2
from spyglass_server import replays
from spyglass_server.engine.worker.budget import Limits
from spyglass_server.errors import Cancelled

OTHER = "other-key"


@pytest.fixture
async def server(tiny_checkpoint: Path, tmp_path: Path) -> AsyncIterator[TestServer]:
    loader = FakeLoader(step_s=0.01)
    async with run_test_server(tiny_checkpoint, tmp_path, loader, api_key=(KEY, OTHER)) as one:
        yield one


def story(text: str = "hi", key: str | None = "one", count: int = 20, **fields: Any) -> pb.Start:
    return chat(text, stopping=options_pb2.Stopping(max_tokens=count), idempotency_key=key, **fields)


def said(stream: Stream, event_id: int) -> tuple[str, pb.Finished]:
    """The text and how it ended."""
    return stream.text(event_id), stream.finished(event_id)


async def generations(server: TestServer, key: str = KEY) -> int:
    usage = await server.stub.GetUsage(pb.GetUsageRequest(), metadata=auth(key))
    return int(usage.generations)


async def test_the_same_key_gives_the_same_answer_and_one_charge(server: TestServer) -> None:
    stream = server.open_stream()
    await stream.start(1, story(request_id="first"))
    await stream.start(2, story(request_id="at once"))
    await stream.until(1, "finished")
    await stream.start(3, story(request_id="afterwards"))
    await stream.finish()
    first = said(stream, 1)
    assert len(first[0]) > 10
    assert first[1].usage.completion_tokens == 20
    assert said(stream, 2) == said(stream, 3) == first
    assert await generations(server) == 1


async def test_another_key_or_tenant_or_none_is_another_request(server: TestServer) -> None:
    stream, other = server.open_stream(), server.open_stream(OTHER)
    for number, key in enumerate(("one", "two", None)):
        await stream.start(number, story(key=key))
    await other.start(0, story())
    await stream.finish()
    await other.finish()
    assert (await generations(server), await generations(server, OTHER)) == (3, 1)


async def test_another_request_with_the_key_is_refused(server: TestServer) -> None:
    stream = server.open_stream()
    await stream.start(1, story())
    await stream.until(1, "started")
    await stream.start(2, story("something else"))
    await stream.start(3, story(idempotency_digest=b"another image"))
    await stream.finish()
    for number in (2, 3):
        error = said(stream, number)[1].error
        assert (error.code, "another request" in error.message) == (6, True)
    assert await generations(server) == 1


async def test_it_goes_on_when_its_caller_is_gone(server: TestServer) -> None:
    stream = server.open_stream()
    await stream.start(1, story(count=60))
    await stream.until(1, "delta")
    stream.call.cancel()
    again = server.open_stream()
    await again.start(1, story(count=60))
    await again.until(1, "delta")
    await again.cancel(1)
    await again.until(1, "finished")
    assert again.finished(1).error.code == 1
    usage = again.finished(1).usage
    assert usage.completion_tokens == sum(len(event.delta.token_ids) for event in again.events(1)) > 0
    assert usage.prompt_tokens == again.events(1)[1].started.prompt_tokens
    assert usage.estimated_cost > 0
    await again.start(2, story(count=60))
    await again.finish()
    assert said(again, 2)[1].usage.completion_tokens == 60
    assert await generations(server) == 1


@asynccontextmanager
async def two_that_wait(checkpoint: Path, data_dir: Path) -> AsyncIterator[tuple[TestServer, Stream, Stream, Stream]]:
    """A server, a stream whose generation 1 keeps it busy, and two that wait with generation 1 of the same key."""
    loader = FakeLoader(step_s=0.01, limits=Limits(max_batch=1, max_step_tokens=64))
    async with run_test_server(checkpoint, data_dir, loader) as server:
        before, first, second = server.open_stream(), server.open_stream(), server.open_stream()
        await before.start(1, story(key=None, count=400))
        await before.until(1, "started")
        for stream in (first, second):
            await stream.start(1, story())
            await stream.until(1, "accepted")
        yield server, before, first, second


async def test_who_waits_for_it_gets_it_though_the_first_leaves_before_it_begins(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    async with two_that_wait(tiny_checkpoint, tmp_path) as (server, before, first, second):
        await first.cancel(1)
        assert (await first.until(1, "finished")).finished.error.code == 1
        await before.cancel(1)
        await second.finish()
        assert said(second, 1)[1].usage.completion_tokens == 20
        await before.finish()
        assert await generations(server) == 2


async def test_it_is_not_begun_when_all_have_left(tiny_checkpoint: Path, tmp_path: Path) -> None:
    async with two_that_wait(tiny_checkpoint, tmp_path) as (server, before, first, second):
        for stream in (first, second):
            await stream.cancel(1)
            assert not (await stream.until(1, "finished")).finished.HasField("usage")
        await before.cancel(1)
        await before.finish()
        assert await generations(server) == 1


async def test_who_cancels_gets_what_has_come_by_then() -> None:
    answer, events = replays.Answer(b""), list[pb.Event]()
    following = asyncio.create_task(answer.follow(events.append))
    await asyncio.sleep(0)
    answer.emit(pb.Event(started=pb.Started(prompt_tokens=3)))
    following.cancel()
    with pytest.raises(asyncio.CancelledError):
        await following
    assert [event.WhichOneof("kind") for event in events] == ["started"]  # it is billed, and the caller knows


async def test_who_comes_while_it_is_given_up_begins_it_anew() -> None:
    kept = replays.Replays()
    answer, _ = kept.find("tenant", "key", b"")
    answer.end(Cancelled("the caller is gone"))
    again, is_new = kept.find("tenant", "key", b"another request")
    assert is_new
    assert again is not answer


async def test_what_failed_may_be_tried_anew(server: TestServer) -> None:
    stream = server.open_stream()
    await stream.start(1, story(count=400))
    await stream.until(1, "delta")
    server.kill_engine()
    await stream.until(1, "finished")
    assert stream.finished(1).HasField("error")
    await stream.start(2, story(count=400))
    await stream.finish()
    assert said(stream, 2)[1].usage.completion_tokens == 400
    assert await generations(server) == 2


async def test_images_are_taken_from_the_first_alone(server: TestServer) -> None:
    stream = server.open_stream()
    for number in (1, 2):
        await stream.start(number, image_chat("hi", [None], idempotency_key="picture"))
        await stream.until(number, "accepted")
    for number in (1, 2):
        await stream.send_chunk(number, 0, encoded(noise((20, 20))), last=True)
    await stream.finish()
    assert said(stream, 1) == said(stream, 2)
    assert not stream.finished(1).HasField("error")
    assert await generations(server) == 1


async def test_images_that_do_not_come_may_be_sent_by_the_next(server: TestServer) -> None:
    stream = server.open_stream()
    await stream.start(1, image_chat("hi", [None], idempotency_key="picture"))
    await stream.until(1, "accepted")
    await stream.cancel(1)
    await stream.until(1, "finished")
    await stream.start(2, image_chat("hi", [None], idempotency_key="picture"))
    await stream.until(2, "accepted")
    await stream.send_chunk(2, 0, encoded(noise((20, 20))), last=True)
    await stream.finish()
    assert not stream.finished(2).HasField("error")


@pytest.mark.parametrize("key", ["", "x" * 256, "a\nb"])
async def test_a_key_that_is_none_is_refused(server: TestServer, key: str) -> None:
    stream = server.open_stream()
    await stream.start(1, story(key=key))
    await stream.finish()
    assert "1 to 255 printable characters" in stream.finished(1).error.message


async def test_answers_are_forgotten_in_time_and_for_room(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = replays.Replays()

    def make(key: str) -> replays.Answer:
        answer, is_new = kept.find("tenant", key, b"")
        assert is_new
        answer.emit(pb.Event(delta=pb.Delta(text="x" * 100)))
        answer.emit(pb.Event(finished=pb.Finished()))
        return answer

    first, second = make("first"), make("second")
    assert kept.find("tenant", "first", b"") == (first, False)
    monkeypatch.setattr(replays, "MAX_BYTES", 150)
    assert kept.find("tenant", "second", b"") == (second, False)
    assert kept.find("tenant", "first", b"")[1]
    monkeypatch.setattr(replays, "WINDOW_S", 0.01)
    await asyncio.sleep(0.02)
    assert kept.find("tenant", "second", b"")[1]
