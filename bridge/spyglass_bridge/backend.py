"""One model server, as the bridge sees it: its channel, calls, Generate stream and health."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Self, TypeVar

import grpc
from google.protobuf.message import Message

from spyglass.v1 import inference_pb2 as pb
from spyglass_bridge.connection import Connections
from spyglass_bridge.errors import ApiError, from_rpc_error, server_unavailable
from spyglass_bridge.link import Link
from spyglass_bridge.recent import Recent
from spyglass_bridge.remote_generation import RemoteGeneration
from spyglass_common.reading_calls import read
from spyglass_common.tls import Tls

if TYPE_CHECKING:
    from spyglass.v1.inference_pb2_grpc import InferenceServiceAsyncStub

_CALL_TIMEOUT_S = 10.0
_ACCESS_TIMEOUT_S = 2.0
_TOKENS_TIMEOUT_S = 30.0
_STATUS_TIMEOUT_S = 2.0
_STATUS_AGE_S = 0.25
_PUBLIC_MODEL_AGE_S = 2.0
_REFUSALS = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)

_log = logging.getLogger(__name__)

Response = TypeVar("Response")


class Backend:
    """A server that the bridge stays connected to. Created by `Backend.connect`.

    Calls raise ApiError when the server refuses them or does not answer.
    """

    def __init__(self, target: str, bridge_key: str, tls: Tls | None) -> None:
        self._metadata = (("authorization", f"Bearer {bridge_key}"),)
        self._connections = Connections(target, tls, self._metadata)
        self._status = Recent(self._ask_status, _STATUS_AGE_S)
        self._public_model = Recent(self._ask_public_model, _PUBLIC_MODEL_AGE_S)

    @classmethod
    @asynccontextmanager
    async def connect(cls, target: str, bridge_key: str, tls: Tls | None = None) -> AsyncIterator[Self]:
        """Stays connected while the context is open; the server need not be up yet.

        Raises:
            OSError: TLS files cannot be used.
        """
        backend = cls(target, bridge_key, tls)
        async with asyncio.TaskGroup() as group:
            running = group.create_task(backend._connections.run())
            yield backend
            running.cancel()

    @property
    def _stub(self) -> "InferenceServiceAsyncStub":
        return self._connections.current.stub

    @property
    def _link(self) -> Link:
        return self._connections.current.link

    @property
    def is_ready(self) -> bool:
        """Whether the server can serve generations now."""
        return self._connections.current.is_ready

    def generate(self, start: pb.Start) -> AbstractAsyncContextManager[RemoteGeneration]:
        """Starts a generation, and cancels it at the end of the context if it has not ended."""
        return self._link.generate(start)

    def fail_all(self) -> None:
        """Ends every generation with an explicit error: the drain timeout has expired."""
        self._connections.fail_all()

    async def check_access(self, key: str) -> str | ApiError:
        """Returns the tenant of an end user's key if it may call, else the refusal: 401 or 403.

        Raises ApiError 503 when the server cannot say.
        """
        request = pb.CheckAccessRequest(caller=pb.Caller(bearer_key=key))
        try:
            answer = await self._read(self._stub.CheckAccess, request, _ACCESS_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            # Without a stream, the refused key may be the bridge's own rather than the caller's.
            if error.code() in _REFUSALS and self._link.is_up:
                return from_rpc_error(error)
            _log.warning("a key could not be checked: %s: %s", error.code().name, error.details())
            raise server_unavailable() from error
        return answer.tenant or answer.key_id  # older servers have no tenants

    async def get_status(self) -> pb.GetStatusResponse | None:
        """Returns the server's recent status; None if it does not answer, empty if it is too old to report one."""
        return await self._status.get()

    async def get_public_model(self) -> pb.Model | None:
        """Returns the first model as it may be shown to the public; None while the server cannot say."""
        return await self._public_model.get()

    async def _ask_public_model(self) -> pb.Model | None:
        try:
            models = (await self._call(self._stub.ListModels, pb.ListModelsRequest())).models
        except ApiError:
            return None
        return models[0] if models else None

    async def _ask_status(self) -> pb.GetStatusResponse | None:
        try:
            return await self._read(self._stub.GetStatus, pb.GetStatusRequest(), _STATUS_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            return pb.GetStatusResponse() if error.code() is grpc.StatusCode.UNIMPLEMENTED else None

    async def list_models(self, key: str) -> Sequence[pb.Model]:
        """Returns the models that an end user's key may use."""
        request = pb.ListModelsRequest(caller=pb.Caller(bearer_key=key))
        return (await self._call(self._stub.ListModels, request)).models

    async def get_model(self, name: str, key: str) -> pb.Model:
        """Returns one of the models that an end user's key may use."""
        request = pb.GetModelRequest(model=name, caller=pb.Caller(bearer_key=key))
        return (await self._call(self._stub.GetModel, request)).model

    async def get_usage(self, question: pb.GetUsageRequest) -> pb.GetUsageResponse:
        return await self._call(self._stub.GetUsage, question)

    async def count_tokens(self, start: pb.Start) -> pb.CountTokensResponse:
        """Tokenizes the prompt of a generation without starting it."""
        request = pb.CountTokensRequest(start=start, with_tokens=True)
        return await self._call(self._stub.CountTokens, request, _TOKENS_TIMEOUT_S)

    async def detokenize(self, model: str, token_ids: Sequence[int]) -> str:
        request = pb.DetokenizeRequest(model=model, token_ids=token_ids)
        return (await self._call(self._stub.Detokenize, request, _TOKENS_TIMEOUT_S)).text

    async def _call(
        self, method: Callable[..., Awaitable[Response]], request: Message, timeout_s: float = _CALL_TIMEOUT_S
    ) -> Response:
        try:
            return await self._read(method, request, timeout_s)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error

    async def _read(self, method: Callable[..., Awaitable[Response]], request: Message, timeout_s: float) -> Response:
        return await read(method, request, metadata=self._metadata, timeout_s=timeout_s)
