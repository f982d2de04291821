"""The asynchronous client: its channel, its key, and the stream for new generations."""

import asyncio
import os
import sys
from collections.abc import Sequence
from datetime import datetime
from types import TracebackType
from typing import Self, TypeVar, Unpack

import grpc
from google.protobuf import message as protobuf

from spyglass.v1 import inference_pb2 as pb
from spyglass.v1 import inference_pb2_grpc as pb_grpc
from spyglass_client.account import ModelInfo, UsageSummary, usage_filter, usage_groups
from spyglass_client.answer import Answer
from spyglass_client.errors import ClientClosedError, SpyglassError, UnavailableError, from_rpc_error, lost_status
from spyglass_client.generation import AsyncGeneration
from spyglass_client.helpers import P, read_into, run_tools
from spyglass_client.messages import Message
from spyglass_client.request import Draft, ImageUpload, Options, QuestionOptions, draft_chat, draft_question
from spyglass_client.running_stream import RunningStream, StreamedRequest
from spyglass_client.status import ServerStatus
from spyglass_client.target import Tls, default_api_key, default_target, open_channel
from spyglass_client.tools import Tool
from spyglass_common.reading_calls import read

Request = TypeVar("Request", bound=protobuf.Message)
Response = TypeVar("Response")


class AsyncClient:
    """Asks a Spyglass server over gRPC.

        async with AsyncClient() as client:
            answer = await client.generate("What is in it?", images=["cat.png"])
            print(answer.text)

    `target` is HOST:PORT or unix:PATH (default: SPYGLASS_GRPC, else 127.0.0.1:50051); `api_key` defaults
    to SPYGLASS_API_KEY. `tls` is None for plaintext, as within one machine. `call_timeout_s` bounds the
    short calls (models, usage, …); a generation has `timeout_s`, one of its Options.

    All generations share one stream, which is opened on first use and again after it is lost. The client
    belongs to the event loop that first uses it. Every method raises SpyglassError if the server cannot be
    reached or refuses.
    """

    def __init__(
        self,
        target: str | None = None,
        *,
        api_key: str | None = None,
        tls: Tls | None = None,
        call_timeout_s: float = 30.0,
    ) -> None:
        self.target = target or default_target(os.environ)
        self._tls = tls
        self._call_timeout_s = call_timeout_s
        key = api_key or default_api_key(os.environ)
        if key is not None and not (key.isascii() and key.isprintable()):
            raise ValueError("an API key holds only printable ASCII characters")
        self._metadata = (("authorization", f"Bearer {key}"),) if key else ()
        self._channel: grpc.aio.Channel | None = None
        self._streams: list[RunningStream] = []
        self._closed = False

    async def generate(self, question: str | None = None, **options: Unpack[QuestionOptions]) -> Answer:
        """Asks and waits for the whole answer.

        Give a question, optionally with `images` and a `system` prompt; or a ready prompt as `text` or
        `tokens`, to which no chat template is applied.
        """
        return await self._answer(draft_question(question, options))

    def stream(self, question: str | None = None, **options: Unpack[QuestionOptions]) -> AsyncGeneration:
        """Asks and streams the answer; takes the arguments of `generate`."""
        return self._generation(draft_question(question, options))

    async def chat(self, messages: Sequence[Message], **options: Unpack[Options]) -> Answer:
        """Continues a conversation and waits for the whole answer."""
        return await self._answer(draft_chat(messages, options))

    def stream_chat(self, messages: Sequence[Message], **options: Unpack[Options]) -> AsyncGeneration:
        """Continues a conversation and streams the answer."""
        return self._generation(draft_chat(messages, options))

    async def parse(self, kind: type[P], messages: Sequence[Message], **options: Unpack[Options]) -> P:
        """Continues a conversation and parses the answer into a type, such as a pydantic model, that constrains it.

        Raises ValueError if the answer was cut short.
        """
        options["json_schema"] = kind.model_json_schema()
        return read_into(kind, await self.chat(messages, **options))

    async def run_tools(
        self, messages: Sequence[Message], tools: Sequence[Tool], /, *, max_rounds: int = 8, **options: Unpack[Options]
    ) -> tuple[Answer, list[Message]]:
        """Continues a conversation, running the tools that the model calls, until it answers in text.

        Returns that answer and the whole conversation. A `tool_choice` applies only to the first answer. Raises
        RuntimeError if `max_rounds` answers call tools, and ValueError if one was cut short in a call.
        """
        options["tools"] = tools
        later = options.copy()
        later["tool_choice"] = None
        return await run_tools(
            lambda turns, is_first: self.chat(turns, **(options if is_first else later)), messages, tools, max_rounds
        )

    async def count_tokens(self, question: str | None = None, **options: Unpack[QuestionOptions]) -> int:
        """Counts the prompt tokens of a request; takes the arguments of `generate`. An image counts as one."""
        return await self._count(draft_question(question, options))

    async def count_chat_tokens(self, messages: Sequence[Message], **options: Unpack[Options]) -> int:
        """Counts the prompt tokens of a conversation; takes the arguments of `chat`."""
        return await self._count(draft_chat(messages, options))

    async def models(self) -> list[ModelInfo]:
        """Lists the models that the server runs; the first serves requests that name none."""
        response = await self._call(self._stub().ListModels, pb.ListModelsRequest())
        return [ModelInfo.from_proto(model) for model in response.models]

    async def usage(
        self,
        max_records: int = 0,
        *,
        model: str = "",
        since: datetime | None = None,
        until: datetime | None = None,
        group_by: Sequence[str] = (),
    ) -> UsageSummary:
        """Returns the key's usage, with sums by `group_by` (key, model, day) and its latest `max_records` generations.

        At most 1,000 are listed. Only generations that began at or after `since` and before `until` count.
        """
        request = pb.GetUsageRequest(
            max_records=max_records, filter=usage_filter(model, since, until), group_by=usage_groups(group_by)
        )
        return UsageSummary.from_proto(await self._call(self._stub().GetUsage, request))

    async def status(self) -> ServerStatus:
        """Returns the server's status: its state, load and caches."""
        return ServerStatus.from_proto(await self._call(self._stub().GetStatus, pb.GetStatusRequest()))

    async def check_access(self) -> str:
        """Checks that the key is accepted and returns its public name."""
        response = await self._call(self._stub().CheckAccess, pb.CheckAccessRequest())
        return response.key_id

    async def close(self) -> None:
        """Ends running generations with ClientClosedError and closes the connection. May be called twice."""
        self._closed = True
        for stream in self._streams:
            await stream.aclose()
        self._streams.clear()
        if self._channel is not None:
            await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _answer(self, draft: Draft) -> Answer:
        async with self._generation(draft) as generation:
            return await generation.result()

    def _generation(self, draft: Draft) -> AsyncGeneration:
        images: tuple[ImageUpload, ...] | None = None

        async def send(generation: AsyncGeneration) -> StreamedRequest:
            nonlocal images
            if images is None:
                images = await asyncio.to_thread(draft.load) if draft.pictures else draft.load()
            stream = self._stream_for_new()
            return StreamedRequest(stream, stream.start(draft.start, generation), images)

        return AsyncGeneration(draft.start.request_id, draft.start.n or 1, send)

    async def _count(self, draft: Draft) -> int:
        await asyncio.to_thread(draft.load, inline_bytes=sys.maxsize)
        request = pb.CountTokensRequest(start=draft.start)
        response = await self._call(self._stub().CountTokens, request)
        return response.prompt_tokens

    def _stream_for_new(self) -> RunningStream:
        """Returns the newest stream, or opens one if that accepts no more generations."""
        if not self._streams or not self._streams[-1].is_accepting:
            self._streams = [stream for stream in self._streams if not stream.has_ended]
            call = self._stub().Generate(metadata=self._metadata)
            self._streams.append(RunningStream(call, self._explain_stream_end))
        return self._streams[-1]

    async def _explain_stream_end(self, error: grpc.aio.AioRpcError) -> SpyglassError:
        """Finds what ended a stream. If gRPC has lost the server's status, a short call asks for it again."""
        if not lost_status(error):
            return from_rpc_error(error, self.target)
        try:
            await self.check_access()
        except SpyglassError as reason:
            return reason
        return UnavailableError("the server ended the stream", reason="STREAM_ENDED")

    def _stub(self) -> "pb_grpc.InferenceServiceAsyncStub":
        if self._closed:
            raise ClientClosedError("the client is closed")
        if self._channel is None:
            self._channel = open_channel(self.target, self._tls)
        return pb_grpc.InferenceServiceStub(self._channel)

    async def _call(self, method: grpc.aio.UnaryUnaryMultiCallable[Request, Response], request: Request) -> Response:
        try:
            return await read(method, request, metadata=self._metadata, timeout_s=self._call_timeout_s)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error, self.target) from error
