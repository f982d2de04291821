"""A running fake server for the client's tests."""

from collections.abc import AsyncIterator

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from client.fake_service import FakeService
from spyglass.v1 import inference_pb2 as pb
from spyglass.v1 import inference_pb2_grpc as pb_grpc
from spyglass_client import AsyncClient


@pytest.fixture
async def service() -> AsyncIterator[FakeService]:
    service = FakeService()
    server = grpc.aio.server()
    pb_grpc.add_InferenceServiceServicer_to_server(service, server)
    healthy = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(healthy, server)
    await healthy.set("", health_pb2.HealthCheckResponse.SERVING)
    reflection.enable_server_reflection(
        (pb.DESCRIPTOR.services_by_name["InferenceService"].full_name, reflection.SERVICE_NAME), server
    )
    port = server.add_insecure_port("127.0.0.1:0")
    service.target = f"127.0.0.1:{port}"
    await server.start()
    yield service
    await server.stop(grace=None)


@pytest.fixture
async def client(service: FakeService) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(service.target, api_key="sk-test") as client:
        yield client
