"""What the routes of a bridge share, and its life.

Owns the channel to the server and the tasks that keep it in use.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import grpc
from aiohttp import web
from google.protobuf.message import Message

from spyglass.v1 import inference_pb2_grpc
from spyglass_bridge.access import AccessChecker
from spyglass_bridge.addresses import AddressGuard
from spyglass_bridge.config import BridgeConfig
from spyglass_bridge.drain import Drain
from spyglass_bridge.errors import from_rpc_error
from spyglass_bridge.fetch import ImageFetcher, Resolve, resolve_by_system
from spyglass_bridge.health import HealthWatch
from spyglass_bridge.link import Link, Metadata, open_channel

if TYPE_CHECKING:
    from spyglass.v1.inference_pb2_grpc import InferenceServiceAsyncStub

_CALL_TIMEOUT_S = 10.0

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """The parts that handlers use. `metadata` carries the bridge's own key."""

    config: BridgeConfig
    stub: "InferenceServiceAsyncStub"
    metadata: Metadata
    link: Link
    access: AccessChecker
    health: HealthWatch
    fetcher: ImageFetcher
    drain: Drain

    async def call(
        self, method: Callable[..., Awaitable[Answer]], request: Message, timeout_s: float = _CALL_TIMEOUT_S
    ) -> Answer:
        """Asks the server for something short. Raises ApiError when it refuses or does not answer."""
        try:
            return await method(request, metadata=self.metadata, timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error


SERVICES = web.AppKey("services", Services)
REQUEST_ID = web.RequestKey("request_id", str)
CALLER_KEY = web.RequestKey("caller_key", str)
OUTCOME = web.RequestKey("outcome", str)
"""How a stream ended, when its status does not tell."""


@asynccontextmanager
async def open_services(config: BridgeConfig, resolve: Resolve = resolve_by_system) -> AsyncIterator[Services]:
    """Connects to the server and stays connected; it need not be there yet."""
    metadata = (("authorization", f"Bearer {config.bridge_key}"),)
    guard = AddressGuard(config.allowed_image_names, config.allowed_image_networks)
    async with (
        open_channel(config.grpc_target) as channel,
        ImageFetcher(guard, config.max_image_bytes, resolve) as fetcher,
        asyncio.TaskGroup() as group,
    ):
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        link = Link(stub, metadata)
        health = HealthWatch(channel)
        tasks = [group.create_task(link.run()), group.create_task(health.run())]
        yield Services(
            config=config,
            stub=stub,
            metadata=metadata,
            link=link,
            access=AccessChecker(stub, metadata, link),
            health=health,
            fetcher=fetcher,
            drain=Drain(),
        )
        for task in tasks:
            task.cancel()
