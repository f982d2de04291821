"""A running fake service for the client's tests."""

from collections.abc import AsyncIterator

import pytest

from fake_service import FakeService, run_fake_service
from spyglass_client import AsyncClient


@pytest.fixture
async def service() -> AsyncIterator[FakeService]:
    async with run_fake_service() as service:
        yield service


@pytest.fixture
async def client(service: FakeService) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(service.target, api_key="sk-test") as client:
        yield client
