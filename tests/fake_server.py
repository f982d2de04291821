"""A Spyglass server without a model: it says what a test scripts, with the faults it asks for.

async with run_fake_server(Reply(pieces=("Hi", "!"), fail_after=1)) as server: ...
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf import timestamp_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from spyglass.v1 import inference_pb2 as pb
from spyglass.v1 import inference_pb2_grpc

PATIENCE_S = 20.0
"""Far more than anything here takes; a test that waits so long has failed."""

SERVICE = "spyglass.v1.InferenceService"
BRIDGE_KEY = "bridge-key"
USER_KEY = "user-key"
MODEL = "meta-llama/Llama-3.2-90B-Vision-Instruct"


def make_status(
    code: int, message: str = "as scripted", reason: str = "", field_path: str = "", retry_s: float = 0
) -> status_pb2.Status:
    """A status with the details that the real server gives."""
    status = status_pb2.Status(code=code, message=message)
    if reason:
        status.details.add().Pack(error_details_pb2.ErrorInfo(reason=reason, domain="spyglass"))
    if field_path:
        violation = error_details_pb2.BadRequest.FieldViolation(field=field_path, description=message)
        status.details.add().Pack(error_details_pb2.BadRequest(field_violations=[violation]))
    if retry_s:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMilliseconds(int(retry_s * 1000))
        status.details.add().Pack(retry)
    return status


@dataclass(frozen=True)
class Reply:
    """How a generation goes. Each piece is a frame with one delta for each choice.

    `refusal` ends it instead of Accepted, `failure` instead of the rest after `fail_after` pieces.
    After `hang_after` pieces (0: before Started) it stays silent until it is cancelled.
    """

    pieces: tuple[str, ...] = ("Hel", "lo", "!")
    finish_reason: pb.FinishReason.ValueType = pb.FINISH_REASON_STOP
    refusal: status_pb2.Status | None = None
    failure: status_pb2.Status | None = None
    fail_after: int = 0
    hang_after: int | None = None
    usage_in_own_frame: bool = False
    prompt_tokens: int = 11
    cached_tokens: int = 3
    gate: asyncio.Event | None = None
    """When set, each frame after Started waits for it."""


@dataclass
class Call:
    """A generation as the server saw it."""

    id: int
    start: pb.Start
    images: dict[int, bytes] = field(default_factory=dict)
    complete_images: set[int] = field(default_factory=set)
    largest_chunk: int = 0
    chunks_before_accepted: int = 0
    accepted: bool = False
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    over: asyncio.Event = field(default_factory=asyncio.Event)
    images_changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def announced(self) -> int:
        parts = [part for message in self.start.chat.messages for part in message.parts]
        return sum(part.image.HasField("announced") for part in parts if part.HasField("image"))


ReplyFor = Callable[[pb.Start], Reply]


class FakeServer(inference_pb2_grpc.InferenceServiceServicer):
    """What came in, and levers to pull. Made by `run_fake_server`."""

    def __init__(self, reply: Reply | ReplyFor) -> None:
        self.reply = reply
        self.port = 0
        self.user_keys = {USER_KEY}
        self.access_checks: list[str] = []
        self.calls: list[Call] = []
        self.kinds: list[tuple[int, str]] = []
        """Every message in the order in which it came: (id, kind)."""
        self.streams: list[_FakeStream] = []
        self.half_closed = 0
        self.called = asyncio.Event()
        self._server: grpc.aio.Server | None = None
        self._health = health.aio.HealthServicer()

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def begin(self) -> None:
        """Listens, at the same port as before if there was one."""
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        inference_pb2_grpc.add_InferenceServiceServicer_to_server(self, self._server)
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        await self.set_serving(True)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        await self._server.start()

    async def end(self) -> None:
        """Goes away at once, cutting everything."""
        if self._server is not None:
            await self._server.stop(0)
            self._server = None

    async def set_serving(self, serving: bool) -> None:
        state = health_pb2.HealthCheckResponse
        await self._health.set(SERVICE, state.SERVING if serving else state.NOT_SERVING)

    async def next_call(self, number: int = 1) -> Call:
        """Waits until that many generations have come and returns the last of them."""
        async with asyncio.timeout(PATIENCE_S):
            while len(self.calls) < number:
                self.called.clear()
                await self.called.wait()
        return self.calls[number - 1]

    def reply_to(self, start: pb.Start) -> Reply:
        return self.reply(start) if callable(self.reply) else self.reply

    async def Generate(  # type: ignore[override]  # noqa: N802
        self, request_iterator: AsyncIterator[pb.GenerateRequest], context: Any
    ) -> None:
        await _check_bridge(context)
        stream = _FakeStream(self, context)
        self.streams.append(stream)
        await stream.run(request_iterator)

    async def CheckAccess(self, request: pb.CheckAccessRequest, context: Any) -> pb.CheckAccessResponse:  # noqa: N802
        await _check_bridge(context)
        if not request.HasField("caller"):
            return pb.CheckAccessResponse(key_id="bridge")
        self.access_checks.append(request.caller.bearer_key)
        if request.caller.bearer_key not in self.user_keys:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "who?")
        return pb.CheckAccessResponse(key_id="key")

    async def CountTokens(self, request: pb.CountTokensRequest, context: Any) -> pb.CountTokensResponse:  # noqa: N802
        return await context.abort(grpc.StatusCode.UNIMPLEMENTED, "not scripted")  # type: ignore[no-any-return]

    async def Detokenize(self, request: pb.DetokenizeRequest, context: Any) -> pb.DetokenizeResponse:  # noqa: N802
        return await context.abort(grpc.StatusCode.UNIMPLEMENTED, "not scripted")  # type: ignore[no-any-return]

    async def GetUsage(self, request: pb.GetUsageRequest, context: Any) -> pb.GetUsageResponse:  # noqa: N802
        return await context.abort(grpc.StatusCode.UNIMPLEMENTED, "not scripted")  # type: ignore[no-any-return]

    async def ListModels(self, request: pb.ListModelsRequest, context: Any) -> pb.ListModelsResponse:  # noqa: N802
        await _check_bridge(context)
        return pb.ListModelsResponse(models=[_model()])

    async def GetModel(self, request: pb.GetModelRequest, context: Any) -> pb.GetModelResponse:  # noqa: N802
        await _check_bridge(context)
        if request.model != MODEL:
            status = make_status(code_pb2.NOT_FOUND, f"no model {request.model}", "model_not_found", "model")
            context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
            await context.abort(grpc.StatusCode.NOT_FOUND, status.message)
        return pb.GetModelResponse(model=_model())


class _FakeStream:
    """One Generate call."""

    def __init__(self, server: FakeServer, context: Any) -> None:
        self._server = server
        self._context = context
        self._running: dict[int, Call] = {}
        self._write_lock = asyncio.Lock()

    async def run(self, requests: AsyncIterator[pb.GenerateRequest]) -> None:
        async with asyncio.TaskGroup() as group:
            async for request in requests:
                kind = request.WhichOneof("kind") or ""
                self._server.kinds.append((request.id, kind))
                if kind == "start":
                    self._begin(request, group)
                elif call := self._running.get(request.id):
                    self._take(call, request)
            self._server.half_closed += 1

    async def go_away(self, reason: str = "as scripted") -> None:
        await self._write(pb.GenerateResponse(go_away=pb.GoAway(reason=reason)))

    def _begin(self, request: pb.GenerateRequest, group: asyncio.TaskGroup) -> None:
        call = Call(request.id, request.start)
        self._server.calls.append(call)
        self._server.called.set()
        self._running[call.id] = call
        group.create_task(self._answer(call, self._server.reply_to(call.start)))

    def _take(self, call: Call, request: pb.GenerateRequest) -> None:
        if request.HasField("cancel"):
            call.cancelled.set()
            return
        chunk = request.image_chunk
        call.images[chunk.image_index] = call.images.get(chunk.image_index, b"") + chunk.data
        call.largest_chunk = max(call.largest_chunk, len(chunk.data))
        call.chunks_before_accepted += not call.accepted
        if chunk.last:
            call.complete_images.add(chunk.image_index)
        call.images_changed.set()

    async def _answer(self, call: Call, reply: Reply) -> None:
        playing = asyncio.create_task(self._play(call, reply))
        cancelled = asyncio.create_task(call.cancelled.wait())
        try:
            await asyncio.wait((playing, cancelled), return_when=asyncio.FIRST_COMPLETED)
            if not playing.done():
                async with self._write_lock:  # A write that is cut short would break the stream.
                    playing.cancel()
                await asyncio.gather(playing, return_exceptions=True)
                await self._finish(call, make_status(code_pb2.CANCELLED, "cancelled"))
        finally:
            playing.cancel()
            cancelled.cancel()
            self._running.pop(call.id, None)
            call.over.set()

    async def _play(self, call: Call, reply: Reply) -> None:
        if reply.refusal is not None:
            await self._finish(call, reply.refusal)
            return
        await self._event(call, accepted=pb.Accepted())
        call.accepted = True
        while len(call.complete_images) < call.announced:
            call.images_changed.clear()
            await call.images_changed.wait()
        if reply.hang_after == 0:
            await asyncio.Event().wait()
        await self._event(
            call, started=pb.Started(prompt_tokens=reply.prompt_tokens, cached_tokens=reply.cached_tokens)
        )
        n = call.start.n or 1
        for number, piece in enumerate(reply.pieces, 1):
            if reply.gate is not None:
                await reply.gate.wait()
            if reply.failure is not None and number > reply.fail_after:
                break
            last = number == len(reply.pieces)
            reason = reply.finish_reason if last else pb.FINISH_REASON_UNSPECIFIED
            deltas = [pb.Delta(index=i, text=piece, token_ids=[number], finish_reason=reason) for i in range(n)]
            events = [pb.Event(id=call.id, delta=delta) for delta in deltas]
            if last and not reply.usage_in_own_frame:
                events.append(pb.Event(id=call.id, finished=self._finished(call, reply)))
            await self._write(pb.GenerateResponse(events=events))
            if reply.hang_after == number:
                await asyncio.Event().wait()
        if reply.failure is not None:
            await self._finish(call, reply.failure)
        elif reply.usage_in_own_frame:
            await self._event(call, finished=self._finished(call, reply))

    def _finished(self, call: Call, reply: Reply) -> pb.Finished:
        completion_tokens = len(reply.pieces) * (call.start.n or 1)
        return pb.Finished(
            usage=pb.Usage(
                prompt_tokens=reply.prompt_tokens,
                completion_tokens=completion_tokens,
                cached_tokens=reply.cached_tokens,
                estimated_cost=reply.prompt_tokens * 0.35e-6 + completion_tokens * 0.40e-6,
            )
        )

    async def _finish(self, call: Call, error: status_pb2.Status) -> None:
        await self._event(call, finished=pb.Finished(error=error))

    async def _event(self, call: Call, **kind: Any) -> None:
        await self._write(pb.GenerateResponse(events=[pb.Event(id=call.id, **kind)]))

    async def _write(self, response: pb.GenerateResponse) -> None:
        async with self._write_lock:
            await self._context.write(response)


async def _check_bridge(context: Any) -> None:
    if ("authorization", f"Bearer {BRIDGE_KEY}") not in context.invocation_metadata():
        await context.abort(grpc.StatusCode.UNAUTHENTICATED, "not the bridge")


def _model() -> pb.Model:
    return pb.Model(
        id=MODEL,
        description="A model that is not there.",
        created=timestamp_pb2.Timestamp(seconds=1_700_000_000),
        context_length=32768,
        max_tokens=16384,
        pricing=pb.Pricing(input_tokens=0.35, output_tokens=0.40, cached_input_tokens=0.35),
        dtype="bfloat16",
        max_images=16,
        max_image_bytes=20 << 20,
        tags=["vision"],
    )


@asynccontextmanager
async def run_fake_server(reply: Reply | ReplyFor = Reply()) -> AsyncIterator[FakeServer]:
    """Runs a server on a free port while the context is open."""
    server = FakeServer(reply)
    await server.begin()
    try:
        yield server
    finally:
        await server.end()
