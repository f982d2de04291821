"""The settings of the bridge: options of `spyglass-bridge`. Imports nothing heavy: the launcher imports it too."""

from spyglass_common import shared_settings as shared
from spyglass_common.settings import Setting, address, choice, count, origin, tcp_address

SETTINGS: tuple[Setting, ...] = (
    Setting("http", "where the bridge listens", "127.0.0.1:8000", parse=address, metavar="HOST:PORT"),
    Setting(
        "http-tls-cert",
        "certificate with its chain for HTTPS (PEM); a changed file is used for new connections without a restart",
        None,
        metavar="FILE",
    ),
    Setting("http-tls-key", "the key of --http-tls-cert (PEM)", None, metavar="FILE"),
    Setting(
        "cors-origin",
        "an origin such as https://app.example.com whose pages may call the API in browsers, or * for all; several may "
        "be given (default: none)",
        (),
        parse=origin,
        metavar="ORIGIN|*",
        multiple=True,
    ),
    shared.GRPC,
    *shared.GRPC_CLIENT_TLS,
    shared.SOCKET_MODE,
    shared.BRIDGE_KEY,
    shared.MAX_PENDING_BYTES,
    shared.MAX_IMAGE_BYTES,
    shared.REQUEST_TIMEOUT,
    shared.DRAIN_TIMEOUT,
    count("max-body-bytes", "maximum size of an HTTP request's body, in bytes", 64 << 20, "BYTES"),
    Setting(
        "allow-image-host",
        "a private host name or network (10.0.0.0/8) that image URLs may reach; several may be given "
        "(default: public addresses only)",
        (),
        metavar="HOST|CIDR",
        multiple=True,
    ),
    choice(
        "page",
        "the model page at /: on (it shows the model to visitors with a key), public (to all visitors), or off",
        "on",
        "on|public|off",
        negation="off",
    ),
    choice(
        "built-with-llama",
        "whether the model page says 'Built with Llama' and links the licence, as Llama models' licence requires: "
        "auto does if the model's name contains 'llama'",
        "auto",
        "auto|on|off",
        negation="off",
    ),
    shared.LOG_LEVEL,
    shared.LOG_FORMAT,
    shared.OTLP_ENDPOINT,
    Setting(
        "bridge-metrics",
        "where the bridge serves Prometheus metrics (default: nowhere)",
        None,
        parse=tcp_address,
        metavar="HOST:PORT",
    ),
)
