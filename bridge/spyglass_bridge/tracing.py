"""A span for each HTTP request, under the parent that the caller names in its `traceparent` header."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from aiohttp import web

from spyglass_bridge.services import TRACEPARENT

if TYPE_CHECKING:
    from opentelemetry.trace import Span, Tracer

_HEADER = "traceparent"


@contextmanager
def request_span(tracer: "Tracer", request: web.Request, route: str) -> Iterator["Span"]:
    """Opens a span for the duration of the context; the request's TRACEPARENT identifies it to the server."""
    from opentelemetry import trace
    from opentelemetry.trace import SpanKind
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    propagator = TraceContextTextMapPropagator()
    attributes = {"http.request.method": request.method, "http.route": route}
    given = request.headers.getall(_HEADER, [])
    caller = propagator.extract({_HEADER: given[0]} if len(given) == 1 else {})
    span = tracer.start_span(f"{request.method} {route}", caller, SpanKind.SERVER, attributes)
    carrier: dict[str, str] = {}
    propagator.inject(carrier, trace.set_span_in_context(span))
    request[TRACEPARENT] = carrier.get(_HEADER, "")
    try:
        yield span
    finally:
        span.end()


def end_span(span: "Span", status: int | None, failure: int | None) -> None:
    """Records an answer's status, None if the client disconnected first, and that of an error in its stream."""
    from opentelemetry.trace import StatusCode

    if status is not None:
        span.set_attribute("http.response.status_code", status)
    problem = failure or status
    if problem is None or problem >= 500:
        span.set_attribute("error.type", "client_left" if problem is None else str(problem))
        span.set_status(StatusCode.ERROR)
