"""How to reach the server: addresses, TLS, and defaults from the environment."""

import argparse
from collections.abc import Mapping

import grpc

from spyglass_common.shared_settings import GRPC
from spyglass_common.tls import Tls as Tls

DEFAULT_TARGET: str = GRPC.default
TARGET_VARIABLE = GRPC.env
API_KEY_VARIABLE = "SPYGLASS_API_KEY"
ADMIN_KEY_VARIABLE = "SPYGLASS_ADMIN_KEY"

_CHANNEL_OPTIONS = (
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),  # 60 s by default, whatever the line above says
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.dns_min_time_between_resolutions_ms", 1_000),  # a stopped server may have a successor elsewhere
)


def open_channel(target: str, tls: Tls | None) -> grpc.aio.Channel:
    """Opens a channel to `target`; it connects on first use."""
    if tls is None:
        return grpc.aio.insecure_channel(target, options=_CHANNEL_OPTIONS)
    return grpc.aio.secure_channel(target, tls.credentials(), options=(*_CHANNEL_OPTIONS, *tls.channel_options))


def open_blocking_channel(target: str, tls: Tls | None) -> grpc.Channel:
    """Opens the same channel for blocking calls."""
    if tls is None:
        return grpc.insecure_channel(target, options=_CHANNEL_OPTIONS)
    return grpc.secure_channel(target, tls.credentials(), options=(*_CHANNEL_OPTIONS, *tls.channel_options))


def tls_of(options: argparse.Namespace) -> Tls | None:
    """Reads TLS from the options in `shared_settings.GRPC_CLIENT_TLS`. Raises ValueError if they are inconsistent."""
    return Tls.from_settings(
        options.grpc_ca, options.grpc_client_cert, options.grpc_client_key, options.grpc_server_name
    )


def default_admin_key(environ: Mapping[str, str]) -> str | None:
    """Returns the key in SPYGLASS_ADMIN_KEY."""
    return environ.get(ADMIN_KEY_VARIABLE, "").strip() or None


def default_target(environ: Mapping[str, str]) -> str:
    """Returns the address in SPYGLASS_GRPC, else the server's default on this machine."""
    return dialable(environ.get(TARGET_VARIABLE) or DEFAULT_TARGET)


def default_api_key(environ: Mapping[str, str]) -> str | None:
    """Returns the first key in SPYGLASS_API_KEY, which may contain several for a server, separated by commas."""
    return environ.get(API_KEY_VARIABLE, "").split(",")[0].strip() or None


def dialable(address: str) -> str:
    """Converts a listen address to one to connect to: 0.0.0.0 and [::] mean this machine."""
    host, separator, port = address.rpartition(":")
    if host in ("0.0.0.0", "*"):
        host = "127.0.0.1"
    elif host == "[::]":
        host = "[::1]"
    return host + separator + port
