"""Errors with the codes that callers see, and their one translation to google.rpc.Status.

An unexpected error reveals nothing to the caller; the code that catches it logs it in full.
"""

import asyncio
import math
from typing import ClassVar

import grpc
from google.rpc import status_pb2

from spyglass_common.rate_limits import RateLimits
from spyglass_common.status import make_status

_MAX_MESSAGE_CHARACTERS = 500
"""Messages may quote a request, but must fit into a frame and into gRPC's trailing metadata."""


class SpyglassError(Exception):
    """A refusal or failure that a caller may know about; the text is for the caller.

    `field` is the path of the field at fault, `reason` a word for programs.
    """

    code: ClassVar[grpc.StatusCode] = grpc.StatusCode.INTERNAL
    default_reason: ClassVar[str] = "internal_error"

    def __init__(
        self, message: str, *, field: str | None = None, reason: str | None = None, retry_after_s: float | None = None
    ) -> None:
        self.message = message[:_MAX_MESSAGE_CHARACTERS]
        super().__init__(self.message)
        self.field = field
        self.reason = reason or self.default_reason
        self.retry_after_s = retry_after_s


class InvalidRequest(SpyglassError):
    """The request itself is wrong."""

    code = grpc.StatusCode.INVALID_ARGUMENT
    default_reason = "invalid_request"


class Unsupported(InvalidRequest):
    """The request uses a field that is not supported yet."""

    default_reason = "unsupported_parameter"

    def __init__(self, field: str) -> None:
        super().__init__(f"{field} is not supported yet", field=field)


class InvalidImage(InvalidRequest):
    """An image cannot be used."""

    default_reason = "invalid_image"


class ContextTooLong(InvalidRequest):
    """The prompt leaves no room in the context. Clients recognise this by OpenAI's wording, hence the text."""

    default_reason = "context_length_exceeded"

    def __init__(self, max_tokens: int, length: str, field: str) -> None:
        """`length` says how many tokens the prompt has."""
        super().__init__(
            f"This model's maximum context length is {max_tokens} tokens. However, the prompt has {length}, "
            "and an answer needs at least 1. Please shorten the prompt.",
            field=field,
        )


class NotFound(SpyglassError):
    """The requested object does not exist."""

    code = grpc.StatusCode.NOT_FOUND
    default_reason = "not_found"


class ModelNotFound(NotFound):
    """No model of this name is served to this caller."""

    default_reason = "model_not_found"


class Unauthenticated(SpyglassError):
    """The call has no valid key. The text is always the same, so that it reveals nothing."""

    code = grpc.StatusCode.UNAUTHENTICATED
    default_reason = "invalid_api_key"

    def __init__(self) -> None:
        super().__init__("a valid API key is needed: authorization: Bearer KEY")


class Forbidden(SpyglassError):
    """The key is valid, but does not permit this."""

    code = grpc.StatusCode.PERMISSION_DENIED
    default_reason = "permission_denied"


class Conflict(SpyglassError):
    """The request contradicts an earlier one."""

    code = grpc.StatusCode.ALREADY_EXISTS
    default_reason = "conflict"


class TooManyRequests(SpyglassError):
    """The queue is full."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    default_reason = "too_many_requests"


class RateLimited(TooManyRequests):
    """The caller's key has reached a per-minute or concurrency limit."""

    default_reason = "rate_limit_exceeded"

    def __init__(self, message: str, *, retry_after_s: float, rate_limits: RateLimits) -> None:
        super().__init__(message, retry_after_s=retry_after_s)
        self.rate_limits = rate_limits


class BudgetSpent(TooManyRequests):
    """The caller's key has too little budget left for this."""

    default_reason = "insufficient_quota"


class Cancelled(SpyglassError):
    """The caller cancelled."""

    code = grpc.StatusCode.CANCELLED
    default_reason = "cancelled"


class DeadlineExceeded(SpyglassError):
    """The generation exceeded its time limit."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED
    default_reason = "timeout"


class Unavailable(SpyglassError):
    """The server cannot serve this now; a retry may succeed."""

    code = grpc.StatusCode.UNAVAILABLE
    default_reason = "server_draining"


def going_down() -> Unavailable:
    """The error that callers get when the server stops."""
    return Unavailable("the server is going down", retry_after_s=1.0)


def as_known(problem: BaseException) -> SpyglassError:
    """Maps an exception to the error that callers and records see; unexpected ones become an internal error."""
    if isinstance(problem, SpyglassError):
        return problem
    if isinstance(problem, asyncio.CancelledError):
        return Cancelled("the call ended")
    return SpyglassError("internal error")


def to_status(problem: BaseException) -> status_pb2.Status:
    """Converts an error to the status sent to the caller."""
    error = as_known(problem)
    retry_after_s = None if error.retry_after_s is None else math.ceil(error.retry_after_s)
    return make_status(
        error.code.value[0],
        error.message,
        reason=error.reason,
        field=error.field,
        retry_after_s=retry_after_s,
        rate_limits=error.rate_limits if isinstance(error, RateLimited) else None,
    )
