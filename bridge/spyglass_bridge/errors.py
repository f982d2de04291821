"""The bridge's errors, and the only place where a server status becomes an HTTP error."""

import math
import re
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any

import grpc
from google.rpc import code_pb2, status_pb2

from spyglass_bridge.rate_limits import rate_limit_headers
from spyglass_common.rate_limits import RateLimits
from spyglass_common.status import read_details, status_of


class ApiError(Exception):
    """An error as a client of the HTTP API sees it.

    `param` is the path of the field at fault, such as `messages[0].content`. `retry_after_s` becomes a Retry-After
    header.
    """

    def __init__(
        self,
        http_status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        kind: str | None = None,
        retry_after_s: int | None = None,
        rate_limits: RateLimits | None = None,
    ) -> None:
        super().__init__(message)
        self.http_status = http_status
        self.message = message
        self.code = code
        self.param = param
        self.kind = kind or _kind(http_status, code)
        self.retry_after_s = retry_after_s
        self.rate_limits = rate_limits

    @property
    def body(self) -> dict[str, Any]:
        """OpenAI's error object."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        headers = rate_limit_headers(self.rate_limits)
        if self.retry_after_s is not None:
            headers["Retry-After"] = str(self.retry_after_s)
        if self.http_status == 504 or self.code == _NO_MONEY:
            headers["x-should-retry"] = "false"
        return headers


def invalid(message: str, param: str | None = None, code: str = "invalid_request") -> ApiError:
    """A fault in the request: 400."""
    return ApiError(400, message, code=code, param=param)


def unsupported(param: str, what: str | None = None) -> ApiError:
    """A feature of OpenAI's API that this server does not support yet: 400."""
    message = f"{what or param} is not supported by this server yet."
    return ApiError(400, message, code="unsupported_parameter", param=param)


def invalid_api_key() -> ApiError:
    """The same 401 for a missing, malformed or wrong key, so that strangers learn nothing."""
    return ApiError(401, "The API key is missing or wrong. Send it as: Authorization: Bearer KEY", code=_INVALID_KEY)


def server_unavailable() -> ApiError:
    """The model server does not answer: 503."""
    return from_status(status_pb2.Status(code=code_pb2.UNAVAILABLE))


def internal_error() -> ApiError:
    """An opaque 500; the details are in the log."""
    return ApiError(500, _ANSWERS[code_pb2.INTERNAL].message, code="internal_error")


def from_status(status: status_pb2.Status) -> ApiError:
    """Translates a server status, including field names in its message.

    The message is passed on only if an ErrorInfo of our domain marks it as meant for people; gRPC's own messages may
    contain addresses.
    """
    answer = _ANSWERS.get(status.code, _ANSWERS[code_pb2.INTERNAL])
    details = read_details(status)
    if answer.http_status == 401:
        return invalid_api_key()
    message = status.message if details.reason and answer.http_status != 500 else ""
    param = http_name(details.field) if details.field else None
    if details.field and param:
        message = re.sub(rf"(?<!\w){re.escape(details.field)}(?!\w)", lambda match: param, message)
    return ApiError(
        answer.http_status,
        message or answer.message,
        code=details.reason or answer.code,
        param=param,
        retry_after_s=max(1, math.ceil(details.retry_after_s or 0)) if answer.retry else None,
        rate_limits=details.rate_limits,
    )


def from_rpc_error(error: grpc.aio.AioRpcError) -> ApiError:
    """Translates the failure of a whole call."""
    code: int = error.code().value[0]
    return from_status(status_of(error) or status_pb2.Status(code=code, message=error.details() or ""))


def http_name(field: str) -> str:
    """Returns the HTTP name of a field of Start; a field without one keeps its name."""
    for pattern, name in _FIELD_NAMES:
        if pattern.fullmatch(field):
            return pattern.sub(name, field)
    return field


_INVALID_KEY = "invalid_api_key"
_NO_MONEY = "insufficient_quota"

_FIELD_NAMES = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        (r"chat\.(messages\[\d+\])\.parts(\[\d+\])\.image(\..*)?", r"\1.content\2.image_url.url"),
        (r"chat\.(messages\[\d+\])\.parts(\[\d+\])(\.text)?", r"\1.content\2\3"),
        (r"chat\.(messages\[\d+\])\.parts", r"\1.content"),
        (r"chat\.(messages\[\d+\]\.tool_calls\[\d+\])\.(id)", r"\1.\2"),
        (r"chat\.(messages\[\d+\]\.tool_calls\[\d+\])\.(name)", r"\1.function.\2"),
        (r"chat\.(messages\[\d+\]\.tool_calls\[\d+\])\.arguments_json", r"\1.function.arguments"),
        (r"chat\.(tools\[\d+\])\.parameters_json", r"\1.function.parameters"),
        (r"chat\.(tools\[\d+\])\.name", r"\1.function.name"),
        (r"chat\.tool_choice\.name", r"tool_choice.function.name"),
        (r"chat\.tool_choice\.mode", r"tool_choice"),
        (r"chat\.((messages|tools|tool_choice).*)", r"\1"),
        (r"text|tokens\.ids", r"prompt"),
        (r"token_ids", r"tokens"),
        (r"stopping\.strings(\[\d+\])?", r"stop\1"),
        (r"(?:sampling|stopping|output)\.(\w+.*)", r"\1"),
        (r"format\.json_schema\.schema_json", r"response_format.json_schema.schema"),
        (r"format\.regex", r"response_format.regex"),
        (r"format(\..*)?", r"response_format"),
    )
)


def _kind(http_status: int, code: str | None) -> str:
    if code == _NO_MONEY:
        return code
    if http_status == 429:
        return "rate_limit_error"
    return "server_error" if http_status >= 500 else "invalid_request_error"


@dataclass(frozen=True, slots=True)
class _Answer:
    """What a canonical code becomes when the status has no details."""

    http_status: int
    code: str
    message: str
    _: KW_ONLY
    retry: bool = False


_ANSWERS: Mapping[int, _Answer] = {
    code_pb2.INVALID_ARGUMENT: _Answer(400, "invalid_request", "The request is not valid."),
    code_pb2.FAILED_PRECONDITION: _Answer(400, "invalid_request", "The request cannot be served as things are."),
    code_pb2.OUT_OF_RANGE: _Answer(400, "invalid_request", "A value is out of range."),
    code_pb2.UNIMPLEMENTED: _Answer(400, "unsupported_parameter", "The server does not support this yet."),
    code_pb2.UNAUTHENTICATED: _Answer(401, _INVALID_KEY, ""),
    code_pb2.PERMISSION_DENIED: _Answer(403, "permission_denied", "This key may not do that."),
    code_pb2.NOT_FOUND: _Answer(404, "model_not_found", "There is no such model."),
    code_pb2.ALREADY_EXISTS: _Answer(409, "conflict", "There is one already."),
    code_pb2.ABORTED: _Answer(409, "conflict", "The request was in the way of another."),
    code_pb2.RESOURCE_EXHAUSTED: _Answer(429, "too_many_requests", "Too many requests.", retry=True),
    code_pb2.CANCELLED: _Answer(503, "cancelled", "The server cancelled the generation.", retry=True),
    code_pb2.UNAVAILABLE: _Answer(503, "server_unavailable", "The model server is not available.", retry=True),
    code_pb2.DEADLINE_EXCEEDED: _Answer(504, "timeout", "The generation took too long."),
    code_pb2.INTERNAL: _Answer(500, "internal_error", "Something went wrong inside the server."),
}
