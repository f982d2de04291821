"""Takes the pictures of docs/page.md of a running server with the demo model; needs Chromium.

spyglass serve --model demo --api-key KEY
python scripts/page_screenshots.py http://127.0.0.1:8000 KEY
"""

import asyncio
import io
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.async_api import Browser, Page, async_playwright, expect

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "docs" / "images"
PICTURES = ROOT / "clients" / "examples" / "pictures"
PATIENT_MS = 60_000


class Camera:
    """A browser before the page of one server."""

    def __init__(self, browser: Browser, url: str, key: str) -> None:
        self._browser = browser
        self._url = url
        self._key = key

    @asynccontextmanager
    async def page(self, **options: Any) -> AsyncIterator[Page]:
        """The page with the key, at a temperature of 0, in a window of its own."""
        settings = {"viewport": {"width": 1280, "height": 800}, "reduced_motion": "reduce"} | options
        context = await self._browser.new_context(**settings)
        page = await context.new_page()
        page.set_default_timeout(PATIENT_MS)
        await page.goto(self._url)
        await page.get_by_role("button", name="Enter API key").first.click()
        await page.get_by_label("API key", exact=True).fill(self._key)
        await page.get_by_role("button", name="Use this key").click()
        await expect(page.get_by_role("dialog")).to_have_count(0, timeout=PATIENT_MS)
        panel = page.get_by_role("button", name="Settings", exact=True)
        is_narrow = await panel.is_visible()
        if is_narrow:
            await panel.click()
        await page.get_by_label("Temperature, as a number").fill("0")
        if is_narrow:
            await panel.click()
        yield page
        await context.close()

    async def all(self) -> None:
        """Takes them all."""
        async with self.page() as page:
            await shoot(page, "empty")
            await attach(page, "star_and_square.png")
            await page.get_by_label("Message", exact=True).fill("What is to the left of the square?")
            await page.wait_for_timeout(1500)
            await page.evaluate("scrollTo(0, document.body.scrollHeight)")
            await shoot(page, "tiles")
            await ask(page, "What is to the left of the square?", 1)
            await ask(page, "What colour is the square?", 2)
            await shoot(page, "chat")
        async with self.page(color_scheme="dark") as page:
            await attach(page, "red_circle.png")
            await ask(page, "What is in this picture?", 1)
            await shoot(page, "dark")
        async with self.page() as page:
            await page.get_by_label("Max tokens").fill("60")
            await page.get_by_role("button", name="Compare").click()
            await page.get_by_label("Temperature, as a number").fill("1.2")
            await page.get_by_label("Seed").fill("7")
            await ask(page, "Tell me about the sea.", 2)
            await shoot(page, "compare")
        async with self.page() as page:
            await page.get_by_text("JSON schema", exact=True).click()
            schema = '{"type": "object", "not": {"required": ["a"]}}'
            await page.get_by_label("The answer is held to this schema").fill(schema)
            await page.get_by_label("Message", exact=True).fill("Who is Ada?")
            await page.get_by_label("Message", exact=True).press("Enter")
            await page.get_by_role("alert").wait_for()
            await shoot(page, "error")
        async with self.page(viewport={"width": 375, "height": 740}) as page:
            await attach(page, "red_circle.png")
            await ask(page, "What is in this picture?", 1)
            await shoot(page, "phone")
        async with self.page() as page:
            for tab in ("API", "Schema", "Usage"):
                await page.get_by_role("tab", name=tab, exact=True).click()
                await page.wait_for_timeout(800)
                await shoot(page, tab.lower())
            await page.get_by_role("button", name="Deploy private endpoint").click()
            await shoot(page, "deploy")
        async with self.page() as page:
            await page.get_by_label("Show where it looked").check()
            await attach(page, "star_and_square.png")
            await ask(page, "What is to the left of the square?", 1)
            await page.locator(".looked-frame > summary").click()
            await page.locator(".token", has_text="star").first.click()
            await page.mouse.move(5, 5)
            await page.locator(".looked").scroll_into_view_if_needed()
            await shoot(page, "attention")


async def attach(page: Page, name: str) -> None:
    """Adds a picture of the examples."""
    await page.get_by_label("Pictures", exact=True).set_input_files(PICTURES / name)
    await expect(page.get_by_role("button", name=f"Remove {name}")).to_be_visible(timeout=PATIENT_MS)


async def ask(page: Page, text: str, answers: int) -> None:
    """Asks, and waits until so many answers are complete."""
    await page.get_by_label("Message", exact=True).fill(text)
    await page.get_by_label("Message", exact=True).press("Enter")
    await expect(page.locator(".figures")).to_have_count(answers, timeout=PATIENT_MS)
    await expect(page.locator("[aria-busy=true]")).to_have_count(0, timeout=PATIENT_MS)


async def shoot(page: Page, name: str) -> None:
    """Takes the picture of what is seen, with 256 colours: the page has few."""
    await page.wait_for_timeout(600)
    taken = Image.open(io.BytesIO(await page.screenshot()))
    taken.convert("RGB").quantize(256).save(OUT / f"page-{name}.png", optimize=True)


async def main(url: str, key: str) -> None:
    path = shutil.which("chromium")
    if path is None:
        sys.exit("Chromium is missing. On Debian: apt-get install chromium")
    OUT.mkdir(parents=True, exist_ok=True)
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        await Camera(browser, url, key).all()
        await browser.close()


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    asyncio.run(main(sys.argv[1], sys.argv[2]))
