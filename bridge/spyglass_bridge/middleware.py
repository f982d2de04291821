"""Middleware around every handler: request ids, keys, draining and errors."""

import asyncio
import logging
import re
import time
import uuid
from contextlib import ExitStack

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler

from spyglass_bridge.access import bearer_key
from spyglass_bridge.body import HeldBytes
from spyglass_bridge.cors import add_cors_headers
from spyglass_bridge.errors import ApiError, internal_error
from spyglass_bridge.openai.serialization import compact_json
from spyglass_bridge.rate_limits import rate_limit_headers
from spyglass_bridge.routes.table import OPEN_PATHS, UNLOGGED_PATHS
from spyglass_bridge.security_headers import add_security_headers
from spyglass_bridge.services import (
    CALLER_KEY,
    HELD_BYTES,
    RATE_LIMITS,
    REQUEST_ID,
    SERVICES,
    STREAM_ERROR,
    TENANT,
    TRACEPARENT,
)
from spyglass_bridge.tracing import end_span, request_span
from spyglass_common.logs import fields

_LEFT = "left"
"""Used instead of a status if the client disconnected before there was one."""
_NO_ROUTE = "none"
_MAX_HEADER_BYTES = 32 << 10
_SANE_REQUEST_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")

_log = logging.getLogger(__name__)


@web.middleware
async def name_request(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Assigns the request its id, which the caller may choose, and counts, traces and logs its outcome."""
    given = request.headers.get("x-request-id", "")
    request_id = given if _SANE_REQUEST_ID.fullmatch(given) else f"req-{uuid.uuid4().hex}"
    request[REQUEST_ID] = request_id
    services, is_quiet = request.app[SERVICES], _is_one_of(request, UNLOGGED_PATHS)
    resource = request.match_info.route.resource
    route = _NO_ROUTE if resource is None else resource.canonical
    began_s = time.monotonic()
    status: int | None = None
    with ExitStack() as stack:
        span = None
        if services.tracer is not None and not is_quiet:
            span = stack.enter_context(request_span(services.tracer, request, route))
        try:
            response = await handler(request)
            status = response.status
            return response
        finally:
            took_s = time.monotonic() - began_s
            failure = request.get(STREAM_ERROR)
            services.metrics.ended(route, str(failure or status or _LEFT), took_s)
            if span is not None:
                end_span(span, status, failure)
            if not is_quiet:
                _log.info(
                    "request ended",
                    extra=fields(
                        request_id=request_id,
                        trace_id=request.get(TRACEPARENT, "")[3:35] or None,
                        method=request.method,
                        path=request.path,
                        status=status or _LEFT,
                        then=failure,
                        took_ms=round(1e3 * took_s, 1),
                    ),
                )


async def finish_headers(request: web.Request, response: web.StreamResponse) -> None:
    """A signal handler: adds the request's id and headers for browsers to any answer, and hides versions.

    An answer with neither a length nor chunks, such as a stream to an HTTP/1.0 client, ends with its connection even
    if the client asked to keep it alive; aiohttp would leave it open.
    """
    if hdrs.CONTENT_LENGTH not in response.headers and hdrs.TRANSFER_ENCODING not in response.headers:
        response.force_close()
    response.headers[hdrs.SERVER] = "spyglass"
    if request_id := request.get(REQUEST_ID):
        response.headers["x-request-id"] = request_id
    if rate_limits := request.get(RATE_LIMITS):
        response.headers.update(rate_limit_headers(rate_limits))
    add_security_headers(request, response)
    add_cors_headers(request, response)


@web.middleware
async def answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turns exceptions into OpenAI's error bodies. Unexpected ones are logged and hidden from the caller."""
    try:
        return await handler(request)
    except ApiError as error:
        return error_response(request, error)
    except web.HTTPException as error:
        response = error_response(request, _http_error(request, error))
        if allow := error.headers.get(hdrs.ALLOW):
            response.headers[hdrs.ALLOW] = allow
        return response
    except asyncio.CancelledError:
        raise
    except ConnectionResetError:
        raise
    except Exception:
        _log.exception("%s failed", request[REQUEST_ID])
        return error_response(request, internal_error())


@web.middleware
async def admit_caller(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Admits only known keys, before reading any of the body, and no callers once the bridge is draining."""
    if sum(len(name) + len(value) for name, value in request.raw_headers) > _MAX_HEADER_BYTES:
        raise ApiError(431, f"The headers are larger than {_MAX_HEADER_BYTES} bytes.", code="headers_too_large")
    if _is_one_of(request, OPEN_PATHS):
        return await handler(request)
    services = request.app[SERVICES]
    with services.drain.call():
        key = bearer_key(request.headers.getall(hdrs.AUTHORIZATION, []))
        request[TENANT] = await services.access.check(key)
        request[CALLER_KEY] = key
        request[HELD_BYTES] = held = HeldBytes(services.pending, request[TENANT])
        try:
            return await handler(request)
        finally:
            held.release()


def _is_one_of(request: web.Request, paths: frozenset[str]) -> bool:
    """Whether the request's path, or its route's pattern, is among these."""
    resource = request.match_info.route.resource
    return request.path in paths or (resource is not None and resource.canonical in paths)


def error_response(request: web.BaseRequest, error: ApiError) -> web.Response:
    """Returns OpenAI's error body; closes the connection if the request's body was not read to its end."""
    response = web.Response(
        status=error.http_status, text=compact_json(error.body), content_type="application/json", headers=error.headers
    )
    if not request.content.at_eof():
        response.force_close()
    return response


def _http_error(request: web.Request, error: web.HTTPException) -> ApiError:
    if error.status == 404:
        return ApiError(404, "There is no such route.", code="not_found")
    if error.status == 405:
        return ApiError(405, f"This route does not take {request.method}.", code="method_not_allowed")
    return ApiError(error.status, error.reason, code="invalid_request")
