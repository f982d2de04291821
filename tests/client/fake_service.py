"""An inference server whose answers a test writes, for tests of the client.

Each generation runs the service's `script`, a coroutine function that sends the generation's events.
The default script accepts, takes announced images, and repeats the prompt word by word.
"""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.rpc import code_pb2, error_details_pb2, status_pb2

from spyglass.v1 import inference_pb2 as pb
from spyglass.v1 import inference_pb2_grpc as pb_grpc


def make_status(
    code: int, message: str, reason: str, *, field_path: str | None = None, retry_s: int | None = None
) -> status_pb2.Status:
    """A status with the details that the server gives."""
    status = status_pb2.Status(code=code, message=message)
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason=reason, domain="spyglass"))
    if field_path is not None:
        violation = error_details_pb2.BadRequest.FieldViolation(field=field_path, description=message)
        status.details.add().Pack(error_details_pb2.BadRequest(field_violations=[violation]))
    if retry_s is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromSeconds(retry_s)
        status.details.add().Pack(retry)
    return status


class Stream:
    """One call of Generate, seen from the server."""

    def __init__(self, context: "grpc.aio.ServicerContext[pb.GenerateRequest, pb.GenerateResponse]") -> None:
        self.context = context
        self.requests: list[pb.GenerateRequest] = []
        self.half_closed = asyncio.Event()
        self.outgoing: asyncio.Queue[pb.GenerateResponse | status_pb2.Status | None] = asyncio.Queue()

    def send(self, *events: pb.Event) -> None:
        self.outgoing.put_nowait(pb.GenerateResponse(events=events))

    def go_away(self) -> None:
        self.outgoing.put_nowait(pb.GenerateResponse(go_away=pb.GoAway(reason="restarting")))

    def end(self, status: status_pb2.Status | None = None) -> None:
        """Ends the whole call, well when there is no status."""
        self.outgoing.put_nowait(status)


@dataclass(slots=True)
class Turn:
    """One generation, seen from the server."""

    id: int
    start: pb.Start
    stream: Stream
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    chunks: asyncio.Queue[pb.ImageChunk] = field(default_factory=asyncio.Queue)

    @property
    def question(self) -> str:
        """The prompt's last text."""
        if self.start.HasField("chat"):
            return self.start.chat.messages[-1].parts[-1].text
        return self.start.text

    def accept(self) -> None:
        self.stream.send(pb.Event(id=self.id, accepted=pb.Accepted()))

    def begin(self) -> None:
        self.stream.send(pb.Event(id=self.id, started=pb.Started(prompt_tokens=7)))

    def say(self, text: str, index: int = 0, reason: pb.FinishReason.ValueType = pb.FINISH_REASON_UNSPECIFIED) -> None:
        delta = pb.Delta(index=index, text=text, token_ids=[len(text)], finish_reason=reason)
        self.stream.send(pb.Event(id=self.id, delta=delta))

    def finish(self, error: status_pb2.Status | None = None) -> None:
        usage = pb.Usage(prompt_tokens=7, completion_tokens=3, cached_tokens=2, estimated_cost=0.5)
        self.stream.send(pb.Event(id=self.id, finished=pb.Finished(usage=usage, error=error)))

    async def receive_image(self) -> bytes:
        """The next announced image, whole."""
        pieces = []
        while True:
            chunk = await self.chunks.get()
            pieces.append(chunk.data)
            if chunk.last:
                return b"".join(pieces)


Script = Callable[[Turn], Coroutine[Any, Any, None]]


async def repeat(turn: Turn) -> None:
    """The default script."""
    turn.accept()
    images = [part.image for message in turn.start.chat.messages for part in message.parts if part.HasField("image")]
    for image in images:
        if image.HasField("announced"):
            await turn.receive_image()
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


class FakeService(pb_grpc.InferenceServiceServicer):
    """Keeps what it was asked, for the test to look at. `refusal` refuses every call."""

    def __init__(self) -> None:
        self.target = ""
        self.script: Script = repeat
        self.refusal: status_pb2.Status | None = None
        self.streams: list[Stream] = []
        self.turns: list[Turn] = []
        self.new_turns: asyncio.Queue[Turn] = asyncio.Queue()
        self.authorizations: list[str] = []

    async def Generate(self, request_iterator, context):  # type: ignore[no-untyped-def, override]  # noqa: N802
        await self._enter(context)
        stream = Stream(context)
        self.streams.append(stream)
        async with asyncio.TaskGroup() as tasks:
            reader = tasks.create_task(self._read(stream, request_iterator, tasks))
            while (response := await stream.outgoing.get()) is not None:
                if isinstance(response, status_pb2.Status):
                    reader.cancel()
                    await _abort(context, response)
                await context.write(response)
            reader.cancel()

    async def _read(self, stream: Stream, requests, tasks: asyncio.TaskGroup) -> None:  # type: ignore[no-untyped-def]
        turns: dict[int, Turn] = {}
        scripts = []
        async for request in requests:
            stream.requests.append(request)
            match request.WhichOneof("kind"):
                case "start":
                    turns[request.id] = turn = Turn(request.id, request.start, stream)
                    self.turns.append(turn)
                    self.new_turns.put_nowait(turn)
                    scripts.append(tasks.create_task(self.script(turn)))
                case "image_chunk":
                    turns[request.id].chunks.put_nowait(request.image_chunk)
                case "cancel":
                    turns[request.id].cancelled.set()
        stream.half_closed.set()
        for script in scripts:
            await script
        stream.end()

    async def ListModels(self, request, context):  # type: ignore[no-untyped-def]  # noqa: N802
        await self._enter(context)
        model = pb.Model(
            id="spyglass-demo",
            description="A small model",
            context_length=2048,
            max_tokens=1024,
            pricing=pb.Pricing(input_tokens=0.35, output_tokens=0.4, cached_input_tokens=0.35),
            dtype="float32",
            max_images=16,
            max_image_bytes=20 << 20,
            tags=["vision"],
        )
        model.created.FromSeconds(1_700_000_000)
        return pb.ListModelsResponse(models=[model])

    async def GetModel(self, request, context):  # type: ignore[no-untyped-def]  # noqa: N802
        raise NotImplementedError

    async def CountTokens(self, request, context):  # type: ignore[no-untyped-def]  # noqa: N802
        await self._enter(context)
        parts = [part for message in request.start.chat.messages for part in message.parts]
        return pb.CountTokensResponse(prompt_tokens=len(parts) or len(request.start.tokens.ids))

    async def Detokenize(self, request, context):  # type: ignore[no-untyped-def]  # noqa: N802
        await self._enter(context)
        return pb.DetokenizeResponse(text="scripted")

    async def CheckAccess(self, request, context):  # type: ignore[no-untyped-def]  # noqa: N802
        await self._enter(context)
        return pb.CheckAccessResponse(key_id="key-1")

    async def GetUsage(self, request, context):  # type: ignore[no-untyped-def]  # noqa: N802
        await self._enter(context)
        usage = pb.Usage(prompt_tokens=7, completion_tokens=3, estimated_cost=0.5)
        records = [
            pb.UsageRecord(request_id=f"r{number}", model="spyglass-demo", usage=usage, outcome="OK" if number else "")
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

    async def _enter(self, context) -> None:  # type: ignore[no-untyped-def]
        metadata = dict(context.invocation_metadata())
        self.authorizations.append(metadata.get("authorization", ""))
        if self.refusal is not None:
            await _abort(context, self.refusal)


async def _abort(context, status: status_pb2.Status) -> None:  # type: ignore[no-untyped-def]
    codes = {code.value[0]: code for code in grpc.StatusCode}
    metadata = (("grpc-status-details-bin", status.SerializeToString()),) if status.details else ()
    await context.abort(codes[status.code], status.message, metadata)
