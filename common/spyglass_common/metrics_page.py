"""Serves metrics to Prometheus on a separate port."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import disable_created_metrics, start_http_server
from prometheus_client.registry import CollectorRegistry

from spyglass_common.exposure import is_local

log = logging.getLogger(__name__)


@contextmanager
def serve_metrics(address: str | None, registry: CollectorRegistry) -> Iterator[str | None]:
    """Serves at HOST:PORT, in a thread, while the context is open; yields the address with the actual port for 0.

    Does nothing without an address. Raises OSError if the address is unavailable.
    """
    if address is None:
        yield None
        return
    if not is_local(address):
        log.warning("metrics at %s can be read from other machines, without a key", address)
    disable_created_metrics()  # type: ignore[no-untyped-call]
    host, _, port = address.rpartition(":")
    server, thread = start_http_server(int(port), host.removeprefix("[").removesuffix("]"), registry)
    bound = f"{host}:{server.server_port}"
    log.info("metrics at http://%s/metrics", bound)
    try:
        yield bound
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
