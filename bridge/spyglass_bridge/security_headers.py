"""Headers on every answer that restrict what browsers may do with it."""

from aiohttp import web

_DEFAULTS = {
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
"""For answers other than pages: browsers load and run nothing in them, and do not store them: they may be private."""
_TLS_ONLY = "max-age=31536000"


def add_security_headers(request: web.BaseRequest, response: web.StreamResponse) -> None:
    """Adds the headers that the answer does not already have."""
    for name, value in _DEFAULTS.items():
        response.headers.setdefault(name, value)
    if request.secure:
        response.headers["Strict-Transport-Security"] = _TLS_ONLY
