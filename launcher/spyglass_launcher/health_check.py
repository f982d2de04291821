"""`python -m spyglass_launcher.health_check http|grpc`: exits with 0 if the bridge or server is healthy.

For containers. It finds the process through its environment variables; it does not see command-line options.
"""

import argparse
import asyncio
import os
import sys

from spyglass_common import shared_settings as shared
from spyglass_launcher.own_tls import SERVER_TLS, tls_of_settings, with_own_tls
from spyglass_launcher.probes import grpc_is_serving, http_is_ready


def main() -> None:
    """Checks whether the bridge is alive, or whether the server can serve."""
    [kind] = sys.argv[1:]
    assert kind in ("http", "grpc")
    sys.exit(not asyncio.run(_http_is_well() if kind == "http" else _grpc_is_well()))


async def _http_is_well() -> bool:
    is_tls = bool(os.environ.get("SPYGLASS_HTTP_TLS_CERT"))
    return await http_is_ready(os.environ["SPYGLASS_HTTP"], "/health", is_tls=is_tls)


async def _grpc_is_well() -> bool:
    names = (*SERVER_TLS, *(setting.dest for setting in shared.GRPC_CLIENT_TLS))
    settings = {name: os.environ.get(f"SPYGLASS_{name.upper()}") for name in names}
    try:
        tls = tls_of_settings(with_own_tls(settings))
    except (OSError, ValueError, argparse.ArgumentError) as error:
        sys.exit(str(error))
    return await grpc_is_serving(os.environ[shared.GRPC.env], tls)


if __name__ == "__main__":
    main()
