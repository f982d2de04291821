"""Runs a bridge: its listening socket and its shutdown."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from spyglass_bridge.app import make_app
from spyglass_bridge.config import BridgeConfig
from spyglass_bridge.fetch import Resolve, resolve_by_system
from spyglass_bridge.listening import listening
from spyglass_bridge.protocol import BridgeRunner
from spyglass_bridge.services import Services, open_services
from spyglass_common.metrics_page import serve_metrics

# How long a connection may wait for its next request, or take to send its headers, before it is closed.
_KEEP_ALIVE_S = 25.0
# How long the rest of a refused body is read and discarded, so that the client sees the refusal.
_LINGER_S = 2.0
# How long a generation that is aborted here has to notify its client.
_LAST_WORDS_S = 0.5

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RunningBridge:
    """A bridge that listens at `address`: http://HOST:PORT, https://HOST:PORT or unix:PATH."""

    address: str
    _services: Services
    metrics_address: str | None
    """Where the Prometheus metrics are served."""

    async def drain(self) -> None:
        """Refuses new calls from now on, and returns once the running ones have ended.

        Generations that outlast the drain timeout end with an explicit error.
        """
        self._services.drain.begin()
        if not await self._services.drain.wait_idle(self._services.config.drain_timeout_s):
            _log.warning("the time to drain is over: the running generations are ended")
            self._services.backend.fail_all()
            await self._services.drain.wait_idle(_LAST_WORDS_S)


@asynccontextmanager
async def run_bridge(config: BridgeConfig, resolve: Resolve = resolve_by_system) -> AsyncIterator[RunningBridge]:
    """Listens while the context is open; generations still running at its end get an explicit error.

    Raises an OSError, possibly in an ExceptionGroup, if the address is unavailable or a certificate cannot be used.
    """
    async with open_services(config, resolve) as services:
        runner = BridgeRunner(
            make_app(services),
            access_log=None,
            handler_cancellation=True,
            auto_decompress=False,
            keepalive_timeout=_KEEP_ALIVE_S,
            lingering_time=_LINGER_S,
            shutdown_timeout=_LAST_WORDS_S,
        )
        await runner.setup()
        try:
            with serve_metrics(config.metrics, services.metrics.registry) as metrics_address:
                async with listening(runner, config) as address:
                    yield RunningBridge(address, services, metrics_address)
        finally:
            services.backend.fail_all()
            await runner.cleanup()
