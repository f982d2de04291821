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

log = logging.getLogger(__name__)


class Listener:
    """Has a server listen at an address, over TLS if there is one."""

    def __init__(self, address: str, tls: ServerTls | None, socket_mode: int) -> None:
        self._address, self._tls = address, tls
        self._socket = SocketFile(address.removeprefix("unix:"), socket_mode) if address.startswith("unix:") else None

    def listen(self, server: aio.Server) -> str:
        """Binds the address, and returns it with the port that was chosen for port 0.

        Raises:
            OSError, RuntimeError: the address cannot be had.
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
        """Takes the file of a Unix socket away; the server itself is not stopped here."""
        if self._socket is not None:
            self._socket.remove()


def _read(tls: ServerTls) -> "grpc.ServerCertificateConfiguration":
    """What the files hold now. Raises OSError if that cannot be used."""
    cert, key = read_pair(tls.cert_file, tls.key_file)
    authorities = None if tls.client_ca_file is None else read_authorities(tls.client_ca_file)
    return grpc.ssl_server_certificate_configuration([(key, cert)], authorities)


def _rotated_credentials(tls: ServerTls) -> grpc.ServerCredentials:
    """Credentials that follow their files: gRPC asks at each handshake, from threads of its own."""
    rotated = Rotated(tls.files, partial(_read, tls))

    def changed() -> Any:  # the stubs do not know that None means the same as before
        return rotated.current if rotated.refresh() else None

    return grpc.dynamic_ssl_server_credentials(
        rotated.current, changed, require_client_authentication=tls.client_ca_file is not None
    )
