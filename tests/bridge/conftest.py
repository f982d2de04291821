"""The fixtures of the bridge's tests."""

from collections.abc import AsyncIterator

import pytest

from bridge_setup import BridgeUnderTest, run_bridge_under_test, run_server
from fake_service import FakeService


@pytest.fixture
async def server() -> AsyncIterator[FakeService]:
    async with run_server() as server:
        yield server


@pytest.fixture
async def bridge(server: FakeService) -> AsyncIterator[BridgeUnderTest]:
    async with run_bridge_under_test(server) as bridge:
        yield bridge
