"""Settings that the server and the bridge share, and that must agree if one launcher starts both."""

from spyglass_common.settings import (
    Setting,
    address,
    choice,
    count,
    file_mode,
    http_url,
    non_negative_float,
    positive_float,
)

GRPC = Setting(
    "grpc", "where the server listens and the bridge finds it", "127.0.0.1:50051", parse=address, metavar="HOST:PORT"
)
BRIDGE_KEY = Setting(
    "bridge-key",
    "the bridge's own key for the server, which may act on behalf of callers (spyglass serve generates one)",
    None,
    metavar="KEY",
    secret=True,
)
MAX_IMAGE_BYTES = count("max-image-bytes", "maximum size of an encoded image, in bytes", 20 << 20, "BYTES")
MAX_PENDING_BYTES = count(
    "max-pending-bytes",
    "maximum memory for texts and images that have been received but not yet passed to the engine, in bytes",
    2 << 30,
    "BYTES",
)
REQUEST_TIMEOUT = Setting(
    "request-timeout", "maximum duration of a generation, in seconds", 600.0, parse=positive_float, metavar="SECONDS"
)
DRAIN_TIMEOUT = Setting(
    "drain-timeout",
    "how long running generations may continue after a stop signal, in seconds",
    30.0,
    parse=non_negative_float,
    metavar="SECONDS",
)
LOG_LEVEL = choice("log-level", "how much to log", "info", "debug|info|warning|error")
OTLP_ENDPOINT = Setting(
    "otlp-endpoint",
    "where to send traces and metrics as OTLP over HTTP, such as http://127.0.0.1:4318; needs the extra otel "
    "(default: nowhere)",
    None,
    parse=http_url,
    metavar="URL",
)
LOG_FORMAT = choice("log-format", "log lines as plain text or as JSON objects", "text", "text|json")
SOCKET_MODE = Setting(
    "socket-mode",
    "permissions of Unix sockets, as for chmod: write permission lets a user connect",
    "0600",
    parse=file_mode,
    metavar="OCTAL",
)
GRPC_CLIENT_TLS = (
    Setting(
        "grpc-ca",
        "call the server over TLS and trust the authorities in this file (PEM); system means gRPC's defaults "
        "(default: no TLS)",
        None,
        metavar="FILE|system",
    ),
    Setting("grpc-client-cert", "client certificate, for a server that requires one (PEM)", None, metavar="FILE"),
    Setting("grpc-client-key", "the key of --grpc-client-cert (PEM)", None, metavar="FILE"),
    Setting(
        "grpc-server-name",
        "the name that the server's certificate must have (default: the host of --grpc)",
        None,
        metavar="NAME",
    ),
)
"""How the server's clients, including the bridge, reach it over TLS: the values that `Tls.from_settings` takes."""
