"""A server and a bridge in front of it, both real, and an HTTP session of a caller."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from bridge_setup import MODEL, config_for, until_ready
from fakes import BRIDGE_KEY, KEY, TestServer, run_test_server
from observed import scrape
from spyglass_bridge.server import RunningBridge, run_bridge

_NOTHING: Mapping[str, Any] = {}


@dataclass(frozen=True)
class Both:
    """Server and bridge. `http` has the server's key."""

    server: TestServer
    bridge: RunningBridge
    http: aiohttp.ClientSession

    def server_page(self) -> str:
        """The metrics of the server."""
        return scrape(self.server.server.metrics_address)

    def bridge_page(self) -> str:
        """The metrics of the bridge."""
        return scrape(self.bridge.metrics_address)


@asynccontextmanager
async def run_both(
    checkpoint: Path,
    data_dir: Path,
    loader: Any = None,
    *,
    server: Mapping[str, Any] = _NOTHING,
    bridge: Mapping[str, Any] = _NOTHING,
    headers: Mapping[str, str] = _NOTHING,
) -> AsyncIterator[Both]:
    """Runs both, once they are ready. `server` and `bridge` are settings, `headers` go with each request."""
    async with (
        run_test_server(checkpoint, data_dir, loader, **{"served_model_name": (MODEL,), **server}) as test_server,
        run_bridge(config_for(test_server.server.address, bridge_key=BRIDGE_KEY, **bridge)) as running,
        aiohttp.ClientSession(running.address, headers={"Authorization": f"Bearer {KEY}", **headers}) as http,
    ):
        await until_ready(http)
        yield Both(test_server, running, http)
