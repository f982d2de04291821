"""CORS: pages of which other origins may call the API in browsers. None, unless the operator names them.

Callers are known by a key in a header, and never by a cookie; so an origin that is let in can do no more than any
program that has a key.
"""

import re

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler

from spyglass_bridge.services import SERVICES

_METHODS = "GET, POST"
_MAX_AGE_S = 7200
"""The longest that browsers remember an answer for."""
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
    """Answers a browser that asks on behalf of an allowed origin, before it sends a key. All else goes on its way."""
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
    """Lets an allowed origin's page read the answer."""
    if not request.app[SERVICES].config.cors_origins:
        return
    vary = response.headers.get(hdrs.VARY)
    response.headers[hdrs.VARY] = f"{vary}, {hdrs.ORIGIN}" if vary else hdrs.ORIGIN
    if (origin := _allowed_origin(request)) is not None:
        response.headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = origin
        response.headers[hdrs.ACCESS_CONTROL_EXPOSE_HEADERS] = _EXPOSED


def _allowed_origin(request: web.Request) -> str | None:
    """What to say of the origin that asks; None where it is not allowed, or no origin asks."""
    allowed = request.app[SERVICES].config.cors_origins
    origin = request.headers.get(hdrs.ORIGIN)
    if origin is None:
        return None
    if "*" in allowed:
        return "*"
    return origin if origin in allowed else None
