"""Header, tabs, code to copy, schemas, usage, colours, a phone's width, and what axe says of each state."""

import json
import re
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from google.rpc import code_pb2
from playwright.async_api import BrowserContext, expect

from bridge_setup import MODEL, BridgeUnderTest, run_bridge_under_test
from fake_service import USER_KEY, FakeService, Reply
from page.open_page import OpenPage
from spyglass_common.status import make_status


async def test_the_header_tells_of_the_model_to_who_has_a_key(opened: OpenPage) -> None:
    heading = opened.page.get_by_role("heading", level=1)
    await expect(heading).to_have_text("A private model")
    await opened.enter_key()
    await expect(heading).to_have_text(MODEL)
    header = opened.page.locator(".hero")
    for words in ("Private", "A model that is not there.", "$0.35", "$0.40", "32k", "Built with Llama"):
        await expect(header).to_contain_text(words)
    await expect(opened.page.locator(".state")).to_contain_text("ready")
    await expect(opened.page).to_have_title(f"{MODEL} · Spyglass")


@pytest.mark.parametrize(
    ("setting", "name", "is_said"),
    [
        ("auto", "meta-llama/Llama-3.2-11B-Vision-Instruct", True),
        ("auto", "llama-of-acme", True),
        ("auto", "spyglass-demo", False),
        ("auto", "pictures", False),
        ("on", "pictures", True),
        ("off", "meta-llama/Llama-3.2-11B-Vision-Instruct", False),
    ],
)
async def test_it_says_what_it_is_built_with(
    server: FakeService, context: BrowserContext, setting: str, name: str, is_said: bool
) -> None:
    server.model.id = name
    async with run_bridge_under_test(server, page="public", built_with_llama=setting) as bridge:
        await bridge.wait_ready()
        page = await OpenPage.open(context, bridge.url)
        await expect(page.page.get_by_role("heading", level=1)).to_have_text(name)
        links = page.page.locator(".hero .links")
        await expect(links.get_by_text("Built with Llama")).to_have_count(int(is_said))
        await expect(links.get_by_role("link", name="Llama 3.2 Community License")).to_have_count(int(is_said))


async def test_tabs_work_by_mouse_keyboard_and_address(entered: OpenPage) -> None:
    await entered.tab("API").click()
    await expect(entered.page.get_by_role("tabpanel", name="API")).to_be_visible()
    await expect(entered.page.get_by_role("tabpanel", name="Playground")).to_be_hidden()
    await entered.page.keyboard.press("ArrowRight")
    await expect(entered.tab("Schema")).to_be_focused()
    await expect(entered.tab("Schema")).to_have_attribute("aria-selected", "true")
    await entered.page.keyboard.press("End")
    await expect(entered.tab("Usage")).to_be_focused()
    await entered.page.keyboard.press("ArrowRight")
    await expect(entered.tab("Playground")).to_be_focused()
    assert await entered.page.evaluate("document.querySelectorAll('.tabs > .tab-list > [tabindex=\"0\"]').length") == 1
    await entered.tab("Usage").click()
    assert entered.page.url.endswith("#usage")
    await entered.page.reload()
    await expect(entered.tab("Usage")).to_have_attribute("aria-selected", "true")
    await expect(entered.page.get_by_role("tabpanel", name="Usage")).to_be_visible()


async def test_copy_gives_exactly_the_code_that_is_shown(entered: OpenPage) -> None:
    await entered.tab("API").click()
    panel = entered.page.get_by_role("tabpanel", name="API")
    for kind in ("Message", "Image", "Tools", "This playground"):
        await panel.get_by_role("radio", name=kind, exact=True).check()
        for language in ("curl", "Python · openai", "Python · spyglass_client", "JavaScript", "grpcurl"):
            await panel.get_by_role("radio", name=language, exact=True).check()
            await expect(panel.locator(".code-head span").last).to_have_text(f"{kind}, {language}")
            shown = await panel.locator("pre").last.text_content()
            await panel.get_by_role("button", name=re.compile("Cop")).last.click()
            await expect(panel.get_by_role("button", name="Copied").last).to_be_visible()
            assert await entered.page.evaluate("navigator.clipboard.readText()") == shown
            assert shown is not None
            assert MODEL in shown
            assert "SPYGLASS_API_KEY" in shown
            assert USER_KEY not in shown


async def test_the_playgrounds_request_stands_as_code(entered: OpenPage, pictures: Path) -> None:
    await entered.page.get_by_label("System prompt").fill('It\'s "so" $HOME `here`\nand \\ there')
    await entered.add_file(pictures / "red_circle.png")
    await entered.question.fill("What is it?")
    await entered.tab("API").click()
    panel = entered.page.get_by_role("tabpanel", name="API")
    await panel.get_by_role("radio", name="This playground").check()
    await expect(panel.locator("pre").last).to_contain_text("base64 < picture-1.png")
    await expect(panel.locator("pre").last).to_contain_text("What is it?")
    await expect(panel.locator("pre").last).to_contain_text('It\'s \\\\"so\\\\" \\$HOME \\`here\\`\\\\nand')


async def test_schemas_are_shown_as_a_tree_and_as_json(entered: OpenPage, bridge: BridgeUnderTest) -> None:
    await entered.tab("Schema").click()
    panel = entered.page.get_by_role("tabpanel", name="Schema")
    await panel.get_by_text("messages", exact=True).click()
    await expect(panel.get_by_text("role", exact=True).first).to_be_visible()
    for name in ("Output", "Streaming"):
        await panel.get_by_role("tab", name=name).click()
        await expect(panel.get_by_text("choices", exact=True)).to_be_visible()
        await panel.get_by_role("radio", name="JSON").locator("visible=true").check()
        async with bridge.http.get(f"/models/{MODEL}/schema/{name.lower()}") as response:
            told = await response.json()
        shown = await panel.locator("pre").locator("visible=true").text_content()
        assert json.loads(shown or "") == told


async def test_usage_is_shown_by_day_with_the_latest_requests(entered: OpenPage, server: FakeService) -> None:
    await entered.tab("Usage").click()
    panel = entered.page.get_by_role("tabpanel", name="Usage")
    await expect(panel.get_by_role("img", name="Cost by day")).to_be_visible()
    await expect(panel.get_by_role("region", name="Latest requests").get_by_role("row")).to_have_count(21)
    await expect(panel).to_contain_text("$0.2500")
    await expect(panel.get_by_role("region", name="Prices")).to_contain_text("$0.40")
    await panel.get_by_text("As a table").click()
    await expect(panel.get_by_role("region", name="Usage by day")).to_be_visible()


async def test_how_to_deploy_it_is_shown_with_its_values(entered: OpenPage) -> None:
    await entered.button("Deploy private endpoint").click()
    dialog = entered.page.get_by_role("dialog")
    for name in ("pip", "Docker", "Compose"):
        await dialog.get_by_role("tab", name=name).click()
        panel = dialog.get_by_role("tabpanel", name=name)
        await expect(panel).to_contain_text(MODEL)
        await expect(panel).to_contain_text("32768")
    await entered.page.keyboard.press("Escape")
    await expect(dialog).to_have_count(0)
    await expect(entered.button("Deploy private endpoint")).to_be_focused()


LIGHT, DARK = "rgb(250, 250, 248)", "rgb(14, 17, 22)"


async def test_light_and_dark_follow_the_system_or_the_choice(entered: OpenPage) -> None:
    body = entered.page.locator("body")
    await expect(body).to_have_css("background-color", LIGHT)
    await entered.page.emulate_media(color_scheme="dark")
    await expect(body).to_have_css("background-color", DARK)
    await entered.page.get_by_role("button", name="Colours: system").click()
    await expect(body).to_have_css("background-color", LIGHT)
    await entered.page.reload()
    await expect(entered.question).to_be_visible()
    await expect(body).to_have_css("background-color", LIGHT)
    await entered.page.get_by_role("button", name="Colours: light").click()
    await expect(body).to_have_css("background-color", DARK)


async def ask_something(page: OpenPage) -> None:
    await page.ask("Hello")
    await page.wait_answered()


async def test_a_phone_is_wide_enough(
    context: BrowserContext, bridge: BridgeUnderTest, server: FakeService, pictures: Path
) -> None:
    server.script = Reply(
        pieces=("word " * 60, "x" * 300, "\n\n```\n" + "y" * 300 + "\n```\n", "\n| a | b |\n|-|-|\n| 1 | 2 |")
    )
    page = await OpenPage.open(context, bridge.url)
    await page.page.set_viewport_size({"width": 375, "height": 740})
    await page.enter_key()
    await page.add_file(pictures / "red_circle.png", pictures / "seven.png", pictures / "stop.png")
    await ask_something(page)
    await page.page.get_by_role("button", name="Settings").click()
    await expect(page.page.get_by_label("System prompt")).to_be_visible()
    await page.button("Compare").click()
    for tab in ("Playground", "API", "Schema", "Usage"):
        await page.tab(tab).click()
        await page.page.wait_for_timeout(200)
        assert await page.page.evaluate("document.documentElement.scrollWidth") == 375, tab


async def empty(page: OpenPage, server: FakeService, pictures: Path) -> None:
    pass


async def key_dialog(page: OpenPage, server: FakeService, pictures: Path) -> None:
    await page.button("Key").click()


async def chat(page: OpenPage, server: FakeService, pictures: Path) -> None:
    server.script = Reply(
        pieces=(
            "# Title\n\ntext with `code` and [a link](https://x.example)\n\n",
            "```python\nx = 1  # y\n```\n\n| a |\n|-|\n| b |",
        )
    )
    await page.add_file(pictures / "red_circle.png")
    await ask_something(page)
    await page.answers.last.get_by_role("button", name="Retry").click()
    await page.wait_answered()


async def failed(page: OpenPage, server: FakeService, pictures: Path) -> None:
    server.script = Reply(refusal=make_status(code_pb2.RESOURCE_EXHAUSTED, "full"))
    await ask_something(page)


async def compared(page: OpenPage, server: FakeService, pictures: Path) -> None:
    await page.button("Compare").click()
    await page.ask("Hello")
    await page.wait_answered(2)


def a_tab(name: str) -> Callable[[OpenPage, FakeService, Path], Awaitable[None]]:
    async def show(page: OpenPage, server: FakeService, pictures: Path) -> None:
        await page.tab(name).click()
        await page.page.wait_for_timeout(300)

    return show


async def deploy(page: OpenPage, server: FakeService, pictures: Path) -> None:
    await page.button("Deploy private endpoint").click()


STATES = {
    "empty": empty,
    "key": key_dialog,
    "chat": chat,
    "failed": failed,
    "compared": compared,
    "api": a_tab("API"),
    "schema": a_tab("Schema"),
    "usage": a_tab("Usage"),
    "deploy": deploy,
}


@pytest.mark.parametrize("colours", ["light", "dark"])
@pytest.mark.parametrize("state", STATES)
async def test_axe_finds_nothing_serious(
    entered: OpenPage, server: FakeService, pictures: Path, state: str, colours: str
) -> None:
    await entered.page.emulate_media(color_scheme="dark" if colours == "dark" else "light")
    await expect(entered.page.locator("body")).to_have_css("background-color", DARK if colours == "dark" else LIGHT)
    await STATES[state](entered, server, pictures)
    assert await entered.violations() == []
    entered.assert_well()


async def test_axe_finds_nothing_serious_without_a_key(opened: OpenPage) -> None:
    assert await opened.violations() == []
