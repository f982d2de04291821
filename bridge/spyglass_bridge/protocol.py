"""Handles connections whose HTTP is too malformed to become a request.

aiohttp answers such a connection with plain text and logs a traceback. Here it gets OpenAI's error body, and the log
gets one line. This is the only module that uses aiohttp's undocumented internals.
"""

import logging

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from spyglass_bridge.errors import ApiError
from spyglass_bridge.middleware import error_response
from spyglass_bridge.security_headers import add_security_headers

_log = logging.getLogger(__name__)


class BridgeRunner(web.AppRunner):
    """An AppRunner that answers even malformed HTTP with JSON."""

    async def _make_server(self) -> web.Server:
        plain = await super()._make_server()
        return _Server(
            plain.request_handler,
            request_factory=plain.request_factory,
            handler_cancellation=plain.handler_cancellation,
            **plain._kwargs,
        )


class _Server(web.Server):
    def __call__(self) -> RequestHandler:
        return _Protocol(self, loop=self._loop, **self._kwargs)


class _Protocol(RequestHandler):
    __slots__ = ()

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        """Answers input that the parser refused and closes the connection, on which no answer has been started."""
        _log.info("bad HTTP from %s: %r", request.remote, exc)
        if request.writer.output_size > 0:
            raise ConnectionError("an answer has already started")
        error = ApiError(status, "The request is not valid HTTP.", code="invalid_http")
        response = error_response(request, error)
        add_security_headers(request, response)
        response.force_close()
        return response
