"""An InferenceService whose generations a test scripts: the model server of the bridge's and of the client's tests.

    async with run_fake_service(Reply(pieces=("Hi", "!"))) as service: ...

Each generation runs the service's `script`, a coroutine function that sends the generation's events; a `Reply` is one.
The default script accepts, takes announced images, and repeats the prompt word by word.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf import timestamp_pb2
from google.rpc import code_pb2, status_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from spyglass.v1 import inference_pb2 as pb
from spyglass.v1 import inference_pb2_grpc as pb_grpc
from spyglass_common.status import STATUS_METADATA_KEY, make_status

PATIENCE_S = 20.0
"""Far more than anything here takes; a test that waits so long has failed."""

SERVICE = "spyglass.v1.InferenceService"
BRIDGE_KEY = "bridge-key"
USER_KEY = "user-key"
MODEL = pb.Model(
    id="spyglass-demo",
    description="A small model",
    created=timestamp_pb2.Timestamp(seconds=1_700_000_000),
    context_length=2048,
    max_tokens=1024,
    pricing=pb.Pricing(input_tokens=0.35, output_tokens=0.4, cached_input_tokens=0.35),
    dtype="float32",
    max_images=16,
    max_image_bytes=20 << 20,
    tags=["vision"],
    memory=pb.ModelMemory(
        host="here",
        device_name="cpu",
        device_bytes=24_000_000_000,
        weight_bytes=712_000_000,
        kv_cache_tokens=23_296,
        kv_cache_bytes=2_147_000_000,
        image_cache_tiles=1_234,
        image_cache_bytes=1_070_000_000,
    ),
)


class FakeStream:
    """One call of Generate, seen from the server."""

    def __init__(self, context: Any) -> None:
        self.context = context
        self.requests: list[pb.GenerateRequest] = []
        self.half_closed = asyncio.Event()
        self.outgoing: asyncio.Queue[pb.GenerateResponse | status_pb2.Status | None] = asyncio.Queue()

    @property
    def kinds(self) -> list[tuple[int, str | None]]:
        """The id and kind of every request, in the order in which they came."""
        return [(request.id, request.WhichOneof("kind")) for request in self.requests]

    def send(self, *events: pb.Event) -> None:
        self.outgoing.put_nowait(pb.GenerateResponse(events=events))

    def go_away(self, first_refused_id: int | None = None) -> None:
        go_away = pb.GoAway(reason="restarting", first_refused_id=first_refused_id)
        self.outgoing.put_nowait(pb.GenerateResponse(go_away=go_away))

    def end(self, status: status_pb2.Status | None = None) -> None:
        """Ends the whole call, well when there is no status."""
        self.outgoing.put_nowait(status)

    async def write_all(self) -> None:
        """Writes what is sent, until the call is to end."""
        while (response := await self.outgoing.get()) is not None:
            if isinstance(response, status_pb2.Status):
                await abort(self.context, response)
            await self.context.write(response)
            self.outgoing.task_done()


@dataclass(slots=True)
class Turn:
    """One generation, seen from the server."""

    id: int
    start: pb.Start
    stream: FakeStream
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    over: asyncio.Event = field(default_factory=asyncio.Event)
    is_accepted: bool = False
    images: dict[int, bytes] = field(default_factory=dict)
    images_changed: asyncio.Event = field(default_factory=asyncio.Event)
    largest_chunk: int = 0
    chunks_before_accepted: int = 0
    _complete_images: asyncio.Queue[bytes] = field(default_factory=asyncio.Queue)

    @property
    def question(self) -> str:
        """The prompt's last text."""
        if self.start.HasField("chat"):
            return self.start.chat.messages[-1].parts[-1].text
        return self.start.text

    def send(self, **kind: Any) -> None:
        self.stream.send(pb.Event(id=self.id, **kind))

    def accept(self) -> None:
        self.is_accepted = True
        self.send(accepted=pb.Accepted())

    def begin(self) -> None:
        self.send(started=pb.Started(prompt_tokens=7))

    def say(self, text: str, index: int = 0, reason: pb.FinishReason.ValueType = pb.FINISH_REASON_UNSPECIFIED) -> None:
        self.send(delta=pb.Delta(index=index, text=text, token_ids=[len(text)], finish_reason=reason))

    def finish(self, error: status_pb2.Status | None = None) -> None:
        usage = pb.Usage(prompt_tokens=7, completion_tokens=3, cached_tokens=2, estimated_cost=0.5)
        self.send(finished=pb.Finished(usage=usage, error=error))

    def take(self, chunk: pb.ImageChunk) -> None:
        """Takes a piece of an announced image."""
        data = self.images[chunk.image_index] = self.images.get(chunk.image_index, b"") + chunk.data
        self.largest_chunk = max(self.largest_chunk, len(chunk.data))
        self.chunks_before_accepted += not self.is_accepted
        self.images_changed.set()
        if chunk.last:
            self._complete_images.put_nowait(data)

    async def receive_image(self) -> bytes:
        """The next announced image, whole."""
        return await self._complete_images.get()

    async def receive_images(self) -> None:
        """Waits for all announced images."""
        for part in [part for message in self.start.chat.messages for part in message.parts]:
            if part.HasField("image") and part.image.HasField("announced"):
                await self.receive_image()


Script = Callable[[Turn], Coroutine[Any, Any, None]]


async def repeat(turn: Turn) -> None:
    """The default script."""
    turn.accept()
    await turn.receive_images()
    turn.begin()
    for word in turn.question.split():
        turn.say(word + " ")
    turn.say("", reason=pb.FINISH_REASON_STOP)
    turn.finish()


async def until_cancelled(turn: Turn) -> None:
    """Says one word, then waits for the cancel."""
    turn.accept()
    turn.begin()
    turn.say("first ")
    await turn.cancelled.wait()
    turn.finish(status_pb2.Status(code=code_pb2.CANCELLED, message="cancelled"))


@dataclass(frozen=True)
class Reply:
    """A script made from data. Each piece is a response with one delta for each choice; a cancel ends it anywhere.

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
    """When set, each response after Started waits for it."""

    async def __call__(self, turn: Turn) -> None:
        playing = asyncio.create_task(self._play(turn))
        cancelled = asyncio.create_task(turn.cancelled.wait())
        try:
            await asyncio.wait((playing, cancelled), return_when=asyncio.FIRST_COMPLETED)
            if playing.done():
                playing.result()
            else:
                turn.send(finished=pb.Finished(error=make_status(code_pb2.CANCELLED, "cancelled")))
        finally:
            playing.cancel()
            cancelled.cancel()
            await asyncio.gather(playing, cancelled, return_exceptions=True)

    async def _play(self, turn: Turn) -> None:
        if self.refusal is not None:
            turn.send(finished=pb.Finished(error=self.refusal))
            return
        turn.accept()
        await turn.receive_images()
        if self.hang_after == 0:
            await asyncio.Event().wait()
        turn.send(started=pb.Started(prompt_tokens=self.prompt_tokens, cached_tokens=self.cached_tokens))
        n = turn.start.n or 1
        end = pb.Event(id=turn.id, finished=self._finished(n))
        for number, piece in enumerate(self.pieces, 1):
            if self.gate is not None:
                await self.gate.wait()
            if self.failure is not None and number > self.fail_after:
                break
            last = number == len(self.pieces)
            reason = self.finish_reason if last else pb.FINISH_REASON_UNSPECIFIED
            deltas = [pb.Delta(index=i, text=piece, token_ids=[number], finish_reason=reason) for i in range(n)]
            events = [pb.Event(id=turn.id, delta=delta) for delta in deltas]
            turn.stream.send(*events, *([end] if last and not self.usage_in_own_frame else []))
            await turn.stream.outgoing.join()
            if self.hang_after == number:
                await asyncio.Event().wait()
        if self.failure is not None:
            turn.send(finished=pb.Finished(error=self.failure))
        elif self.usage_in_own_frame:
            turn.stream.send(end)

    def _finished(self, n: int) -> pb.Finished:
        completion_tokens = len(self.pieces) * n
        return pb.Finished(
            usage=pb.Usage(
                prompt_tokens=self.prompt_tokens,
                completion_tokens=completion_tokens,
                cached_tokens=self.cached_tokens,
                estimated_cost=self.prompt_tokens * 0.35e-6 + completion_tokens * 0.40e-6,
            )
        )


class FakeService(pb_grpc.InferenceServiceServicer):
    """Keeps what it was asked, for the test to look at. `refusal` refuses every call, and `num_cut` calls are cut.

    With a `key` it serves only calls that carry it. A bridge may ask it about `user_keys`. `begin` makes it listen.
    """

    def __init__(self, script: Script = repeat, model: pb.Model = MODEL, key: str | None = None) -> None:
        self.script = script
        self.refusal: status_pb2.Status | None = None
        self.num_cut = 0
        self.user_keys = {USER_KEY}
        self.tenants: dict[str, str] = {}
        self.access_checks: list[str] = []
        self.authorizations: list[str] = []
        self.streams: list[FakeStream] = []
        self.turns: list[Turn] = []
        self.new_turns: asyncio.Queue[Turn] = asyncio.Queue()
        self.port = 0
        self.credentials: grpc.ServerCredentials | None = None
        """For TLS, from the next `begin` on."""
        self.model = pb.Model()
        self.model.CopyFrom(model)
        self._key = key
        self._turns_changed = asyncio.Event()
        self._server: grpc.aio.Server | None = None
        self._health = health.aio.HealthServicer()
        self.status = pb.GetStatusResponse(state=pb.SERVER_STATE_READY)

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def begin(self) -> None:
        """Listens, at the same port as before if there was one."""
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        pb_grpc.add_InferenceServiceServicer_to_server(self, self._server)
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        await self.set_serving(True)
        reflection.enable_server_reflection((SERVICE, reflection.SERVICE_NAME), self._server)
        if self.credentials is None:
            self.port = self._server.add_insecure_port(self.target)
        else:
            self.port = self._server.add_secure_port(self.target, self.credentials)
        await self._server.start()

    async def end(self) -> None:
        """Goes away at once, cutting everything."""
        if self._server is not None:
            await self._server.stop(0)
            self._server = None

    async def set_serving(self, serving: bool) -> None:
        state = health_pb2.HealthCheckResponse
        for service in ("", SERVICE):
            await self._health.set(service, state.SERVING if serving else state.NOT_SERVING)

    async def turn(self, number: int = 1) -> Turn:
        """Waits until that many generations have come and returns the last of them."""
        async with asyncio.timeout(PATIENCE_S):
            while len(self.turns) < number:
                self._turns_changed.clear()
                await self._turns_changed.wait()
        return self.turns[number - 1]

    async def Generate(  # type: ignore[override]  # noqa: N802
        self, request_iterator: AsyncIterator[pb.GenerateRequest], context: Any
    ) -> None:
        await self._enter(context)
        stream = FakeStream(context)
        self.streams.append(stream)
        async with asyncio.TaskGroup() as tasks:
            reader = tasks.create_task(self._read(stream, request_iterator))
            await stream.write_all()
            reader.cancel()

    async def _read(self, stream: FakeStream, requests: AsyncIterator[pb.GenerateRequest]) -> None:
        turns: dict[int, Turn] = {}
        async with asyncio.TaskGroup() as scripts:
            async for request in requests:
                stream.requests.append(request)
                match request.WhichOneof("kind"):
                    case "start":
                        turns[request.id] = turn = Turn(request.id, request.start, stream)
                        self.turns.append(turn)
                        self._turns_changed.set()
                        self.new_turns.put_nowait(turn)
                        scripts.create_task(_run(self.script, turn))
                    case "image_chunk":
                        turns[request.id].take(request.image_chunk)
                    case "cancel":
                        turns[request.id].cancelled.set()
            stream.half_closed.set()
        stream.end()

    async def ListModels(self, request: pb.ListModelsRequest, context: Any) -> pb.ListModelsResponse:  # noqa: N802
        await self._enter(context)
        return pb.ListModelsResponse(models=[self.model])

    async def GetModel(self, request: pb.GetModelRequest, context: Any) -> pb.GetModelResponse:  # noqa: N802
        await self._enter(context)
        if request.model != self.model.id:
            message = f"no model {request.model}"
            await abort(context, make_status(code_pb2.NOT_FOUND, message, reason="model_not_found", field="model"))
        return pb.GetModelResponse(model=self.model)

    async def CountTokens(self, request: pb.CountTokensRequest, context: Any) -> pb.CountTokensResponse:  # noqa: N802
        await self._enter(context)
        parts = [part for message in request.start.chat.messages for part in message.parts]
        return pb.CountTokensResponse(prompt_tokens=len(parts) or len(request.start.tokens.ids))

    async def Detokenize(self, request: pb.DetokenizeRequest, context: Any) -> pb.DetokenizeResponse:  # noqa: N802
        await self._enter(context)
        return pb.DetokenizeResponse(text="scripted")

    async def CheckAccess(self, request: pb.CheckAccessRequest, context: Any) -> pb.CheckAccessResponse:  # noqa: N802
        await self._enter(context)
        if request.HasField("caller"):
            self.access_checks.append(request.caller.bearer_key)
            if request.caller.bearer_key not in self.user_keys:
                await abort(context, status_pb2.Status(code=code_pb2.UNAUTHENTICATED, message="who?"))
        return pb.CheckAccessResponse(key_id="key-1", tenant=self.tenants.get(request.caller.bearer_key, "tenant-1"))

    async def GetUsage(self, request: pb.GetUsageRequest, context: Any) -> pb.GetUsageResponse:  # noqa: N802
        await self._enter(context)
        usage = pb.Usage(prompt_tokens=7, completion_tokens=3, estimated_cost=0.5)
        records = [
            pb.UsageRecord(request_id=f"r{number}", model=self.model.id, usage=usage, outcome="OK" if number else "")
            for number in range(request.max_records)
        ]
        for record in records:
            record.started.FromSeconds(1_700_000_000)
            if record.outcome:
                record.finished.FromSeconds(1_700_000_001)
        return pb.GetUsageResponse(
            key_id="key-1",
            generations=len(records),
            prompt_tokens=70,
            completion_tokens=30,
            estimated_cost=0.25,
            records=records,
        )

    async def GetStatus(self, request: pb.GetStatusRequest, context: Any) -> pb.GetStatusResponse:  # noqa: N802
        await self._enter(context)
        return self.status

    async def _enter(self, context: Any) -> None:
        authorization = dict(context.invocation_metadata()).get("authorization", "")
        self.authorizations.append(authorization)
        if self.num_cut > 0:
            self.num_cut -= 1
            await context.abort(grpc.StatusCode.CANCELLED, "CANCELLED")
        if self.refusal is not None:
            await abort(context, self.refusal)
        if self._key is not None and authorization != f"Bearer {self._key}":
            await abort(context, status_pb2.Status(code=code_pb2.UNAUTHENTICATED, message="not the bridge"))


async def _run(script: Script, turn: Turn) -> None:
    try:
        await script(turn)
    finally:
        turn.over.set()


async def abort(context: Any, status: status_pb2.Status) -> None:
    """Ends a call with a status, as the server does."""
    codes = {code.value[0]: code for code in grpc.StatusCode}
    metadata = ((STATUS_METADATA_KEY, status.SerializeToString()),) if status.details else ()
    await context.abort(codes[status.code], status.message, metadata)


@asynccontextmanager
async def run_fake_service(
    script: Script = repeat, model: pb.Model = MODEL, key: str | None = None
) -> AsyncIterator[FakeService]:
    """Runs a service on a free port while the context is open."""
    service = FakeService(script, model, key)
    await service.begin()
    try:
        yield service
    finally:
        await service.end()
