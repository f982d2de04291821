"""The fixtures of the page's tests: Chromium, and the page of a bridge in front of a scripted server."""

import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from playwright.async_api import Browser, BrowserContext, async_playwright

from bridge_setup import BridgeUnderTest, run_bridge_under_test, run_server
from fake_service import FakeService, repeat
from page.open_page import OpenPage

HOW_TO_GET_CHROMIUM = "Chromium is missing. On Debian: apt-get install chromium"


def chromium_path() -> str:
    """Where Chromium is. Skips the test where it is missing, and fails it there in CI."""
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        if os.environ.get("CI"):
            pytest.fail(HOW_TO_GET_CHROMIUM)
        pytest.skip(HOW_TO_GET_CHROMIUM)
    return path


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    path = chromium_path()
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        await browser.close()


@pytest.fixture
async def context(browser: Browser) -> AsyncIterator[BrowserContext]:
    """A window of 1280 by 800 with a clipboard."""
    context = await browser.new_context(viewport={"width": 1280, "height": 800}, reduced_motion="reduce")
    await context.grant_permissions(["clipboard-read", "clipboard-write"])
    yield context
    await context.close()


@pytest.fixture
async def server() -> AsyncIterator[FakeService]:
    """Repeats what it is asked, unless a test gives it another script."""
    async with run_server() as server:
        server.script = repeat
        yield server


@pytest.fixture
async def bridge(server: FakeService) -> AsyncIterator[BridgeUnderTest]:
    async with run_bridge_under_test(server) as bridge:
        await bridge.wait_ready()
        yield bridge


@pytest.fixture
async def opened(context: BrowserContext, bridge: BridgeUnderTest) -> OpenPage:
    """The page, without a key."""
    return await OpenPage.open(context, bridge.url)


@pytest.fixture
async def entered(opened: OpenPage) -> OpenPage:
    """The page, with the user's key."""
    await opened.enter_key()
    return opened


@pytest.fixture(scope="session")
def pictures() -> Path:
    """The pictures of the examples."""
    return Path(__file__).parents[2] / "clients" / "examples" / "pictures"
