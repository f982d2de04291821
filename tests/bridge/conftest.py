"""The fixtures of the bridge's tests."""

from collections.abc import AsyncIterator

import pytest

from bridge_setup import BridgeUnderTest, run_bridge_under_test
from fake_server import FakeServer, run_fake_server


@pytest.fixture
async def server() -> AsyncIterator[FakeServer]:
    async with run_fake_server() as server:
        yield server


@pytest.fixture
async def bridge(server: FakeServer) -> AsyncIterator[BridgeUnderTest]:
    async with run_bridge_under_test(server) as bridge:
        yield bridge
