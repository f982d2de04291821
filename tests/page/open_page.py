"""The model page in a browser, as its users see and use it; notes whatever it should not do.

Knows the page by its roles and labels, as a screen reader does.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

from playwright.async_api import BrowserContext, Locator, Page, Request, expect

from fake_service import USER_KEY

EXPECTED_ERRORS = ("Failed to load resource: the server responded with a status of",)
AXE = Path(__file__).parent / "vendor" / "axe.js"


@dataclass(frozen=True)
class OpenPage:
    """The page in a tab. `foreign` are requests to others, `problems` exceptions, errors and breaches of the policy."""

    page: Page
    url: str
    foreign: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)

    @classmethod
    async def open(cls, context: BrowserContext, url: str) -> Self:
        """Opens the page and waits until one can write."""
        opened = cls(await context.new_page(), url)
        opened.page.on("pageerror", lambda error: opened.problems.append(str(error)))
        opened.page.on(
            "console", lambda message: opened._note(message.text) if message.type in ("error", "warning") else None
        )
        opened.page.on("request", lambda request: opened._note_request(request))
        await opened.page.goto(url)
        await expect(opened.question).to_be_visible()
        return opened

    @property
    def question(self) -> Locator:
        return self.page.get_by_label("Message", exact=True)

    @property
    def functions(self) -> Locator:
        return self.page.get_by_label("Functions that the model may call")

    @property
    def answers(self) -> Locator:
        return self.page.get_by_role("article", name="Model")

    @property
    def asked(self) -> Locator:
        return self.page.get_by_role("article", name="You")

    def button(self, name: str) -> Locator:
        return self.page.get_by_role("button", name=name, exact=True)

    def tab(self, name: str) -> Locator:
        return self.page.get_by_role("tab", name=name, exact=True)

    async def enter_key(self, key: str = USER_KEY) -> None:
        """Gives the key by the dialog, and waits until it is taken."""
        await self.button("Enter API key").first.click()
        await self.page.get_by_label("API key", exact=True).fill(key)
        await self.button("Use this key").click()
        await expect(self.page.get_by_role("dialog")).to_have_count(0)

    async def ask(self, text: str) -> None:
        """Sends a question, without waiting for the answer."""
        await self.question.fill(text)
        await self.question.press("Enter")

    async def give_functions(self, functions: str | list[dict[str, Any]]) -> None:
        """Opens the settings' tools and fills in functions, or whatever text it is given."""
        await self.page.get_by_text("Tools", exact=True).click()
        await self.functions.fill(functions if isinstance(functions, str) else json.dumps(functions))

    async def wait_answered(self, count: int = 1) -> None:
        """Waits until so many answers are there and none is being written."""
        await expect(self.page.locator("article[aria-busy=true]")).to_have_count(0)
        await expect(self.answers).to_have_count(count)
        await expect(self.button("Send")).to_be_visible()

    async def add_file(self, *files: Path) -> None:
        """Adds pictures by the file dialog's input."""
        await self.page.get_by_label("Pictures", exact=True).set_input_files(list(files))

    async def violations(self) -> list[str]:
        """What axe finds that is serious or worse."""
        axe = AXE.read_text(encoding="utf-8")
        session = await self.page.context.new_cdp_session(self.page)
        # By the debugger, since the page's policy keeps other scripts out.
        await session.send("Runtime.evaluate", {"expression": axe})
        run = "axe.run(document, {resultTypes: ['violations']}).then((found) => JSON.stringify(found.violations))"
        answer = await session.send("Runtime.evaluate", {"expression": run, "awaitPromise": True})
        await session.detach()
        found: list[dict[str, Any]] = json.loads(answer["result"]["value"])
        return [
            f"{one['id']}: {node['html']} {node.get('failureSummary', '')}"
            for one in found
            if one["impact"] in ("serious", "critical")
            for node in one["nodes"]
        ]

    def assert_well(self) -> None:
        """Nothing failed, and no other host was asked for anything."""
        assert self.problems == []
        assert self.foreign == []

    def _note(self, text: str) -> None:
        if not text.startswith(EXPECTED_ERRORS):
            self.problems.append(text)

    def _note_request(self, request: Request) -> None:
        self.requests.append(request)
        parts = urlsplit(request.url)
        if parts.scheme in ("http", "https", "ws", "wss") and f"{parts.scheme}://{parts.netloc}" != self.url:
            self.foreign.append(request.url)
