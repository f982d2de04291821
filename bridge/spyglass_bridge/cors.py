"""CORS: which other origins' pages may call the API from browsers. None, unless the operator names them.

Callers authenticate with a key in a header, never with a cookie, so an allowed origin can do no more than any program
that has a key.
"""

import re

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler

from spyglass_bridge.services import SERVICES

_METHODS = "GET, POST"
_MAX_AGE_S = 7200
"""The longest that browsers cache an answer."""
_USUAL_HEADERS = "Authorization, Content-Type"
_MAX_HEADERS_CHARACTERS = 2048
_HEADER_NAMES = re.compile(r"[\w!#$%&'*+.^`|~-]+( *, *[\w!#$%&'*+.^`|~-]+)*", re.ASCII)
_EXPOSED = ", ".join(
    (
        "x-request-id",
        "retry-after",
        *(f"x-ratelimit-{what}-{of}" for of in ("requests", "tokens") for what in ("limit", "remaining", "reset")),
        "x-should-retry",
    )
)


@web.middleware
async def answer_preflight(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answers preflight requests from allowed origins, which carry no key yet. Passes everything else on."""
    asks = request.method == hdrs.METH_OPTIONS and hdrs.ACCESS_CONTROL_REQUEST_METHOD in request.headers
    if not asks or _allowed_origin(request) is None:
        return await handler(request)
    wanted = request.headers.get(hdrs.ACCESS_CONTROL_REQUEST_HEADERS, "")
    is_sane = len(wanted) <= _MAX_HEADERS_CHARACTERS and _HEADER_NAMES.fullmatch(wanted)
    headers = {
        hdrs.ACCESS_CONTROL_ALLOW_METHODS: _METHODS,
        hdrs.ACCESS_CONTROL_ALLOW_HEADERS: wanted if is_sane else _USUAL_HEADERS,  # SDKs send some of their own
        hdrs.ACCESS_CONTROL_MAX_AGE: str(_MAX_AGE_S),
    }
    return web.Response(status=204, headers=headers)


def add_cors_headers(request: web.Request, response: web.StreamResponse) -> None:
    """Permits an allowed origin's page to read the answer."""
    if not request.app[SERVICES].config.cors_origins:
        return
    vary = response.headers.get(hdrs.VARY)
    response.headers[hdrs.VARY] = f"{vary}, {hdrs.ORIGIN}" if vary else hdrs.ORIGIN
    if (origin := _allowed_origin(request)) is not None:
        response.headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = origin
        response.headers[hdrs.ACCESS_CONTROL_EXPOSE_HEADERS] = _EXPOSED


def _allowed_origin(request: web.Request) -> str | None:
    """Returns the value of Access-Control-Allow-Origin; None if the origin is not allowed or absent."""
    allowed = request.app[SERVICES].config.cors_origins
    origin = request.headers.get(hdrs.ORIGIN)
    if origin is None:
        return None
    if "*" in allowed:
        return "*"
    return origin if origin in allowed else None
