"""Headers with which every answer tells browsers what they must not do with it."""

from aiohttp import web

_DEFAULTS = {
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
"""For what is no page: nothing in it is loaded or run, and it is kept nowhere, since it may be a caller's own."""
_TLS_ONLY = "max-age=31536000"


def add_security_headers(request: web.BaseRequest, response: web.StreamResponse) -> None:
    """Adds those that the answer does not have by itself."""
    for name, value in _DEFAULTS.items():
        response.headers.setdefault(name, value)
    if request.secure:
        response.headers["Strict-Transport-Security"] = _TLS_ONLY
