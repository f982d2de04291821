"""Where the bridge listens: TCP, with or without TLS, or a Unix socket."""

import asyncio
import logging
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from aiohttp import web

from spyglass_bridge.config import BridgeConfig, Certificate, TcpAddress, UnixAddress
from spyglass_common.certificates import Rotated, load_pair
from spyglass_common.exposure import exposure_warning, is_local
from spyglass_common.unix_socket import SocketFile

_BACKLOG = 128
# How long to wait for clients that connect and then stall.
_HANDSHAKE_TIMEOUT_S = 10.0
_GOODBYE_TIMEOUT_S = 2.0

_log = logging.getLogger(__name__)


@asynccontextmanager
async def listening(runner: web.AppRunner, config: BridgeConfig) -> AsyncIterator[str]:
    """Makes a runner listen while the context is open; yields http://HOST:PORT, https://HOST:PORT or unix:PATH.

    Raises:
        OSError: the address is unavailable, or the certificate cannot be used.
    """
    address = config.http
    if isinstance(address, UnixAddress):
        file = SocketFile(address.path, config.socket_mode)
        try:
            await _Site(runner, file.bind(_bind_unix)).start()
            yield f"unix:{address.path}"
        finally:
            file.remove()
        return
    context = None if config.https is None else rotated_context(config.https)
    host = f"[{address.host}]" if ":" in address.host else address.host
    if context is None and not is_local(f"{host}:{address.port}"):
        _log.warning("%s", exposure_warning("http", f"{host}:{address.port}"))
    await _Site(runner, address, context).start()
    yield f"{'http' if context is None else 'https'}://{host}:{runner.addresses[0][1]}"


def rotated_context(certificate: Certificate) -> ssl.SSLContext:
    """Returns a context whose handshakes use the current contents of the certificate's files.

    Raises:
        OSError: the files cannot be used now.
    """
    paths = (certificate.cert_file, certificate.key_file)
    rotated = Rotated(paths, partial(_make_context, certificate))
    context = _make_context(certificate)

    def choose(connection: ssl.SSLObject | ssl.SSLSocket, name: str | None, initial: ssl.SSLContext) -> None:
        # Each pair has its own context, so that no handshake sees a half-changed one.
        rotated.refresh()
        connection.context = rotated.current

    context.sni_callback = choose  # called at each handshake, even if the client sends no name
    return context


def _make_context(certificate: Certificate) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    load_pair(context, certificate.cert_file, certificate.key_file)
    return context


def _bind_unix(path: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.bind(path)
        listener.listen(_BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


class _Site(web.BaseSite):
    """A site that bounds the time of TLS handshakes, which aiohttp's own sites do not."""

    def __init__(
        self, runner: web.AppRunner, place: TcpAddress | socket.socket, context: ssl.SSLContext | None = None
    ) -> None:
        super().__init__(runner, ssl_context=context, backlog=_BACKLOG)
        self._place, self._context = place, context

    @property
    def name(self) -> str:
        return str(self._place)

    async def start(self) -> None:
        """Starts listening."""
        await super().start()
        loop = asyncio.get_running_loop()
        server = self._runner.server
        assert server is not None
        if isinstance(self._place, socket.socket):
            self._server = await loop.create_unix_server(server, sock=self._place, backlog=_BACKLOG)
            return
        self._server = await loop.create_server(
            server,
            self._place.host,
            self._place.port,
            ssl=self._context,
            backlog=_BACKLOG,
            ssl_handshake_timeout=_HANDSHAKE_TIMEOUT_S if self._context else None,
            ssl_shutdown_timeout=_GOODBYE_TIMEOUT_S if self._context else None,
        )
