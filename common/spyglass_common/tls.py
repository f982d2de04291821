"""TLS on the client side of gRPC: whom to trust, and how to authenticate."""

from dataclasses import dataclass
from pathlib import Path

import grpc

SYSTEM_CA = "system"
"""Used instead of a file: the authorities that gRPC trusts by default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """How to trust the server and authenticate to it: files in PEM format.

    Without `ca_file`, the usual authorities are trusted. `cert_file` and `key_file` together are the client's own
    certificate, for servers that ask for one. `server_name` is the name that the server's certificate must have, if
    that is not the host of the address.
    """

    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    server_name: str | None = None

    @classmethod
    def from_settings(cls, ca: str | None, cert: str | None, key: str | None, server_name: str | None) -> "Tls | None":
        """Reads the values of `shared_settings.GRPC_CLIENT_TLS`; returns None for a connection without TLS.

        Raises:
            ValueError: the values do not fit together.
        """
        if bool(cert) != bool(key):
            raise ValueError("--grpc-client-cert and --grpc-client-key belong together")
        if not ca:
            if cert or server_name:
                given = "--grpc-client-cert" if cert else "--grpc-server-name"
                raise ValueError(f"{given} needs --grpc-ca: the authority of the server's certificate, or {SYSTEM_CA}")
            return None
        return cls(
            ca_file=None if ca == SYSTEM_CA else Path(ca).expanduser(),
            cert_file=Path(cert).expanduser() if cert else None,
            key_file=Path(key).expanduser() if key else None,
            server_name=server_name or None,
        )

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that are set."""
        return tuple(path for path in (self.ca_file, self.cert_file, self.key_file) if path is not None)

    @property
    def channel_options(self) -> tuple[tuple[str, str], ...]:
        """The channel options that belong to the credentials."""
        return (("grpc.ssl_target_name_override", self.server_name),) if self.server_name else ()

    def credentials(self) -> grpc.ChannelCredentials:
        """Reads the files. Raises OSError for an unreadable one."""
        ca, key, cert = (
            None if path is None else path.read_bytes() for path in (self.ca_file, self.key_file, self.cert_file)
        )
        return grpc.ssl_channel_credentials(ca, key, cert)
