"""The interceptor around every call: authenticates the caller and translates exceptions into statuses.

It handles unary and streaming calls alike. Health and reflection need no key; everything else does.
"""

import contextvars
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any, NoReturn

import grpc
from google.protobuf.message import DecodeError
from grpc import aio

from spyglass_common.status import STATUS_METADATA_KEY
from spyglass_server.auth import ApiKey, KeyStore, Scope, identify
from spyglass_server.codec.checks import nothing_unknown
from spyglass_server.errors import Forbidden, InvalidRequest, SpyglassError, to_status

log = logging.getLogger(__name__)

_OPEN_SERVICES = ("/grpc.health.", "/grpc.reflection.")
_ADMIN_SERVICE = "/spyglass.v1.AdminService/"
_caller: contextvars.ContextVar[ApiKey] = contextvars.ContextVar("caller")

if TYPE_CHECKING:  # generic only in the stubs
    Handler = grpc.RpcMethodHandler[Any, Any]
    Context = aio.ServicerContext[Any, Any]
    Behaviour = Callable[[Any, Context], Awaitable[Any]]


def caller() -> ApiKey:
    """The API key of the call that is being handled."""
    return _caller.get()


class Boundary(aio.ServerInterceptor):
    """Wraps every handler of the server's own services."""

    def __init__(self, keys: KeyStore) -> None:
        self._keys = keys

    async def intercept_service(
        self,
        continuation: "Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]]",
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "Handler | None":
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or method.startswith(_OPEN_SERVICES):
            return handler
        authorization = dict(handler_call_details.invocation_metadata).get("authorization")
        make, behaviour = _shape(handler)
        is_admins = method.startswith(_ADMIN_SERVICE)
        guard = self._guard(behaviour, authorization, _parser(handler, is_strict=is_admins), needs_admin=is_admins)
        guarded: Handler = make(guard, response_serializer=handler.response_serializer)
        return guarded

    def _guard(
        self, behaviour: "Behaviour", authorization: Any, parse: Callable[[Any], Any], *, needs_admin: bool
    ) -> "Behaviour":
        async def guarded(request: Any, context: "Context") -> Any:
            try:
                key = identify(self._keys, authorization if isinstance(authorization, str) else None)
                if needs_admin and Scope.ADMIN not in key.scopes:
                    raise Forbidden("this needs a key with the scope admin")
                _caller.set(key)
                return await behaviour(parse(request), context)  # only authenticated requests are parsed
            except (aio.AbortError, grpc.RpcError):
                raise
            except Exception as error:
                if not isinstance(error, SpyglassError):
                    log.exception("a call failed")
                await _abort(context, error)

        return guarded


def _parser(handler: Any, *, is_strict: bool) -> Callable[[Any], Any]:
    """Parses a call's request, or each message of its stream; bytes that do not parse are the caller's fault.

    `is_strict` refuses fields of a later version, which could be a key's limits.
    """

    def parse(data: bytes) -> Any:
        try:
            return handler.request_deserializer(data)
        except DecodeError as error:
            raise InvalidRequest("a message does not follow the protocol") from error

    def parse_request(data: bytes) -> Any:
        request = parse(data)
        if is_strict:
            nothing_unknown(request)
        return request

    async def parse_stream(messages: AsyncIterator[bytes]) -> AsyncIterator[Any]:
        async for message in messages:
            yield parse(message)

    return parse_stream if handler.request_streaming else parse_request


def _shape(handler: Any) -> "tuple[Callable[..., Any], Behaviour]":
    if handler.request_streaming and handler.response_streaming:
        return grpc.stream_stream_rpc_method_handler, handler.stream_stream
    assert handler.unary_unary, "a call of a shape that is not used here"
    return grpc.unary_unary_rpc_method_handler, handler.unary_unary


async def _abort(context: "Context", error: Exception) -> NoReturn:
    status = to_status(error)
    code = next(code for code in grpc.StatusCode if code.value[0] == status.code)
    metadata = ((STATUS_METADATA_KEY, status.SerializeToString()),)
    await context.abort(code, status.message, trailing_metadata=metadata)
