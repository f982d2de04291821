"""Errors of generations, of calls and of the whole stream."""

import asyncio
from pathlib import Path

import grpc
import pytest
from google.rpc import code_pb2, status_pb2

import spyglass_client
from fake_service import FakeService, Turn, repeat, until_cancelled
from spyglass_client import AsyncClient, ClientClosedError, SpyglassError, UnavailableError
from spyglass_common.status import make_status


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (code_pb2.INVALID_ARGUMENT, spyglass_client.InvalidRequestError),
        (code_pb2.UNIMPLEMENTED, spyglass_client.InvalidRequestError),
        (code_pb2.UNAUTHENTICATED, spyglass_client.AuthenticationError),
        (code_pb2.PERMISSION_DENIED, spyglass_client.PermissionDeniedError),
        (code_pb2.NOT_FOUND, spyglass_client.NotFoundError),
        (code_pb2.RESOURCE_EXHAUSTED, spyglass_client.RateLimitedError),
        (code_pb2.UNAVAILABLE, spyglass_client.UnavailableError),
        (code_pb2.DEADLINE_EXCEEDED, spyglass_client.DeadlineError),
        (code_pb2.CANCELLED, spyglass_client.CancelledByServerError),
        (code_pb2.INTERNAL, spyglass_client.InternalError),
        (code_pb2.DATA_LOSS, spyglass_client.InternalError),
    ],
)
async def test_a_refusal_becomes_an_exception_and_the_stream_lives_on(
    client: AsyncClient, service: FakeService, code: int, kind: type[SpyglassError]
) -> None:
    async def refuse(turn: Turn) -> None:
        turn.finish(make_status(code, "not like this", "SOME_REASON", field="sampling.top_p", retry_after_s=3))

    service.script = refuse
    with pytest.raises(kind, match="not like this") as caught:
        await client.generate("q", request_id="mine")
    error = caught.value
    assert type(error) is kind
    assert error.code.value[0] == code
    assert (error.reason, error.field, error.retry_after_s) == ("SOME_REASON", "sampling.top_p", 3)
    assert error.request_id == "mine"
    assert error.usage is not None
    assert error.usage.completion_tokens == 3
    service.script = repeat
    assert (await client.generate("again")).text == "again "
    assert len(service.streams) == 1


async def test_text_that_came_before_an_error_is_given_first(client: AsyncClient, service: FakeService) -> None:
    async def script(turn: Turn) -> None:
        turn.accept()
        turn.say("some")
        turn.finish(make_status(code_pb2.INTERNAL, "the engine died", "ENGINE_DIED"))

    service.script = script
    generation = client.stream("q")
    chunk = await generation.next_chunk()
    assert chunk is not None
    assert chunk.text == "some"
    with pytest.raises(spyglass_client.InternalError, match="the engine died"):
        await generation.next_chunk()


async def test_a_refused_call_becomes_an_exception(client: AsyncClient, service: FakeService) -> None:
    service.refusal = make_status(code_pb2.UNAUTHENTICATED, "the key is wrong", "API_KEY_INVALID")
    for call in (client.models(), client.usage(), client.check_access(), client.count_tokens("q")):
        with pytest.raises(spyglass_client.AuthenticationError, match="the key is wrong") as caught:
            await call
        assert caught.value.reason == "API_KEY_INVALID"
    with pytest.raises(spyglass_client.AuthenticationError) as caught:
        await client.generate("q", request_id="mine")
    assert caught.value.request_id == "mine"


async def test_a_stream_that_dies_fails_all_it_carried_and_the_next_call_has_a_new_one(
    client: AsyncClient, service: FakeService
) -> None:
    service.script = until_cancelled
    tasks = [asyncio.create_task(client.generate("q", request_id=f"r{number}")) for number in range(3)]
    for _ in tasks:
        await service.new_turns.get()
    service.streams[0].end(make_status(code_pb2.UNAVAILABLE, "going down", "STOPPING"))
    errors = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(error) for error in errors] == [UnavailableError] * 3
    assert {error.request_id for error in errors if isinstance(error, SpyglassError)} == {"r0", "r1", "r2"}
    assert len({id(error) for error in errors}) == 3
    service.script = repeat
    assert (await client.generate("again")).text == "again "
    assert len(service.streams) == 2


async def test_a_stream_that_ends_well_too_early_fails_what_it_carried(
    client: AsyncClient, service: FakeService
) -> None:
    service.script = until_cancelled
    async with client.stream("q") as generation:
        assert await generation.next_chunk() is not None
        service.streams[0].outgoing.put_nowait(None)
        (await service.new_turns.get()).cancelled.set()
        with pytest.raises(UnavailableError, match="ended the stream"):
            await generation.result()


async def test_after_a_go_away_what_runs_ends_and_new_ones_use_a_new_stream(
    client: AsyncClient, service: FakeService
) -> None:
    end = asyncio.Event()

    async def script(turn: Turn) -> None:
        turn.accept()
        turn.stream.go_away()
        turn.say("old ")
        await end.wait()
        turn.finish()

    service.script = script
    async with client.stream("q") as old:
        assert await old.next_chunk() is not None
        service.script = repeat
        assert (await client.generate("new")).text == "new "
        assert len(service.streams) == 2
        end.set()
        assert (await old.result()).text == "old "
    await asyncio.wait_for(service.streams[0].half_closed.wait(), 10)
    assert not service.streams[1].half_closed.is_set()


async def test_what_a_server_that_goes_down_has_not_begun_is_sent_again(
    client: AsyncClient, service: FakeService, tmp_path: Path
) -> None:
    picture = tmp_path / "cat.png"
    picture.write_bytes(b"p" * 4_000_000)

    async def go_away(turn: Turn) -> None:
        service.script = repeat
        turn.stream.go_away(first_refused_id=1)

    service.script = go_away
    assert (await client.generate("again", images=[picture])).text == "again "
    assert [len(stream.requests) > 1 for stream in service.streams] == [False, True]
    assert service.turns[1].images == {0: b"p" * 4_000_000}


async def test_a_cancelled_generation_is_not_begun_when_it_is_sent_again(
    client: AsyncClient, service: FakeService
) -> None:
    async def silent(turn: Turn) -> None:
        await turn.cancelled.wait()

    service.script = silent
    generation = client.stream("q")
    await generation.begin()
    turn = await service.turn()
    service.script = until_cancelled
    generation.cancel()
    turn.stream.go_away(first_refused_id=1)
    assert (await generation.result()).choices[0].finish_reason == "cancelled"


async def test_a_server_that_is_not_there() -> None:
    async with AsyncClient("127.0.0.1:1", api_key="k") as client:
        with pytest.raises(UnavailableError, match=r"no connection to 127.0.0.1:1"):
            await client.models()
        with pytest.raises(UnavailableError, match=r"no connection to 127.0.0.1:1"):
            await client.generate("q")


async def test_closing_the_client_ends_what_runs(service: FakeService) -> None:
    service.script = until_cancelled
    client = AsyncClient(service.target, api_key="k")
    running = asyncio.create_task(client.generate("q"))
    await service.new_turns.get()
    await client.close()
    with pytest.raises(ClientClosedError):
        await running
    with pytest.raises(ClientClosedError):
        await client.generate("q")
    await client.close()


async def test_closing_right_after_a_start_ends_it_too(service: FakeService) -> None:
    client = AsyncClient(service.target, api_key="k")
    async with client.stream("q") as generation:
        await client.close()
        with pytest.raises(ClientClosedError):
            await asyncio.wait_for(generation.result(), 10)


def test_a_status_without_details_has_its_code_as_message() -> None:
    from spyglass_client.errors import from_status

    error = from_status(status_pb2.Status(code=code_pb2.NOT_FOUND))
    assert (error.message, error.code, error.reason, error.field) == (
        "NOT_FOUND",
        grpc.StatusCode.NOT_FOUND,
        None,
        None,
    )
