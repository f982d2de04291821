"""The bridge's configuration: its settings as typed values."""

import argparse
import ipaddress
from dataclasses import dataclass
from pathlib import Path

from spyglass_common.telemetry import check_telemetry
from spyglass_common.tls import Tls

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """Where to listen; port 0 selects any free one."""

    host: str
    port: int


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """A Unix socket."""

    path: str


Address = TcpAddress | UnixAddress


@dataclass(frozen=True, slots=True)
class Certificate:
    """The bridge's certificate with its chain, and its key."""

    cert_file: Path
    key_file: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class BridgeConfig:
    """The configuration of a bridge process. Defaults are in `settings.py`."""

    bridge_key: str
    http: Address
    https: Certificate | None
    socket_mode: int
    cors_origins: frozenset[str]
    grpc_target: str
    grpc_tls: Tls | None
    max_body_bytes: int
    max_image_bytes: int
    max_pending_bytes: int
    request_timeout_s: float
    drain_timeout_s: float
    allowed_image_names: frozenset[str]
    allowed_image_networks: tuple[Network, ...]
    page: str
    built_with_llama: str
    log_level: str
    log_format: str
    metrics: str | None
    otlp_endpoint: str | None

    @classmethod
    def from_args(cls, args: argparse.Namespace) -> "BridgeConfig":
        """Reads the options of `spyglass-bridge`. Raises ValueError for an unusable one."""
        if not args.bridge_key:
            raise ValueError(
                "--bridge-key is missing: give the key that the server knows for its bridge "
                "(spyglass serve makes one up for both)"
            )
        if not (args.bridge_key.isascii() and args.bridge_key.isprintable()) or " " in args.bridge_key:
            raise ValueError("--bridge-key may hold only printable ASCII characters and no spaces")
        if args.otlp_endpoint is not None:
            check_telemetry()
        names, networks = parse_allowed_hosts(args.allow_image_host)
        return cls(
            bridge_key=args.bridge_key,
            http=parse_address(args.http),
            https=_certificate(args),
            socket_mode=int(args.socket_mode, 8),
            cors_origins=frozenset(args.cors_origin),
            grpc_target=args.grpc,
            grpc_tls=Tls.from_settings(
                args.grpc_ca, args.grpc_client_cert, args.grpc_client_key, args.grpc_server_name
            ),
            max_body_bytes=args.max_body_bytes,
            max_image_bytes=args.max_image_bytes,
            max_pending_bytes=args.max_pending_bytes,
            request_timeout_s=args.request_timeout,
            drain_timeout_s=args.drain_timeout,
            allowed_image_names=names,
            allowed_image_networks=networks,
            page=args.page,
            built_with_llama=args.built_with_llama,
            log_level=args.log_level,
            log_format=args.log_format,
            metrics=args.bridge_metrics,
            otlp_endpoint=args.otlp_endpoint,
        )


def _certificate(args: argparse.Namespace) -> Certificate | None:
    cert, key = args.http_tls_cert, args.http_tls_key
    if bool(cert) != bool(key):
        raise ValueError("--http-tls-cert and --http-tls-key belong together")
    if not cert:
        return None
    if args.http.startswith("unix:"):
        raise ValueError("--http-tls-cert is for TCP: who may connect to a Unix socket is up to --socket-mode")
    return Certificate(Path(cert).expanduser(), Path(key).expanduser())


def parse_address(text: str) -> Address:
    """Splits HOST:PORT, [HOST]:PORT or unix:PATH."""
    if text.startswith("unix:"):
        return UnixAddress(text.removeprefix("unix:"))
    host, _, port = text.rpartition(":")
    return TcpAddress(host.removeprefix("[").removesuffix("]"), int(port))


def parse_allowed_hosts(entries: tuple[str, ...]) -> tuple[frozenset[str], tuple[Network, ...]]:
    """Sorts the entries of --allow-image-host into host names and networks."""
    names: set[str] = set()
    networks: list[Network] = []
    for entry in entries:
        try:
            networks.append(ipaddress.ip_network(entry.removeprefix("[").removesuffix("]")))
        except ValueError:
            if "/" in entry or not entry:
                raise ValueError(f"--allow-image-host: {entry!r} is neither a host name nor a network") from None
            names.add(entry.lower().rstrip("."))
    return frozenset(names), tuple(networks)
