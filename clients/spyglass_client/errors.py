"""The client's exceptions, and the conversion of a server's status to one."""

import copy
from typing import ClassVar, Self

import grpc
from google.rpc import status_pb2

from spyglass_client.answer import Usage
from spyglass_common.status import read_details, status_of


class SpyglassError(Exception):
    """A failed request.

    `code` is the canonical code. `reason` is a short machine-readable word from the server, and `field`
    the path of the field at fault, such as `sampling.temperature`; both are None if the server named
    none. `retry_after_s` is the server's advice on when to retry, in seconds. `request_id` names the
    generation in the server's log and ledger. `usage` is a metered generation's usage up to the failure.
    """

    default_code: ClassVar[grpc.StatusCode] = grpc.StatusCode.UNKNOWN

    def __init__(
        self,
        message: str,
        *,
        code: grpc.StatusCode | None = None,
        reason: str | None = None,
        field: str | None = None,
        retry_after_s: float | None = None,
        request_id: str | None = None,
        usage: Usage | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or self.default_code
        self.reason = reason
        self.field = field
        self.retry_after_s = retry_after_s
        self.request_id = request_id
        self.usage = usage

    def about(self, request_id: str) -> Self:
        """Returns a copy for one of several generations that failed together."""
        error = copy.copy(self)
        error.request_id = request_id
        return error


class InvalidRequestError(SpyglassError):
    """The server cannot do what was asked; `field` often names the field at fault."""

    default_code = grpc.StatusCode.INVALID_ARGUMENT


class AuthenticationError(SpyglassError):
    """The API key is missing or wrong."""

    default_code = grpc.StatusCode.UNAUTHENTICATED


class PermissionDeniedError(SpyglassError):
    """The API key is known, but may not do this."""

    default_code = grpc.StatusCode.PERMISSION_DENIED


class NotFoundError(SpyglassError):
    """There is no such model."""

    default_code = grpc.StatusCode.NOT_FOUND


class RateLimitedError(SpyglassError):
    """The queue is full or a limit is reached; `retry_after_s` says when to retry."""

    default_code = grpc.StatusCode.RESOURCE_EXHAUSTED


class UnavailableError(SpyglassError):
    """The server cannot be reached, is stopping, or lost the generation. Retrying may help."""

    default_code = grpc.StatusCode.UNAVAILABLE


class DeadlineError(SpyglassError):
    """The time limit was exceeded."""

    default_code = grpc.StatusCode.DEADLINE_EXCEEDED


class CancelledByServerError(SpyglassError):
    """The generation was cancelled, but not by this client's `cancel`."""

    default_code = grpc.StatusCode.CANCELLED


class InternalError(SpyglassError):
    """An internal server error; only the server's log has details."""

    default_code = grpc.StatusCode.INTERNAL


class ClientClosedError(SpyglassError):
    """The client was closed while the generation ran."""

    default_code = grpc.StatusCode.CANCELLED


RpcError = grpc.aio.AioRpcError | grpc.Call
"""A failed call, on either kind of channel."""

_CODES = {code.value[0]: code for code in grpc.StatusCode}

_ERRORS: dict[grpc.StatusCode, type[SpyglassError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequestError,
    grpc.StatusCode.OUT_OF_RANGE: InvalidRequestError,
    grpc.StatusCode.FAILED_PRECONDITION: InvalidRequestError,
    grpc.StatusCode.ALREADY_EXISTS: InvalidRequestError,
    grpc.StatusCode.UNIMPLEMENTED: InvalidRequestError,
    grpc.StatusCode.UNAUTHENTICATED: AuthenticationError,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDeniedError,
    grpc.StatusCode.NOT_FOUND: NotFoundError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: RateLimitedError,
    grpc.StatusCode.UNAVAILABLE: UnavailableError,
    grpc.StatusCode.ABORTED: UnavailableError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineError,
    grpc.StatusCode.CANCELLED: CancelledByServerError,
}


def from_status(status: status_pb2.Status, request_id: str | None = None, usage: Usage | None = None) -> SpyglassError:
    """Converts a server's status, with its details, to an exception."""
    code = _CODES.get(status.code, grpc.StatusCode.UNKNOWN)
    details = read_details(status)
    return _ERRORS.get(code, InternalError)(
        status.message or code.name,
        code=code,
        reason=details.reason,
        field=details.field,
        retry_after_s=details.retry_after_s,
        request_id=request_id,
        usage=usage,
    )


def from_rpc_error(error: RpcError, target: str) -> SpyglassError:
    """Converts the failure of a whole call to `target` to an exception.

    A failure that gRPC itself reports, such as a refused connection, names the target.
    """
    if (status := status_of(error)) is not None:
        return from_status(status)
    code = error.code()
    message = error.details() or code.name
    if code is grpc.StatusCode.UNAVAILABLE:
        message = f"no connection to {target}: {message}"
    return from_status(status_pb2.Status(code=code.value[0], message=message))


def lost_status(error: grpc.aio.AioRpcError) -> bool:
    """Whether gRPC reports a failed write instead of the status with which the server ended the call.

    This can happen when the server ends a stream that the client is writing to (grpc issue 36066).
    """
    return error.code() is grpc.StatusCode.INTERNAL and error.details() == "Internal error from Core"
