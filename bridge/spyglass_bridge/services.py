"""What the routes of a bridge share."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from aiohttp import web

from spyglass_bridge.access import AccessChecker
from spyglass_bridge.addresses import AddressGuard
from spyglass_bridge.backend import Backend
from spyglass_bridge.body import HeldBytes
from spyglass_bridge.config import BridgeConfig
from spyglass_bridge.drain import Drain
from spyglass_bridge.fetch import ImageFetcher, Resolve, resolve_by_system
from spyglass_common.fair_room import FairRoom
from spyglass_common.fair_slots import FairSlots
from spyglass_common.rate_limits import RateLimits


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """The parts that handlers use."""

    config: BridgeConfig
    backend: Backend
    access: AccessChecker
    fetcher: ImageFetcher
    drain: Drain
    pending: FairRoom
    """Memory for bodies and their pictures, until the server has them."""
    large_bodies: FairSlots
    """Turns to take in a piece of a large body, or to parse one: one at a time, since all streams wait for it."""


SERVICES = web.AppKey("services", Services)
REQUEST_ID = web.RequestKey("request_id", str)
CALLER_KEY = web.RequestKey("caller_key", str)
TENANT = web.RequestKey("tenant", str)
HELD_BYTES = web.RequestKey("held_bytes", HeldBytes)
"""What the request holds of `Services.pending`."""
RATE_LIMITS = web.RequestKey("rate_limits", RateLimits)
"""What the caller's key has left, if it has limits, once the generation has started."""
OUTCOME = web.RequestKey("outcome", str)
"""How a stream ended, when its status does not say."""


@asynccontextmanager
async def open_services(config: BridgeConfig, resolve: Resolve = resolve_by_system) -> AsyncIterator[Services]:
    """Connects to the server and stays connected; it need not be there yet."""
    guard = AddressGuard(config.allowed_image_names, config.allowed_image_networks)
    async with (
        ImageFetcher(guard, config.max_image_bytes, resolve) as fetcher,
        Backend.connect(config.grpc_target, config.bridge_key) as backend,
    ):
        access = AccessChecker(backend.check_access)
        yield Services(
            config=config,
            backend=backend,
            access=access,
            fetcher=fetcher,
            drain=Drain(),
            pending=FairRoom(config.max_pending_bytes),
            large_bodies=FairSlots(1, share=1),
        )
