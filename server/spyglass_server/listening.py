"""Where the gRPC server listens: TCP, with or without TLS, or a Unix socket."""

import logging
from functools import partial
from typing import Any

import grpc
from grpc import aio

from spyglass_common.certificates import Rotated, read_authorities, read_pair
from spyglass_common.exposure import exposure_warning, is_local
from spyglass_common.unix_socket import SocketFile
from spyglass_server.config import ServerTls

_MIN_STREAMS = 256

log = logging.getLogger(__name__)


def connection_limits(max_pending: int) -> tuple[tuple[str, int], ...]:
    """Limits per connection, as gRPC options.

    Without the first, thousands of streams that are opened and reset wait at once to be noticed here, and gRPC then
    silently drops other clients' calls. Reset streams count until they are noticed; gRPC itself refuses streams beyond
    the limit. benchmarks/http2_floods.py sends such floods.
    """
    return (
        ("grpc.max_concurrent_streams", max(_MIN_STREAMS, max_pending)),
        ("grpc.server_handshake_timeout_ms", 10_000),  # default 120 s, for clients that connect and send nothing
        ("grpc.max_metadata_size", 8 << 10),
        ("grpc.absolute_max_metadata_size", 16 << 10),
        ("grpc.http2.max_ping_strikes", 2),  # for pings that come sooner than the minimum interval
    )


class Listener:
    """Binds a server to an address, with TLS if configured."""

    def __init__(self, address: str, tls: ServerTls | None, socket_mode: int) -> None:
        self._address, self._tls = address, tls
        self._socket = SocketFile(address.removeprefix("unix:"), socket_mode) if address.startswith("unix:") else None

    def listen(self, server: aio.Server) -> str:
        """Binds the address and returns it, with the port that was chosen for port 0.

        Raises:
            OSError, RuntimeError: the address is unavailable.
            OSError: the certificate cannot be used.
        """
        if self._socket is not None:
            self._socket.bind(lambda path: server.add_insecure_port(f"unix:{path}"))
            return self._address
        if self._tls is None:
            if not is_local(self._address):
                log.warning("%s", exposure_warning("grpc", self._address))
            port = server.add_insecure_port(self._address)
        else:
            port = server.add_secure_port(self._address, _rotated_credentials(self._tls))
        return f"{self._address.rpartition(':')[0]}:{port}"

    def close(self) -> None:
        """Removes the file of a Unix socket; does not stop the server."""
        if self._socket is not None:
            self._socket.remove()


def _read(tls: ServerTls) -> "grpc.ServerCertificateConfiguration":
    """Reads the files' current content. Raises OSError if it cannot be used."""
    cert, key = read_pair(tls.cert_file, tls.key_file)
    authorities = None if tls.client_ca_file is None else read_authorities(tls.client_ca_file)
    return grpc.ssl_server_certificate_configuration([(key, cert)], authorities)


def _rotated_credentials(tls: ServerTls) -> grpc.ServerCredentials:
    """Returns credentials that follow their files: gRPC asks for them at each handshake, from its own threads."""
    rotated = Rotated(tls.files, partial(_read, tls))

    def changed() -> Any:  # the stubs do not know that None means unchanged
        return rotated.current if rotated.refresh() else None

    return grpc.dynamic_ssl_server_credentials(
        rotated.current, changed, require_client_authentication=tls.client_ca_file is not None
    )
