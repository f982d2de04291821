"""What is hostile does nothing; the page is small, asks nobody else for anything, and stays responsive."""

import json
from pathlib import Path

import pytest
from playwright.async_api import BrowserContext, expect

from bridge_setup import BridgeUnderTest, run_bridge_under_test, run_server
from fake_service import FakeService, Reply, Turn
from page.open_page import OpenPage
from spyglass.v1 import inference_pb2 as pb

MOST_BYTES = 150_000
LONGEST_TASK_MS = 100
ATTACKS = (
    "<img src=x onerror=\"window.hit='img'\">",
    "<script>window.hit='script'</script>",
    "<svg onload=\"window.hit='svg'\"><a xlink:href=\"javascript:window.hit='link'\">x</a></svg>",
    "<iframe srcdoc=\"<script>parent.hit='frame'</script>\"></iframe>",
    "[click](javascript:window.hit='md') ![x](https://evil.example/x.png) ![y](x\"onerror=\"window.hit='alt')",
    "<a href=\"javascript:window.hit='a'\" onclick=\"window.hit='on'\">click</a>",
    "<math><mtext></form><form><mglyph><style></math><img src onerror=window.hit='mx'>",
    "<form action=https://evil.example><input name=a><button>send</button></form>",
    "```js\"onmouseover=\"window.hit='code'\n</code><img src=x onerror=window.hit='fence'>\n```",
    "<https://evil.example/\"onmouseover=\"window.hit='auto'>",
    "| a |\n|---|\n| <img src=x onerror=window.hit='cell'> |",
)


async def click_all_links(page: OpenPage) -> None:
    await page.page.evaluate(
        "document.querySelectorAll('.markdown a, .call a').forEach((link) => { link.target = ''; "
        "link.addEventListener('click', (event) => event.target.href.startsWith('javascript:')"
        " || event.preventDefault()); link.click(); })"
    )
    await page.page.wait_for_timeout(300)


async def assert_unharmed(page: OpenPage) -> None:
    await click_all_links(page)
    assert await page.page.evaluate("window.hit") is None
    assert await page.page.evaluate("[...document.querySelectorAll('#page script, iframe, object, embed')].length") == 0
    assert await page.page.locator(".markdown img, .markdown form, .markdown input, .markdown svg").count() == 0
    page.assert_well()


async def test_attacks_in_an_answer_do_nothing(entered: OpenPage, server: FakeService) -> None:
    server.script = Reply(pieces=tuple(f"{attack}\n\n" for attack in ATTACKS))
    await entered.ask("Attack me")
    await entered.wait_answered()
    await expect(entered.answers.last).to_contain_text("window.hit='script'")
    links = await entered.page.evaluate("[...document.querySelectorAll('.markdown a')].map((a) => [a.rel, a.target])")
    assert links
    assert {tuple(link) for link in links} == {("noopener noreferrer nofollow", "_blank")}
    await assert_unharmed(entered)


async def test_attacks_in_a_call_and_in_a_question_do_nothing(entered: OpenPage, server: FakeService) -> None:
    async def call(turn: Turn) -> None:
        turn.accept()
        turn.begin()
        for index, attack in enumerate(ATTACKS):
            piece = pb.ToolCallDelta(index=index, id=attack, name=attack, arguments_json=attack)
            turn.send(delta=pb.Delta(tool_calls=[piece]))
        turn.send(delta=pb.Delta(finish_reason=pb.FINISH_REASON_TOOL_CALLS))
        turn.finish()

    server.script = call
    await entered.give_functions([{"name": "any", "parameters": {"type": "object"}}])
    await entered.ask(" ".join(ATTACKS))
    await entered.wait_answered()
    await expect(entered.page.locator(".call")).to_have_count(len(ATTACKS))
    await assert_unharmed(entered)


async def test_attacks_in_the_name_of_a_file_do_nothing(entered: OpenPage, pictures: Path, tmp_path: Path) -> None:
    file = tmp_path / "<img src=x onerror=window.hit='file'>.png"
    file.write_bytes((pictures / "red_circle.png").read_bytes())
    await entered.add_file(file)
    await expect(entered.page.locator(".pending-name")).to_contain_text("onerror")
    await entered.ask("What is it?")
    await entered.wait_answered()
    await assert_unharmed(entered)


async def test_attacks_in_the_name_of_the_model_do_nothing(context: BrowserContext) -> None:
    name = "<img src=x onerror=window.hit='model'>\"'$(touch x)`;</script>"
    async with run_server() as server:
        server.model.id = name
        server.model.description = ATTACKS[0]
        server.model.tags.append(ATTACKS[1])
        async with run_bridge_under_test(server, page="public") as bridge:
            await bridge.wait_ready()
            page = await OpenPage.open(context, bridge.url)
            await page.enter_key()
            await expect(page.page.get_by_role("heading", level=1)).to_have_text(name)
            for tab in ("API", "Schema", "Usage"):
                await page.tab(tab).click()
            await page.button("Deploy private endpoint").click()
            # What is copied from here runs in a shell.
            await expect(page.page.get_by_role("dialog")).to_contain_text(
                "--served-model-name '" + name.replace("'", "'\\''") + "'"
            )
            await assert_unharmed(page)


async def test_attacks_in_an_imported_conversation_do_nothing(entered: OpenPage, tmp_path: Path) -> None:
    attack = "\n\n".join(ATTACKS)
    url = "https://evil.example/x.png"
    turns = {
        "a": {
            "role": "user",
            "text": attack,
            "children": ["b"],
            "chosen": 0,
            "pictures": [{"id": attack, "name": attack, "url": url}],
        },
        "b": {
            "role": "assistant",
            "text": attack,
            "children": [],
            "chosen": -1,
            "status": "failed",
            "finishReason": attack,
            "calls": [{"id": attack, "name": attack, "arguments": attack}],
            "error": {"title": attack, "detail": attack, "needsKey": False},
            "figures": {"firstTokenMs": attack, "promptTokens": attack, "cost": "1"},
            "attention": {"images": [{"rows": attack}], "tokens": [attack]},
        },
    }
    tree = {"turns": turns, "root": {"children": ["a"], "chosen": 0}}
    lane = {"settings": {"system": attack, "temperature": 3, "detail": attack, "__proto__": {"x": 1}}, "tree": tree}
    file = tmp_path / "attack.json"
    file.write_text(json.dumps({"format": "spyglass-conversation", "version": 1, "lanes": [lane]}))
    await entered.page.get_by_label("Conversation to import").set_input_files(file)
    await expect(entered.answers.last).to_contain_text("window.hit='script'")
    await assert_unharmed(entered)


@pytest.mark.parametrize(
    "content",
    [
        "no json",
        "[]",
        '{"format": "spyglass-conversation", "version": 2}',
        '{"format": "spyglass-conversation", "version": 1, "lanes": []}',
        '{"format": "spyglass-conversation", "version": 1, "lanes": [{"settings": {}, "tree": {"root": '
        '{"children": ["a"]}, "turns": {"a": {"role": "user", "text": "x", "children": ["a"]}}}}]}',
        '{"format": "spyglass-conversation", "version": 1, "lanes": [{"settings": {}, "tree": {"root": '
        '{"children": ["a"]}, "turns": {"a": {"role": "user", "text": "x", "children": [], "pictures": '
        '[{"id": "1", "name": "x", "data": "data:text/html;base64,AAAA", "width": 1, "height": 1}]}}}}]}',
    ],
    ids=["no-json", "list", "version", "empty", "circle", "no-picture"],
)
async def test_what_is_no_conversation_is_refused(entered: OpenPage, tmp_path: Path, content: str) -> None:
    await entered.ask("I stay")
    await entered.wait_answered()
    file = tmp_path / "wrong.json"
    file.write_text(content)
    await entered.page.get_by_label("Conversation to import").set_input_files(file)
    await expect(entered.page.locator(".toolbar-problem")).to_be_visible()
    await expect(entered.asked.last).to_contain_text("I stay")


async def test_a_first_load_is_small_and_comes_from_here_alone(
    context: BrowserContext, bridge: BridgeUnderTest
) -> None:
    page = await OpenPage.open(context, bridge.url)
    await page.page.wait_for_load_state("networkidle")
    sizes = await page.page.evaluate(
        "performance.getEntries().filter((one) => one.transferSize !== undefined)"
        ".map((one) => [one.name, one.transferSize])"
    )
    assert len(sizes) > 10
    assert sum(size for _, size in sizes) < MOST_BYTES, sizes
    page.assert_well()


def long_markdown(size: int) -> str:
    """Markdown with all that it has, and with blocks that never end for long."""
    part = (
        "## A heading with `code` and **strength**\n\nA paragraph of *some* words, with [a link](https://example.org) "
        "and more words, again and again, so that lines break.\n\n- one\n- two\n  - three\n\n1. first\n2. second\n\n"
        "| a | b | c |\n|---|---|---|\n"
        + "| 1 | 2 | 3 |\n" * 8
        + "\n```python\n"
        + "def f(x):\n    return x + 1\n\n" * 6
        + "```\n\n"
        "> said by somebody\n\n"
    )
    table = "| x | y |\n|---|---|\n" + "| some | thing |\n" * 1500 + "\n"
    lines = "one line after another without an end, " * 800 + "\n\n"
    items = "".join(f"- item {number} of a long list\n" for number in range(1200)) + "\n"
    code = "```\n" + "a line of code that nobody reads\n" * 600 + "```\n\n"
    text = table + lines + items + code
    return text + part * ((size - len(text)) // len(part) + 1)


OBSERVE = """() => {
    window.tasks = [];
    new PerformanceObserver((list) => window.tasks.push(...list.getEntries().map((entry) => entry.duration)))
        .observe({type: "longtask"});
}"""
ATTEMPTS = 6
"""Beside other programs a task takes more of the processor, too, as they share its caches."""


def processor_ms(durations: list[float], trace: bytes) -> list[float]:
    """How much processor time each of a page's long tasks took: others may have kept it from going on meanwhile.

    The page itself knows which tasks are its own, and their durations in ms, by which the browser's trace has them.
    """
    events = json.loads(trace)["traceEvents"]
    tasks = [event for event in events if event["name"] == "ThreadControllerImpl::RunTask" and "tdur" in event]
    assert len(tasks) > 1000, "the trace has no tasks"
    return [
        min((task["tdur"] / 1000 for task in tasks if abs(task["dur"] / 1000 - duration) < 1.5), default=duration)
        for duration in durations
    ]


@pytest.mark.slow
async def test_200_kb_of_markdown_leave_the_page_responsive(entered: OpenPage, server: FakeService) -> None:
    text = long_markdown(200_000)
    server.script = Reply(pieces=tuple(text[at : at + 24] for at in range(0, len(text), 24)))
    await entered.page.wait_for_timeout(500)
    await entered.page.evaluate(OBSERVE)
    browser = entered.page.context.browser
    assert browser is not None
    longest = []
    for _ in range(ATTEMPTS):
        await entered.page.evaluate("window.tasks.length = 0")
        await browser.start_tracing(page=entered.page, categories=["toplevel"])
        await entered.ask("Write a book")
        await expect(entered.page.locator(".figures")).to_have_count(1, timeout=120_000)
        await expect(entered.page.locator(".markdown .block").last).to_contain_text("said by somebody", timeout=60_000)
        await entered.page.wait_for_timeout(500)
        durations = await entered.page.evaluate("window.tasks")
        longest.append(max(processor_ms(durations, await browser.stop_tracing()), default=0))
        if longest[-1] < LONGEST_TASK_MS:
            break
        await entered.button("Clear").click()
    assert min(longest) < LONGEST_TASK_MS, longest


async def test_a_long_conversation_is_whole_after_a_reload(entered: OpenPage, server: FakeService) -> None:
    server.script = Reply(pieces=(long_markdown(120_000),))
    await entered.ask("Write a book")
    await expect(entered.page.locator(".figures")).to_have_count(1, timeout=60_000)
    await entered.page.wait_for_timeout(1000)
    await entered.page.reload()
    await expect(entered.page.locator(".markdown .block").last).to_contain_text("said by somebody", timeout=60_000)
    entered.assert_well()
