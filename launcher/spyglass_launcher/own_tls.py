"""How `spyglass serve` and its bridge call their own server over TLS.

They call it on this machine, but its certificate has the name that other clients use. So unless the settings say more,
they trust exactly that certificate, under the name in it.
"""

import argparse
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spyglass_common.certificates import CertificateError, load_pair
from spyglass_common.tls import Tls

SERVER_TLS = ("grpc_tls_cert", "grpc_tls_key", "grpc_tls_client_ca")


def with_own_tls(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings, completed with what the bridge needs to call the server.

    Raises:
        argparse.ArgumentError: the server requires a certificate that the bridge lacks, or has none itself.
        OSError: the server's certificate cannot be used.
    """
    settings = dict(settings)
    cert = settings["grpc_tls_cert"]
    if not cert:
        if settings["grpc_ca"]:
            raise argparse.ArgumentError(None, "--grpc-ca: serve's own server has no TLS without --grpc-tls-cert")
        return settings
    if not settings["grpc_tls_key"]:
        raise argparse.ArgumentError(None, "--grpc-tls-cert needs --grpc-tls-key")
    if settings["grpc_tls_client_ca"] and not settings["grpc_client_cert"]:
        message = "--grpc-tls-client-ca: the bridge needs a certificate too: --grpc-client-cert and --grpc-client-key"
        raise argparse.ArgumentError(None, message)
    if not settings["grpc_ca"]:
        settings["grpc_ca"] = str(Path(cert).expanduser().absolute())
    if not settings["grpc_server_name"]:
        settings["grpc_server_name"] = name_in(Path(cert).expanduser(), Path(settings["grpc_tls_key"]).expanduser())
    return settings


def tls_of_settings(settings: Mapping[str, Any]) -> Tls | None:
    """TLS for calls to the server by the bridge and by probes. Raises ValueError if the settings are inconsistent."""
    names = ("grpc_ca", "grpc_client_cert", "grpc_client_key", "grpc_server_name")
    return Tls.from_settings(*(settings[name] for name in names))


def name_in(cert: Path, key: Path) -> str:
    """Returns a name or address that a certificate is for. Raises OSError if it has none.

    A client inside this process reads the certificate from a handshake.
    """
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    load_pair(server_context, cert, key)
    client_context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client_context.check_hostname = False
    client_context.load_verify_locations(cafile=cert)
    client_context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = server_context.wrap_bio(there, back, server_side=True)
    client = client_context.wrap_bio(back, there)
    try:
        while not _is_done(client):
            _is_done(server)
    except ssl.SSLCertVerificationError as error:
        raise CertificateError(f"{cert} cannot be used: {error.verify_message}") from error
    found = client.getpeercert() or {}
    alternatives: Any = found.get("subjectAltName", ())  # pairs of a kind and a value
    names = [value for kind, value in alternatives if kind in ("DNS", "IP Address")]
    if not names:
        raise CertificateError(f"{cert} has no subjectAltName, without which no client accepts it")
    return str(names[0]).replace("*", "spyglass", 1)


def _is_done(side: ssl.SSLObject) -> bool:
    try:
        side.do_handshake()
    except ssl.SSLWantReadError:
        return False
    return True
