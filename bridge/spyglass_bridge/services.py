"""The services and request values that a bridge's routes share."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aiohttp import web

from spyglass_bridge.access import AccessChecker
from spyglass_bridge.addresses import AddressGuard
from spyglass_bridge.backend import Backend
from spyglass_bridge.body import HeldBytes
from spyglass_bridge.config import BridgeConfig
from spyglass_bridge.drain import Drain
from spyglass_bridge.fetch import ImageFetcher, Resolve, resolve_by_system
from spyglass_bridge.metrics import BridgeLoad, BridgeMetrics
from spyglass_common.fair_room import FairRoom
from spyglass_common.fair_slots import FairSlots
from spyglass_common.rate_limits import RateLimits
from spyglass_common.telemetry import open_telemetry

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """The services that handlers use."""

    config: BridgeConfig
    backend: Backend
    access: AccessChecker
    fetcher: ImageFetcher
    drain: Drain
    metrics: BridgeMetrics
    tracer: "Tracer | None"
    """Creates the spans of requests; None without tracing."""
    pending: FairRoom
    """Memory for bodies and their images, until the server has them."""
    large_bodies: FairSlots
    """Turns to read a piece of a large body or to parse one: one at a time, since all streams wait meanwhile."""


SERVICES = web.AppKey("services", Services)
REQUEST_ID = web.RequestKey("request_id", str)
CALLER_KEY = web.RequestKey("caller_key", str)
TENANT = web.RequestKey("tenant", str)
HELD_BYTES = web.RequestKey("held_bytes", HeldBytes)
"""The request's share of `Services.pending`."""
RATE_LIMITS = web.RequestKey("rate_limits", RateLimits)
"""What remains of the caller's limits, if any, once the generation has started."""
TRACEPARENT = web.RequestKey("traceparent", str)
"""The request's span, passed to the server; set only with tracing."""
STREAM_ERROR = web.RequestKey("stream_error", int)
"""The status of the error that ended a stream which had begun with 200."""


@asynccontextmanager
async def open_services(config: BridgeConfig, resolve: Resolve = resolve_by_system) -> AsyncIterator[Services]:
    """Connects to the server and stays connected; it need not be up yet."""
    guard = AddressGuard(config.allowed_image_names, config.allowed_image_networks)
    drain, pending = Drain(), FairRoom(config.max_pending_bytes)
    async with (
        ImageFetcher(guard, config.max_image_bytes, resolve) as fetcher,
        Backend.connect(config.grpc_target, config.bridge_key, config.grpc_tls) as backend,
        _open_tracer(config.otlp_endpoint) as tracer,
    ):
        access = AccessChecker(backend.check_access)
        yield Services(
            config=config,
            backend=backend,
            access=access,
            fetcher=fetcher,
            drain=drain,
            metrics=BridgeMetrics(
                lambda: BridgeLoad(running=drain.num_running, held_bytes=pending.taken, is_ready=backend.is_ready)
            ),
            tracer=tracer,
            pending=pending,
            large_bodies=FairSlots(1, share=1),
        )


@asynccontextmanager
async def _open_tracer(endpoint: str | None) -> AsyncIterator["Tracer | None"]:
    if endpoint is None:
        yield None
        return
    with contextlib.ExitStack() as stack:
        tracer, _ = stack.enter_context(open_telemetry("spyglass-bridge", endpoint))
        try:
            yield tracer
        finally:
            await asyncio.to_thread(stack.close)  # sends the remaining spans
