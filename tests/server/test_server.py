"""The server over gRPC with a fake model: the life of an id, limits, faults."""

import asyncio
import gc
import io
import itertools
import os
import random
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import duration_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from PIL import Image
from sqlalchemy.exc import OperationalError

from fakes import BRIDGE_KEY, KEY, FakeLoader, Stream, TestServer, auth, chat, image_chat, run_test_server
from spyglass.v1 import admin_pb2, admin_pb2_grpc, chat_pb2, inference_pb2, inference_pb2_grpc, options_pb2
from spyglass_common.data_dir import ADMIN_KEY_FILE
from spyglass_server import servicer
from spyglass_server.engine.handle import watchdog
from spyglass_server.engine.handle.async_engine import EngineLoadError
from spyglass_server.engine.messages import EngineRequest
from spyglass_server.engine.worker.budget import Limits
from spyglass_server.engine_run import EngineRun
from spyglass_server.errors import InvalidRequest
from spyglass_server.ledger import Ledger, Record
from spyglass_server.ledger.database import Database
from spyglass_server.ledger.journal import Journal, JournalFull
from spyglass_server.prompt.tokenizer import TextTokenizer
from stack import free_ports

Start = Callable[..., Awaitable[TestServer]]

SLOW = FakeLoader(step_s=0.02)
CODES: dict[int, str] = {code.value[0]: code.name for code in grpc.StatusCode}


@pytest.fixture
async def start(tiny_checkpoint: Path, tmp_path: Path) -> AsyncIterator[Start]:
    """Starts servers with the faults that a test wants; they are stopped after it."""
    numbers = itertools.count()
    async with AsyncExitStack() as stack:

        async def start(loader: FakeLoader | None = None, **settings: Any) -> TestServer:
            data_dir = tmp_path / f"data-{next(numbers)}"
            run = run_test_server(tiny_checkpoint, data_dir, loader or FakeLoader(), **settings)
            return await stack.enter_async_context(run)

        yield start


def tokens(count: int, **fields: Any) -> inference_pb2.Start:
    return chat("hi", stopping=options_pb2.Stopping(max_tokens=count), **fields)


def picture(size: tuple[int, int] = (20, 20), colour: str = "red") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


def kinds(stream: Stream, event_id: int) -> list[str]:
    return [str(event.WhichOneof("kind")) for event in stream.events(event_id)]


def error_code(finished: inference_pb2.Finished) -> str:
    return CODES[finished.error.code]


def reason(error: status_pb2.Status) -> str:
    info = error_details_pb2.ErrorInfo()
    assert any(detail.Unpack(info) for detail in error.details)
    assert info.domain == "spyglass"
    return str(info.reason)


async def records(server: TestServer, key: str = KEY) -> list[inference_pb2.UsageRecord]:
    usage = await server.stub.GetUsage(inference_pb2.GetUsageRequest(max_records=1000), metadata=auth(key))
    return list(usage.records)


# --- the life of an id -------------------------------------------------------------------------


async def test_a_generation_goes_through_its_states_in_order(start: Start) -> None:
    server = await start()
    stream = server.open_stream()
    await stream.start(1, tokens(5))
    await stream.finish()
    assert list(dict.fromkeys(kinds(stream, 1))) == ["accepted", "started", "delta", "finished"]
    assert sum(len(event.delta.token_ids) for event in stream.events(1)) == len(stream.text(1)) == 5
    usage = stream.finished(1).usage
    assert usage.completion_tokens == 5
    assert usage.prompt_tokens == stream.events(1)[1].started.prompt_tokens > 0
    assert usage.estimated_cost == round(usage.prompt_tokens * 0.35 / 1e6 + 5 * 0.40 / 1e6, 12)
    assert await stream.call.code() is grpc.StatusCode.OK


async def test_one_frame_holds_a_step_of_all_generations(start: Start) -> None:
    server = await start(FakeLoader(step_s=0.01))
    stream = server.open_stream()
    for event_id in range(1, 9):
        await stream.start(event_id, tokens(20))
    await stream.finish()
    with_deltas = [f for f in stream.frames if any(e.WhichOneof("kind") == "delta" for e in f.events)]
    assert len(with_deltas) < 2 * 20  # not 8 * 20
    assert max(len(frame.events) for frame in with_deltas) >= 8


async def test_many_generations_end_once_each_whatever_is_done_to_them(start: Start) -> None:
    server = await start(FakeLoader(step_s=0.001, num_pages=40, limits=Limits(max_batch=4, max_step_tokens=16)))
    stream = server.open_stream()
    choose = random.Random(0)
    for event_id in range(1, 61):
        await stream.start(event_id, tokens(choose.randrange(1, 30), n=choose.randrange(1, 4)))
        for _ in range(choose.randrange(3)):
            await stream.cancel(choose.randrange(1, 70))
        if choose.random() < 0.3:
            await asyncio.sleep(0.005)
    await stream.finish()
    started = 0
    for event_id in range(1, 61):
        ended = stream.finished(event_id)
        assert kinds(stream, event_id)[-1] == "finished"
        assert error_code(ended) in ("OK", "CANCELLED")
        if ended.HasField("usage"):
            started += 1
            delivered = sum(len(e.delta.token_ids) for e in stream.events(event_id))
            assert delivered <= ended.usage.completion_tokens
    assert len(await records(server)) == started


async def test_ids_must_grow(start: Start) -> None:
    server = await start(SLOW)
    stream = server.open_stream()
    await stream.start(5, tokens(900))
    await stream.until(5, "started")
    await stream.start(5, tokens(1))
    with pytest.raises(aio.AioRpcError) as failure:
        await stream.finish()
    assert failure.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    await _until_records_closed(server)


async def test_ids_of_two_streams_never_meet(start: Start) -> None:
    server = await start(SLOW)
    first, second = server.open_stream(), server.open_stream()
    await first.start(1, tokens(200))
    await second.start(1, tokens(3))
    await first.until(1, "started")
    await second.cancel(2)
    await second.finish()
    assert second.finished(1).usage.completion_tokens == 3
    await first.cancel(1)
    await first.finish()
    assert error_code(first.finished(1)) == "CANCELLED"


async def test_cancel_ends_a_generation_with_its_usage_so_far(start: Start) -> None:
    server = await start(SLOW)
    stream = server.open_stream()
    await stream.start(1, tokens(500))
    await stream.until(1, "delta")
    await stream.cancel(1)
    await stream.finish()
    ended = stream.finished(1)
    assert error_code(ended) == "CANCELLED"
    assert 1 <= ended.usage.completion_tokens < 500
    (record,) = await records(server)
    assert (record.outcome, record.usage.completion_tokens) == ("CANCELLED", ended.usage.completion_tokens)


async def test_cancel_right_behind_a_start_sticks(start: Start) -> None:
    server = await start(SLOW)
    stream = server.open_stream()
    for event_id in range(1, 20):
        await stream.start(event_id, tokens(500))
        await stream.cancel(event_id)
    await stream.finish()
    assert {error_code(stream.finished(event_id)) for event_id in range(1, 20)} == {"CANCELLED"}


async def test_cancelling_the_call_cancels_its_generations(start: Start) -> None:
    server = await start(SLOW)
    stream = server.open_stream()
    await stream.start(1, tokens(500))
    await stream.until(1, "delta")
    stream.call.cancel()
    await _until_records_closed(server)
    (record,) = await records(server)
    assert record.outcome == "CANCELLED"
    assert record.usage.completion_tokens >= 1


async def test_an_error_of_one_generation_leaves_the_stream_alive(start: Start) -> None:
    server = await start()
    stream = server.open_stream()
    await stream.start(1, chat("hi", cache_salt="x"))
    await stream.start(2, chat("hi", model="another"))
    await stream.start(3, tokens(2))
    await stream.finish()
    assert kinds(stream, 1) == ["finished"]
    assert reason(stream.finished(1).error) == "unsupported_parameter"
    assert error_code(stream.finished(2)) == "NOT_FOUND"
    assert error_code(stream.finished(3)) == "OK"
    assert len(await records(server)) == 1


# --- options -----------------------------------------------------------------------------------


async def test_the_same_seed_gives_the_same_text_and_choices_differ(start: Start) -> None:
    server = await start()
    stream = server.open_stream()
    sampling = options_pb2.Sampling(seed=5)
    for event_id in (1, 2):
        await stream.start(event_id, tokens(12, n=3, sampling=sampling))
    await stream.finish()
    texts = [stream.text(1, index) for index in range(3)]
    assert len(set(texts)) == 3
    assert texts == [stream.text(2, index) for index in range(3)]
    assert stream.finished(1).usage.completion_tokens == 36


async def test_a_stop_string_ends_the_text_before_it(start: Start) -> None:
    server = await start()
    stream = server.open_stream()
    seed = options_pb2.Sampling(seed=1)
    await stream.start(1, tokens(30, sampling=seed))
    await stream.until(1, "finished")
    whole = stream.text(1)
    stop = whole[10:13]
    await stream.start(
        2, chat("hi", sampling=seed, stopping=options_pb2.Stopping(max_tokens=30, strings=["never", stop]))
    )
    await stream.finish()
    assert stream.text(2) == whole[: whole.index(stop)]
    last = [event.delta for event in stream.events(2) if event.WhichOneof("kind") == "delta"][-1]
    assert (last.finish_reason, last.stop_string) == (inference_pb2.FINISH_REASON_STOP, stop)
    assert stream.finished(2).usage.completion_tokens == whole.index(stop) + 3


async def test_stop_tokens_end_an_answer_unless_they_are_ignored(start: Start, tiny_checkpoint: Path) -> None:
    end = TextTokenizer(tiny_checkpoint / "tokenizer.json").special_tokens["<|eot_id|>"]
    letter = 64
    server = await start(FakeLoader(alphabet=(letter, end)))  # now it says nothing else
    stream = server.open_stream()
    seed = options_pb2.Sampling(seed=1)
    await stream.start(1, tokens(50, sampling=seed))
    await stream.start(2, chat("hi", sampling=seed, stopping=options_pb2.Stopping(max_tokens=50, ignore_eos=True)))
    await stream.start(3, chat("hi", sampling=seed, stopping=options_pb2.Stopping(max_tokens=50, token_ids=[letter])))
    await stream.finish()
    (*letters, last), all_ids, stopped = (
        [token for event in stream.events(i) for token in event.delta.token_ids] for i in (1, 2, 3)
    )
    assert (set(letters) <= {letter}, last) == (True, end)
    assert stream.text(1) == "a" * len(letters)
    assert (len(all_ids), set(all_ids)) == (50, {letter, end})
    assert stopped == [all_ids[0]]


async def test_a_timeout_ends_a_generation(start: Start) -> None:
    server = await start(SLOW)
    stream = server.open_stream()
    await stream.start(1, tokens(500, timeout=duration_pb2.Duration(nanos=200_000_000)))
    await stream.finish()
    ended = stream.finished(1)
    assert error_code(ended) == "DEADLINE_EXCEEDED"
    assert ended.usage.completion_tokens >= 1


async def test_only_a_prompt_that_leaves_no_room_is_refused(start: Start) -> None:
    server = await start(FakeLoader(num_pages=20))  # 80 tokens
    stream = server.open_stream()
    await stream.start(1, chat("x" * 100))
    await stream.start(2, tokens(80))
    await stream.start(3, chat("x"))
    await stream.finish()
    refusal = stream.finished(1).error
    assert reason(refusal) == "context_length_exceeded"
    assert refusal.message.startswith("This model's maximum context length is 80 tokens. However, the prompt has ")
    assert not stream.finished(1).HasField("usage")
    for event_id in (2, 3):
        total = stream.finished(event_id).usage
        assert total.prompt_tokens + total.completion_tokens == 80


@pytest.mark.parametrize("max_tokens", [79, 16385, 100_000, 2**31 - 1])
async def test_max_tokens_beyond_what_fits_are_what_fits(start: Start, max_tokens: int) -> None:
    server = await start(FakeLoader(num_pages=20))  # 80 tokens
    stream = server.open_stream()
    await stream.start(1, tokens(max_tokens))
    await stream.finish()
    ended = stream.finished(1)
    assert not ended.HasField("error")
    assert ended.usage.prompt_tokens + ended.usage.completion_tokens == 80


# --- images ------------------------------------------------------------------------------------


async def test_images_come_inline_and_in_pieces(start: Start) -> None:
    server = await start()
    stream = server.open_stream()
    inline, announced = picture(colour="red"), picture((60, 60), "blue")
    await stream.start(1, image_chat("what", [inline, None], stopping=options_pb2.Stopping(max_tokens=2)))
    await stream.until(1, "accepted")
    for at in range(0, len(announced), 50):
        await stream.send_chunk(1, 1, announced[at : at + 50], last=at + 50 >= len(announced))
    await stream.start(2, image_chat("what", [inline, announced], stopping=options_pb2.Stopping(max_tokens=2)))
    await stream.finish()
    assert error_code(stream.finished(1)) == "OK"
    assert stream.finished(1).usage.prompt_tokens == stream.finished(2).usage.prompt_tokens


@pytest.mark.parametrize(
    ("index", "data", "expected"),
    [(1, b"x", "invalid_request"), (0, b"x" * (300 << 10), "invalid_request"), (0, b"no image", "invalid_image")],
)
async def test_wrong_pieces_end_their_generation_only(start: Start, index: int, data: bytes, expected: str) -> None:
    server = await start()
    stream = server.open_stream()
    await stream.start(1, image_chat("what", [None]))
    await stream.until(1, "accepted")
    await stream.send_chunk(1, index, data, last=True)
    await stream.start(2, tokens(2))
    await stream.finish()
    assert reason(stream.finished(1).error) == expected
    assert error_code(stream.finished(2)) == "OK"
    assert len(await records(server)) == 1


async def test_an_image_that_grows_beyond_the_limit_is_cut_off(start: Start) -> None:
    server = await start(max_image_bytes=1000)
    stream = server.open_stream()
    await stream.start(1, image_chat("what", [None]))
    await stream.until(1, "accepted")
    for _ in range(3):
        await stream.send_chunk(1, 0, b"x" * 400, last=False)
    await stream.finish()
    assert reason(stream.finished(1).error) == "invalid_image"


async def test_more_tiles_than_there_is_room_for_are_refused(start: Start) -> None:
    server = await start(FakeLoader(max_tiles=4))
    stream = server.open_stream()
    await stream.start(1, image_chat("what", [picture((100, 100), c) for c in ("red", "green")]))
    await stream.finish()
    assert reason(stream.finished(1).error) == "invalid_image"


# --- keys, other calls -------------------------------------------------------------------------


async def test_every_call_takes_a_key(start: Start) -> None:
    stub = (await start()).stub
    calls: list[Callable[..., Any]] = [
        lambda metadata: stub.ListModels(inference_pb2.ListModelsRequest(), metadata=metadata),
        lambda metadata: stub.GetModel(inference_pb2.GetModelRequest(), metadata=metadata),
        lambda metadata: stub.CountTokens(inference_pb2.CountTokensRequest(start=chat("hi")), metadata=metadata),
        lambda metadata: stub.CheckAccess(inference_pb2.CheckAccessRequest(), metadata=metadata),
        lambda metadata: stub.GetUsage(inference_pb2.GetUsageRequest(), metadata=metadata),
        lambda metadata: stub.Generate(metadata=metadata).read(),
    ]
    refusals = set()
    for call in calls:
        for metadata in (None, auth("wrong"), auth(""), auth(f"{KEY} x"), (("authorization", KEY),)):
            with pytest.raises(aio.AioRpcError) as refusal:
                await call(metadata)
            assert refusal.value.code() is grpc.StatusCode.UNAUTHENTICATED
            refusals.add(refusal.value.details())
    assert len(refusals) == 1


async def test_only_a_gateway_acts_for_others_and_its_callers_pay(start: Start) -> None:
    server = await start(api_key=(KEY, "alice"))
    caller = inference_pb2.Caller(bearer_key="alice")
    plain, gateway = server.open_stream(), server.open_stream(BRIDGE_KEY)
    await plain.start(1, tokens(2, caller=caller))
    await gateway.start(1, tokens(2, caller=caller))
    await gateway.start(2, tokens(2))
    await gateway.start(3, tokens(2, caller=inference_pb2.Caller(bearer_key="mallory")))
    await plain.finish()
    await gateway.finish()
    assert error_code(plain.finished(1)) == "PERMISSION_DENIED"
    codes = [error_code(gateway.finished(i)) for i in (1, 2, 3)]
    assert codes == ["OK", "INVALID_ARGUMENT", "UNAUTHENTICATED"]
    assert len(await records(server, "alice")) == 1
    assert not await records(server)


async def test_access_can_be_checked_for_others(start: Start) -> None:
    stub = (await start()).stub

    async def check(key: str, caller: str | None) -> str:
        behind = inference_pb2.Caller(bearer_key=caller) if caller else None
        request = inference_pb2.CheckAccessRequest(caller=behind)
        try:
            return (await stub.CheckAccess(request, metadata=auth(key))).key_id[:4]
        except aio.AioRpcError as error:
            return error.code().name

    assert await check(KEY, None) == await check(BRIDGE_KEY, KEY) == "key-"
    assert await check(BRIDGE_KEY, "wrong") == "UNAUTHENTICATED"
    assert await check(KEY, KEY) == "PERMISSION_DENIED"


async def test_models_are_described(start: Start) -> None:
    stub = (await start(served_model_name=("a/b", "c"), price_input=1.5)).stub
    models = (await stub.ListModels(inference_pb2.ListModelsRequest(), metadata=auth())).models
    assert [model.id for model in models] == ["a/b", "c"]
    assert (models[0].pricing.input_tokens, models[0].pricing.output_tokens) == (1.5, 0.40)
    assert models[0].context_length == 1024
    memory = models[0].memory
    assert (memory.device_name, memory.device_bytes, memory.weight_bytes) == ("fake", 1 << 30, 1 << 20)
    assert (memory.kv_cache_tokens, memory.image_cache_tiles, memory.image_cache_bytes) == (1024, 16, 48)
    found = await stub.GetModel(inference_pb2.GetModelRequest(model="c"), metadata=auth())
    assert found.model.id == "c"
    with pytest.raises(aio.AioRpcError) as refusal:
        await stub.GetModel(inference_pb2.GetModelRequest(model="d"), metadata=auth())
    assert refusal.value.code() is grpc.StatusCode.NOT_FOUND


async def test_a_gateway_may_ask_for_itself(start: Start) -> None:
    """A bridge tells everybody of the model where its page is public, and how the server is."""
    server = await start(served_model_name=("a",))
    listed = await server.stub.ListModels(inference_pb2.ListModelsRequest(), metadata=auth(BRIDGE_KEY))
    assert [model.id for model in listed.models] == ["a"]
    status = await server.stub.GetStatus(inference_pb2.GetStatusRequest(), metadata=auth(BRIDGE_KEY))
    assert status.state == inference_pb2.SERVER_STATE_READY


async def test_tokens_are_counted_as_a_generation_would(start: Start) -> None:
    server = await start()
    wanted = image_chat("what is this", [picture()], stopping=options_pb2.Stopping(max_tokens=1))
    counted = await server.stub.CountTokens(inference_pb2.CountTokensRequest(start=wanted), metadata=auth())
    stream = server.open_stream()
    await stream.start(1, wanted)
    await stream.finish()
    assert counted.prompt_tokens == stream.finished(1).usage.prompt_tokens
    with pytest.raises(aio.AioRpcError, match="inline"):
        await server.stub.CountTokens(inference_pb2.CountTokensRequest(start=image_chat("x", [None])), metadata=auth())


async def test_usage_is_summed_up(start: Start) -> None:
    server = await start()
    stream = server.open_stream()
    await stream.start(1, tokens(3, request_id="mine"))
    await stream.start(2, tokens(4))
    await stream.finish()
    usage = await server.stub.GetUsage(inference_pb2.GetUsageRequest(max_records=5), metadata=auth())
    assert (usage.generations, usage.completion_tokens) == (2, 7)
    assert usage.estimated_cost == pytest.approx(sum(record.usage.estimated_cost for record in usage.records))
    assert "mine" in [record.request_id for record in usage.records]
    assert {record.outcome for record in usage.records} == {"OK"}


async def test_what_only_a_later_version_asks_for_is_refused(start: Start, tmp_path: Path) -> None:
    server = await start()
    later = b"\xc0\x3e\x01"  # field 1000
    asked = admin_pb2.CreateKeyRequest()
    asked.key.limits.MergeFromString(later)
    operator = auth((tmp_path / "data-0" / ADMIN_KEY_FILE).read_text().strip())
    with pytest.raises(aio.AioRpcError, match="field 1000 of KeyLimits is of a later version") as refused:
        await admin_pb2_grpc.AdminServiceStub(server.channel).CreateKey(asked, metadata=operator)
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    await server.stub.GetUsage(inference_pb2.GetUsageRequest.FromString(later), metadata=auth())  # it changes nothing
    stream = server.open_stream()
    await stream.start(1, image_chat("what", [None]))
    await stream.start(2, tokens(3))
    await stream.until(1, "accepted")
    chunk = inference_pb2.ImageChunk(data=b"x")
    chunk.MergeFromString(later)
    await stream.call.write(inference_pb2.GenerateRequest(id=1, image_chunk=chunk))
    await stream.finish()
    assert error_code(stream.finished(1)) == "INVALID_ARGUMENT"
    assert "field 1000 of ImageChunk" in stream.finished(1).error.message
    assert error_code(stream.finished(2)) == "OK"


async def test_an_unknown_error_says_nothing_outside(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    server = await start()

    def explode(*_: object) -> None:
        raise RuntimeError("secret")

    monkeypatch.setattr(server.server._prompts, "write", explode)
    stream = server.open_stream()
    await stream.start(1, tokens(2))
    await stream.finish()
    assert error_code(stream.finished(1)) == "INTERNAL"
    assert stream.finished(1).error.message == "internal error"


# --- faults ------------------------------------------------------------------------------------


async def test_a_full_queue_refuses_before_images_are_sent(start: Start) -> None:
    server = await start(SLOW, max_pending=2)
    stream = server.open_stream()
    for event_id in (1, 2):
        await stream.start(event_id, tokens(500))
    await stream.start(3, image_chat("what", [None]))
    await stream.until(3, "finished")
    assert kinds(stream, 3) == ["finished"]
    refusal = stream.finished(3).error
    assert reason(refusal) == "too_many_requests"
    retry = error_details_pb2.RetryInfo()
    assert any(detail.Unpack(retry) for detail in refusal.details)
    assert retry.retry_delay.seconds >= 1
    await stream.cancel(1)
    await stream.until(1, "finished")
    await stream.start(4, tokens(1))
    await stream.until(4, "finished")
    assert error_code(stream.finished(4)) == "OK"
    stream.call.cancel()


async def test_a_bad_row_costs_its_neighbours_nothing(start: Start) -> None:
    healthy, faulty = await start(), await start(FakeLoader(bad_token=ord("!") - 33))
    texts = []
    for server in (healthy, faulty):
        stream = server.open_stream()
        for event_id in range(1, 16):
            await stream.start(event_id, tokens(8, sampling=options_pb2.Sampling(seed=event_id)))
        await stream.start(16, chat("!"))
        await stream.finish()
        texts.append([stream.text(event_id) for event_id in range(1, 16)])
        ended = error_code(stream.finished(16))
        assert ended == ("OK" if server is healthy else "INTERNAL")
    assert texts[0] == texts[1]


async def test_a_killed_engine_fails_its_generations_and_comes_back(start: Start) -> None:
    server = await start(SLOW)
    health: Any = health_pb2_grpc.HealthStub(server.channel)
    request = health_pb2.HealthCheckRequest(service="spyglass.v1.InferenceService")
    assert (await health.Check(request)).status == health_pb2.HealthCheckResponse.SERVING
    stream = server.open_stream()
    for event_id in range(1, 9):
        await stream.start(event_id, tokens(500))
    for event_id in range(1, 9):
        await stream.until(event_id, "delta")
    server.kill_engine()
    for event_id in range(1, 9):
        await stream.until(event_id, "finished")
        assert error_code(stream.finished(event_id)) == "UNAVAILABLE"
        assert reason(stream.finished(event_id).error) == "engine_restarted"
    assert (await health.Check(request)).status == health_pb2.HealthCheckResponse.NOT_SERVING
    await stream.start(9, tokens(3))  # waits for the engine by itself
    await stream.finish()
    assert error_code(stream.finished(9)) == "OK"
    assert (await health.Check(request)).status == health_pb2.HealthCheckResponse.SERVING
    outcomes = sorted(record.outcome for record in await records(server))
    assert outcomes == ["OK", *["UNAVAILABLE"] * 8]
    assert all(record.usage.completion_tokens for record in await records(server))


async def test_a_model_that_cannot_be_loaded_ends_the_start(start: Start) -> None:
    with pytest.raises(EngineLoadError, match="no such tensor"):
        await start(FakeLoader(fails="no such tensor"))


async def test_after_a_stop_string_the_engine_computes_no_more(start: Start) -> None:
    server = await start(FakeLoader(step_s=0.02, limits=Limits(max_batch=1, max_step_tokens=64), alphabet=(64,)))
    stream = server.open_stream()
    await stream.start(1, chat("hi", stopping=options_pb2.Stopping(max_tokens=900, strings=["aa"])))
    await stream.start(2, tokens(1))  # waits for the one place in the batch
    async with asyncio.timeout(9):  # the first alone would take 18 s
        await stream.finish()
    assert stream.finished(1).usage.completion_tokens == 2


async def test_more_choices_than_the_batch_holds_are_refused(start: Start) -> None:
    server = await start(FakeLoader(limits=Limits(max_batch=2, max_step_tokens=64)))
    stream = server.open_stream()
    await stream.start(1, tokens(2, n=3))
    await stream.start(2, tokens(2, n=2))
    await stream.finish()
    assert error_code(stream.finished(1)) == "INVALID_ARGUMENT"
    assert stream.finished(2).usage.completion_tokens == 4


async def test_a_database_that_cannot_be_written_costs_no_answer_and_no_record(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await start()
    is_full, save = True, Database.save

    def write(database: Database, records: Any) -> None:
        if is_full:
            raise OperationalError("database or disk is full", None, Exception())
        save(database, records)

    monkeypatch.setattr(Database, "save", write)
    stream = server.open_stream()
    await stream.start(1, tokens(2))
    await stream.until(1, "finished")
    assert stream.finished(1).usage.completion_tokens == 2
    is_full = False
    usage = await server.stub.GetUsage(inference_pb2.GetUsageRequest(max_records=1), metadata=auth())
    assert (usage.completion_tokens, usage.records[0].outcome) == (2, "OK")
    stream.call.cancel()


async def test_nothing_begins_where_no_record_can_be_kept(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    server = await start()
    stream = server.open_stream()
    monkeypatch.setattr("spyglass_server.ledger.ledger.MAX_WAITING", 0)
    await stream.start(1, tokens(2))
    await stream.until(1, "finished")
    assert (reason(stream.finished(1).error), error_code(stream.finished(1))) == ("ledger_unavailable", "UNAVAILABLE")
    monkeypatch.undo()
    with monkeypatch.context() as change:
        change.setattr(Journal, "_append", raise_full)
        await stream.start(2, tokens(2))
        await stream.until(2, "finished")
    assert (reason(stream.finished(2).error), stream.finished(2).HasField("usage")) == ("ledger_unavailable", False)
    await stream.start(3, tokens(2))
    await stream.until(3, "finished")
    assert error_code(stream.finished(3)) == "OK"
    stream.call.cancel()


def raise_full(*_: object, **__: object) -> None:
    raise JournalFull("no space left on device")


async def test_an_engine_that_dies_before_the_first_token_is_told_as_such(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await start(SLOW)
    open_record = Ledger.open

    def open_and_kill(ledger: Ledger, record: Record) -> Record:
        server.kill_engine()
        return open_record(ledger, record)

    monkeypatch.setattr(Ledger, "open", open_and_kill)
    stream = server.open_stream()
    await stream.start(1, tokens(200))
    await stream.until(1, "finished")
    assert reason(stream.finished(1).error) == "engine_restarted"
    stream.call.cancel()


async def test_errors_quote_no_more_than_a_little(start: Start) -> None:
    server = await start()
    stream = server.open_stream()
    await stream.start(1, chat("hi", model="x" * 3_000_000))
    await stream.start(2, tokens(1))
    await stream.finish()
    assert len(stream.finished(1).error.message) <= 500
    assert error_code(stream.finished(2)) == "OK"
    with pytest.raises(aio.AioRpcError) as refusal:
        await server.stub.GetModel(inference_pb2.GetModelRequest(model="x" * 20_000), metadata=auth())
    assert refusal.value.code() is grpc.StatusCode.NOT_FOUND


async def test_bytes_that_are_no_message_are_the_callers_fault(start: Start) -> None:
    server = await start()
    channel: Any = server.channel
    service = "/spyglass.v1.InferenceService"
    for key, code in ((KEY, grpc.StatusCode.INVALID_ARGUMENT), ("wrong", grpc.StatusCode.UNAUTHENTICATED)):
        with pytest.raises(aio.AioRpcError) as refusal:
            await channel.unary_unary(f"{service}/CountTokens")(b"\xff\xff", metadata=auth(key))
        assert refusal.value.code() is code
        assert "rror" not in (refusal.value.details() or "")
    call = channel.stream_stream(f"{service}/Generate")(metadata=auth())
    await call.write(b"\xff\xff")
    with pytest.raises(aio.AioRpcError) as refusal:
        await call.read()
    assert refusal.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_gateways_key_is_nobodys_own(start: Start) -> None:
    server = await start()
    stream = server.open_stream(BRIDGE_KEY)
    await stream.start(1, tokens(1, caller=inference_pb2.Caller(bearer_key=BRIDGE_KEY)))
    await stream.finish()
    assert error_code(stream.finished(1)) == "UNAUTHENTICATED"


async def test_one_data_folder_serves_one_server(start: Start, tiny_checkpoint: Path, tmp_path: Path) -> None:
    await start()
    with pytest.raises(ValueError, match="another server uses"):
        async with run_test_server(tiny_checkpoint, tmp_path / "data-0", FakeLoader()):
            pass


async def test_draining_lets_what_runs_end_and_refuses_the_rest(start: Start) -> None:
    server = await start(SLOW)
    stream, idle = server.open_stream(), server.open_stream()
    await stream.start(1, tokens(40))
    await idle.start(1, tokens(1))
    await stream.until(1, "delta")
    await idle.until(1, "finished")
    draining = asyncio.create_task(server.server.drain())
    await asyncio.sleep(0.1)
    await stream.start(2, tokens(1))
    while (frame := await stream.call.read()) is not aio.EOF:
        stream.frames.append(frame)
    await draining
    assert stream.finished(1).usage.completion_tokens == 40
    assert reason(stream.finished(2).error) == "server_draining"
    assert any(frame.HasField("go_away") for frame in stream.frames)
    assert (await idle.call.read()).HasField("go_away")
    assert await idle.call.read() is aio.EOF


@pytest.mark.parametrize("pause_s", [0.0005, 0.001, 0.002])
async def test_clients_that_leave_while_it_goes_down_do_not_hold_it_up(start: Start, pause_s: float) -> None:
    server = await start(drain_timeout=30.0)
    streams = [server.open_stream() for _ in range(60)]
    for stream in streams:
        await stream.start(1, tokens(1))
    for stream in streams:
        await stream.until(1, "finished")
    draining = asyncio.create_task(server.server.drain())
    await asyncio.sleep(pause_s)
    for stream in streams:
        stream.call.cancel()
    async with asyncio.timeout(5):
        await draining


async def test_a_server_that_goes_down_makes_room_for_its_successor(start: Start) -> None:
    """What has begun ends, nothing listens any more, and a second server takes the address."""
    server = await start(SLOW, drain_timeout=60.0)
    stream = server.open_stream()
    await stream.start(1, tokens(800))
    await stream.until(1, "delta")
    draining = asyncio.create_task(server.server.drain())
    async with asyncio.timeout(2):
        while not any(frame.HasField("go_away") for frame in stream.frames):
            stream.frames.append(await stream.call.read())
    [go_away] = [frame.go_away for frame in stream.frames if frame.HasField("go_away")]
    assert go_away.first_refused_id == 2
    successor = await start(grpc=server.server.address)
    other = successor.open_stream()
    await other.start(1, tokens(3))
    await other.until(1, "finished")
    assert not draining.done()
    await stream.cancel(1)  # it would have gone on for a while
    while not any(event.HasField("finished") for event in stream.events(1)):
        stream.frames.append(await stream.call.read())
    assert error_code(stream.finished(1)) == "CANCELLED"
    await draining


class _LateLoader(FakeLoader):
    def load(self) -> Any:
        time.sleep(1.5)
        return super().load()


async def test_a_server_that_loads_says_so(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """It listens, knows its keys, and refuses what needs the model."""
    [port] = free_ports(1)
    address = f"127.0.0.1:{port}"
    loading = asyncio.create_task(_served(tiny_checkpoint, tmp_path, address))
    async with aio.insecure_channel(address) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        asked = inference_pb2.GetStatusRequest()
        status = await stub.GetStatus(asked, metadata=auth(), wait_for_ready=True, timeout=20)
        assert status.state == inference_pb2.SERVER_STATE_LOADING
        assert (await stub.CheckAccess(inference_pb2.CheckAccessRequest(), metadata=auth())).key_id
        with pytest.raises(aio.AioRpcError, match="being loaded"):
            await stub.ListModels(inference_pb2.ListModelsRequest(), metadata=auth())
        stream = Stream(stub.Generate(metadata=auth()))
        await stream.start(1, tokens(3))
        await stream.until(1, "finished")
        assert reason(stream.finished(1).error) == "model_loading"
        health: Any = health_pb2_grpc.HealthStub(channel)
        answer = await health.Check(health_pb2.HealthCheckRequest())
        assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING
        async with asyncio.timeout(20):
            while (await stub.GetStatus(asked, metadata=auth())).state != inference_pb2.SERVER_STATE_READY:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        await stream.start(2, tokens(3))
        await stream.until(2, "finished")
        assert not stream.finished(2).HasField("error")
        stream.call.cancel()
    loading.cancel()
    await asyncio.wait([loading])


async def _served(checkpoint: Path, data_dir: Path, address: str) -> None:
    async with run_test_server(checkpoint, data_dir, _LateLoader(), grpc=address):
        await asyncio.Event().wait()


async def test_a_server_says_how_it_is(start: Start) -> None:
    server = await start(SLOW, max_pending=2)

    async def status() -> inference_pb2.GetStatusResponse:
        return await server.stub.GetStatus(inference_pb2.GetStatusRequest(), metadata=auth())

    idle = await status()
    assert idle.state == inference_pb2.SERVER_STATE_READY
    assert (idle.running, idle.waiting, idle.max_pending) == (0, 0, 2)
    assert not idle.HasField("last_step_age")
    assert not idle.HasField("last_token_age")
    stream = server.open_stream()
    await stream.start(1, tokens(500))
    await stream.start(2, image_chat("What?", [None]))
    await stream.until(1, "delta")
    await stream.until(2, "accepted")
    await asyncio.sleep(1.2)
    busy = await status()
    assert busy.state == inference_pb2.SERVER_STATE_BUSY
    assert (busy.running, busy.waiting) == (1, 1)
    assert busy.last_step_age.ToMilliseconds() < 1000
    assert busy.last_token_age.ToMilliseconds() < 1000
    assert 0 < busy.output_tokens_per_second <= 60
    pid = server.server.engine.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        await asyncio.sleep(1.5)
        assert (await status()).last_token_age.ToMilliseconds() > 1000
    finally:
        os.kill(pid, signal.SIGCONT)
    await stream.cancel(1)
    await stream.until(1, "finished")
    assert (await status()).running == 0


async def test_what_outlives_the_drain_ends_with_an_error(start: Start) -> None:
    server = await start(SLOW, drain_timeout=0.1)
    stream = server.open_stream()
    await stream.start(1, tokens(500))
    await stream.until(1, "delta")
    await server.server.drain()
    stopping = asyncio.create_task(server.server.stop())
    await stream.until(1, "finished")
    assert reason(stream.finished(1).error) == "server_draining"
    await stopping


async def test_images_are_laid_out_by_their_size_as_by_their_data(start: Start) -> None:
    server = await start()

    async def layouts(images: list[chat_pb2.Image]) -> list[inference_pb2.ImageLayout]:
        parts = [chat_pb2.Part(image=image) for image in images]
        message = chat_pb2.Message(role=chat_pb2.ROLE_USER, parts=parts)
        wanted = inference_pb2.Start(chat=chat_pb2.Chat(messages=[message]))
        counted = await server.stub.CountTokens(inference_pb2.CountTokensRequest(start=wanted), metadata=auth())
        assert counted.estimated_cost == pytest.approx(0.35e-6 * counted.prompt_tokens)
        return list(counted.images)

    sizes = [(20, 20), (90, 20), (20, 110), (300, 200), (1, 1)]
    details = [chat_pb2.IMAGE_DETAIL_HIGH, chat_pb2.IMAGE_DETAIL_LOW]
    by_data = await layouts([chat_pb2.Image(data=picture(size), detail=each) for size in sizes for each in details])
    by_size = await layouts(
        [
            chat_pb2.Image(size=chat_pb2.ImageSize(width=width, height=height), detail=each)
            for width, height in sizes
            for each in details
        ]
    )
    assert by_size == by_data
    assert [(one.columns, one.rows) for one in by_size[::2]] == [(1, 1), (4, 1), (1, 4), (2, 2), (1, 1)]
    assert all((one.columns, one.rows) == (1, 1) for one in by_size[1::2])
    assert (by_size[6].picture_width, by_size[6].picture_height) == (56, 37)


@pytest.mark.parametrize(("width", "height"), [(0, 5), (5, 0), (1 << 21, 1), (100_000, 100_000)])
async def test_a_size_that_no_image_has_is_refused(start: Start, width: int, height: int) -> None:
    server = await start()
    image = chat_pb2.Image(size=chat_pb2.ImageSize(width=width, height=height))
    message = chat_pb2.Message(role=chat_pb2.ROLE_USER, parts=[chat_pb2.Part(image=image)])
    wanted = inference_pb2.Start(chat=chat_pb2.Chat(messages=[message]))
    with pytest.raises(aio.AioRpcError) as refused:
        await server.stub.CountTokens(inference_pb2.CountTokensRequest(start=wanted), metadata=auth())
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_generation_needs_the_image_itself(start: Start) -> None:
    server = await start()
    image = chat_pb2.Image(size=chat_pb2.ImageSize(width=5, height=5))
    message = chat_pb2.Message(role=chat_pb2.ROLE_USER, parts=[chat_pb2.Part(image=image)])
    stream = server.open_stream()
    await stream.start(1, inference_pb2.Start(chat=chat_pb2.Chat(messages=[message])))
    await stream.until(1, "finished")
    assert "not only its size" in stream.finished(1).error.message


async def test_roles_reach_the_template(start: Start) -> None:
    server = await start()
    roles = (chat_pb2.ROLE_SYSTEM, chat_pb2.ROLE_USER, chat_pb2.ROLE_ASSISTANT, chat_pb2.ROLE_TOOL, chat_pb2.ROLE_USER)
    messages = [chat_pb2.Message(role=role, parts=[chat_pb2.Part(text="x")]) for role in roles]
    wanted = inference_pb2.Start(chat=chat_pb2.Chat(messages=messages))
    counted = await server.stub.CountTokens(inference_pb2.CountTokensRequest(start=wanted), metadata=auth())
    spelled = sum(len(f"{role}\n\nx") + 3 for role in ("system", "user", "assistant", "ipython", "user"))
    assert counted.prompt_tokens == 1 + spelled + len("assistant\n\n") + 2


async def _until_records_closed(server: TestServer) -> None:
    for _ in range(200):
        found = await records(server)
        if found and all(record.outcome for record in found):
            return
        await asyncio.sleep(0.01)
    raise AssertionError("a record was never closed")


# --- an engine that hangs --------------------------------------------------------------------------


async def health(server: TestServer) -> int:
    stub: Any = health_pb2_grpc.HealthStub(server.channel)
    return int((await stub.Check(health_pb2.HealthCheckRequest())).status)


async def until_health(server: TestServer, status: int, within_s: float) -> None:
    async with asyncio.timeout(within_s):
        while await health(server) != status:  # noqa: ASYNC110 - over the wire
            await asyncio.sleep(0.1)


async def test_an_engine_that_is_stopped_is_replaced(start: Start) -> None:
    server = await start(SLOW)
    stream = server.open_stream()
    for number in range(8):
        await stream.start(number, tokens(2000))
    for number in range(8):
        await stream.until(number, "delta")
    stopped = server.server.engine.pid
    assert stopped is not None
    os.kill(stopped, signal.SIGSTOP)
    await until_health(server, health_pb2.HealthCheckResponse.NOT_SERVING, 10)
    late = server.open_stream()
    await late.start(1, tokens(1, timeout=duration_pb2.Duration(seconds=2)))
    began = time.monotonic()
    await late.until(1, "finished")
    assert (error_code(late.finished(1)), time.monotonic() - began < 3) == ("DEADLINE_EXCEEDED", True)
    for number in range(8):
        await stream.until(number, "finished")
        assert reason(stream.finished(number).error) == "engine_restarted"
    await until_health(server, health_pb2.HealthCheckResponse.SERVING, 10)
    await stream.start(8, tokens(2))
    await stream.finish()
    assert error_code(stream.finished(8)) == "OK"
    assert server.server.engine.pid != stopped
    late.call.cancel()


async def test_an_engine_that_was_stopped_for_a_moment_goes_on(start: Start) -> None:
    server = await start(SLOW)
    stream = server.open_stream()
    await stream.start(1, tokens(400))
    await stream.until(1, "delta")
    pid = server.server.engine.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    await until_health(server, health_pb2.HealthCheckResponse.NOT_SERVING, 10)
    os.kill(pid, signal.SIGCONT)
    await until_health(server, health_pb2.HealthCheckResponse.SERVING, 5)
    await stream.finish()
    assert (error_code(stream.finished(1)), server.server.engine.pid) == ("OK", pid)


async def test_an_engine_whose_step_never_ends_is_replaced(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "STALLED_STEP_S", 1.0)
    monkeypatch.setattr(watchdog, "DEAD_STEP_S", 3.0)
    server = await start(FakeLoader(step_s=3600))
    stream = server.open_stream()
    await stream.start(1, tokens(1))
    await until_health(server, health_pb2.HealthCheckResponse.NOT_SERVING, 5)
    await stream.until(1, "finished")
    assert reason(stream.finished(1).error) == "engine_restarted"
    await until_health(server, health_pb2.HealthCheckResponse.SERVING, 10)
    stream.call.cancel()


def test_a_step_may_take_as_long_as_others_did_and_more() -> None:
    dog = watchdog.Watchdog()
    for step_s in (1.0, 30.0, 0.0):
        dog.hear(step_s)
    dog.hear(80.0)
    assert dog.tick() is watchdog.Pulse.WELL
    dog.hear(100.0)
    assert dog.tick() is watchdog.Pulse.STALLED
    dog.hear(601.0)
    assert dog.tick() is watchdog.Pulse.LOST


# --- a client that does not read -------------------------------------------------------------------


async def test_a_stream_that_nobody_reads_is_bounded_and_then_dropped(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servicer, "_STALLED_S", 5.0)
    server = await start()
    stream = server.open_stream()

    async def flood() -> None:
        for number in range(1_000_000):
            await stream.start(number, tokens(0))

    flooding = asyncio.create_task(flood())
    taken = set[int]()
    async with asyncio.timeout(60):
        while not taken or server.server._servicer._sessions:
            taken.update(session._last_id for session in server.server._servicer._sessions)
            await asyncio.sleep(0.1)
    flooding.cancel()
    await asyncio.gather(flooding, return_exceptions=True)
    assert 4096 <= max(taken) < 60_000
    assert await asyncio.wait_for(stream.call.code(), 10) is not grpc.StatusCode.OK
    other = server.open_stream()
    await other.start(1, tokens(2))
    await other.finish()
    assert error_code(other.finished(1)) == "OK"


# --- what libraries do ---------------------------------------------------------------------------


async def test_what_is_no_exception_ends_one_generation_all_the_same(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Panic(BaseException):
        """As libraries in Rust raise it."""

    def panic(*_: object) -> list[int]:
        raise Panic

    server = await start()
    stream = server.open_stream()
    with monkeypatch.context() as change:
        change.setattr(TextTokenizer, "encode_text", panic)
        await stream.start(1, tokens(3))
        async with asyncio.timeout(20):
            assert error_code((await stream.until(1, "finished")).finished) == "INTERNAL"
    await stream.start(2, tokens(3))
    await stream.finish()
    assert not stream.finished(2).HasField("error")
    assert server.server.num_admitted == 0


async def test_a_request_that_ended_before_the_engine_died_leaves_no_error_behind(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    server = await start()
    request = EngineRequest(id=server.server.engine.next_id(), tokens=(1,), max_tokens=1)
    run = EngineRun(
        server.server.engine,
        request,
        on_output=lambda output: None,
        on_images_taken=lambda: None,
        grammar_error=InvalidRequest("no"),
    )
    waiting = asyncio.create_task(run.wait_scheduled())
    await asyncio.sleep(0)
    server.kill_engine()
    waiting.cancel()
    await asyncio.wait([waiting])
    while server.server.engine.pid is not None:  # noqa: ASYNC110
        await asyncio.sleep(0.01)  # nobody tells
    run.close()
    del run, waiting
    gc.collect()
    assert not [record for record in caplog.records if record.name == "asyncio"]
