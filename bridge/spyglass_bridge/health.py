"""Watches the server's health with the standard grpc.health.v1 protocol."""

import asyncio
import logging

import grpc
from grpc_health.v1 import health_pb2

SERVICE = "spyglass.v1.InferenceService"

_PAUSE_S = 0.2

_log = logging.getLogger(__name__)


class HealthWatch:
    """Whether the server is serving. `run` watches and must be running."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._watch = channel.unary_stream(
            "/grpc.health.v1.Health/Watch",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        self.serving = False

    async def run(self) -> None:
        """Watches, and watches again whenever the call ends. Never returns."""
        while True:
            try:
                async for answer in self._watch(health_pb2.HealthCheckRequest(service=SERVICE), wait_for_ready=True):
                    self._note(answer.status == health_pb2.HealthCheckResponse.SERVING)
                    if not self.serving:
                        break  # another server may be at this address by now
            except grpc.aio.AioRpcError as error:
                _log.debug("the health watch ended: %s: %s", error.code().name, error.details())
            finally:
                self._note(serving=False)
            await asyncio.sleep(_PAUSE_S)

    def _note(self, serving: bool) -> None:
        if serving != self.serving:
            _log.info("the server is %s", "serving" if serving else "not serving")
            self.serving = serving
