"""A connection to a model server, replaced when its TLS files change.

A channel keeps the credentials it was created with, so new credentials need a new channel. It takes over as soon as it
is up, and running calls finish on the old one.
"""

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import grpc

from spyglass.v1 import inference_pb2_grpc
from spyglass_bridge.health import HealthWatch
from spyglass_bridge.link import Link, Metadata
from spyglass_common.certificates import Rotated, read_authorities, read_pair
from spyglass_common.limits import MAX_MESSAGE_BYTES
from spyglass_common.tls import Tls

_LOOK_EVERY_S = 1.0
_CALLS_END_WITHIN_S = 30.0
"""How long calls other than generations may still take on a replaced channel."""

_log = logging.getLogger(__name__)


class Connection:
    """A channel with its stub, Generate stream and health. `run` keeps it open."""

    def __init__(self, channel: grpc.aio.Channel, metadata: Metadata) -> None:
        self._channel = channel
        self.stub = inference_pb2_grpc.InferenceServiceStub(channel)
        self.link = Link(self.stub, metadata)
        self.health = HealthWatch(channel)

    @property
    def is_ready(self) -> bool:
        return self.health.serving and self.link.is_up

    async def run(self) -> None:
        """Stays connected; returns once the connection has been retired and all its calls have ended."""
        watching = asyncio.create_task(self.health.run())
        try:
            await self.link.run()
            watching.cancel()
            await self._channel.close(_CALLS_END_WITHIN_S)
        finally:
            watching.cancel()
            with suppress(asyncio.CancelledError):
                await watching
            await self._channel.close()


class Connections:
    """The current connection to a server. `run` must be running."""

    def __init__(self, target: str, tls: Tls | None, metadata: Metadata) -> None:
        """Raises OSError for unusable TLS files."""
        self._target, self._tls, self._metadata = target, tls, metadata
        self._credentials = None if tls is None else Rotated(tls.files, partial(_read, tls))
        self._retired: set[Connection] = set()
        self.current = self._open()

    def fail_all(self) -> None:
        """Ends every generation with an explicit error."""
        for connection in (self.current, *self._retired):
            connection.link.fail_all()

    async def run(self) -> None:
        """Keeps a connection open and replaces it when the files change. Never returns."""
        async with asyncio.TaskGroup() as group:
            running = group.create_task(self.current.run())
            candidate: tuple[Connection, asyncio.Task[None]] | None = None
            while self._credentials is not None and self._credentials_can_change:
                await asyncio.sleep(_LOOK_EVERY_S)
                if self._credentials.refresh():
                    if candidate is not None:
                        candidate[1].cancel()
                    connection = self._open()
                    candidate = connection, group.create_task(connection.run())
                # Switch to one that is up or does no worse: the old one's credentials may no longer be accepted.
                if candidate is not None and (candidate[0].is_ready or not self.current.is_ready):
                    self._retire(running, candidate[0])
                    self.current, running = candidate
                    candidate = None

    @property
    def _credentials_can_change(self) -> bool:
        return self._tls is not None and bool(self._tls.files)

    def _retire(self, running: asyncio.Task[None], successor: Connection) -> None:
        old = self.current
        self._retired.add(old)
        running.add_done_callback(lambda _: self._retired.discard(old))
        old.link.retire(successor.link)
        _log.info("connected to the server with the new credentials")

    def _open(self) -> Connection:
        credentials = None if self._credentials is None else self._credentials.current
        options = () if self._tls is None else self._tls.channel_options
        return Connection(_open_channel(self._target, credentials, options), self._metadata)


def _read(tls: Tls) -> grpc.ChannelCredentials:
    """Raises OSError for unusable files."""
    if tls.ca_file is not None:
        read_authorities(tls.ca_file)
    if tls.cert_file is not None and tls.key_file is not None:
        read_pair(tls.cert_file, tls.key_file)
    return tls.credentials()


def _open_channel(
    target: str, credentials: grpc.ChannelCredentials | None, more: Sequence[tuple[str, str]]
) -> grpc.aio.Channel:
    """Opens a channel that tries a lost server at least twice a second."""
    options: list[tuple[str, Any]] = [
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        # A silent link counts as lost after 25 s.
        ("grpc.keepalive_time_ms", 15_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.http2.ping_timeout_ms", 10_000),  # 60 s by default, whatever the line above says
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 500),
        # Despite its name, this also limits how long one connection attempt may take.
        ("grpc.min_reconnect_backoff_ms", 2_000),
        ("grpc.enable_http_proxy", 0),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.dns_min_time_between_resolutions_ms", 1_000),  # a stopping server may have a successor elsewhere
        *more,
    ]
    if credentials is None:
        return grpc.aio.insecure_channel(target, options=options)
    return grpc.aio.secure_channel(target, credentials, options=options)
