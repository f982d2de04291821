"""The playground: asking, watching, stopping, branches, pictures, keys and errors."""

import asyncio
import base64
import json
from pathlib import Path

import pytest
from google.rpc import code_pb2
from playwright.async_api import BrowserContext, Page, expect

from bridge_setup import MODEL, BridgeUnderTest
from fake_service import PATIENCE_S, FakeService, Reply, Turn, until_cancelled
from page.open_page import OpenPage
from spyglass.v1 import chat_pb2
from spyglass.v1 import inference_pb2 as pb
from spyglass_common.status import make_status

KEPT = """async () => {
    const { createStore, get } = await import("/page/vendor/idb-keyval.js");
    return JSON.stringify((await get("conversations", createStore("spyglass", "playground"))) ?? null);
}"""
"""What the browser keeps of the conversation."""


def said(turn: Turn) -> list[str]:
    """The texts of a generation's messages."""
    return [part.text for message in turn.start.chat.messages for part in message.parts if part.HasField("text")]


async def test_a_text_is_answered_with_figures(entered: OpenPage) -> None:
    await entered.ask("Hello there")
    await entered.wait_answered()
    await expect(entered.answers.last).to_contain_text("Hello there")
    for figure in ("First token", "Prompt", "Answer", "Cost", "Cached"):
        await expect(entered.answers.last).to_contain_text(figure)
    await expect(entered.page.get_by_text("In all 1 answer")).to_be_visible()
    entered.assert_well()


async def test_the_whole_conversation_is_sent_with_its_settings(entered: OpenPage, server: FakeService) -> None:
    await entered.page.get_by_label("System prompt").fill("Be brief.")
    await entered.page.get_by_label("Temperature, as a number").fill("0.25")
    await entered.page.get_by_label("Seed").fill("7")
    await entered.page.get_by_label("Max tokens").fill("33")
    await entered.page.get_by_label("Stop strings, one a line").fill("END\nSTOP")
    await entered.ask("one")
    await entered.wait_answered()
    await entered.ask("two")
    await entered.wait_answered(2)
    start = server.turns[-1].start
    assert said(server.turns[-1]) == ["Be brief.", "one", "one ", "two"]
    assert (start.model, start.sampling.temperature, start.sampling.seed) == (MODEL, 0.25, 7)
    assert (start.stopping.max_tokens, list(start.stopping.strings)) == (33, ["END", "STOP"])


async def test_partial_text_is_seen_while_it_streams(entered: OpenPage, server: FakeService) -> None:
    gate = asyncio.Event()
    server.script = Reply(pieces=("first ", "second"), hang_after=1, gate=gate)
    gate.set()
    await entered.ask("Go")
    await expect(entered.answers.last).to_contain_text("first")
    await expect(entered.answers.last).to_have_attribute("aria-busy", "true")
    await expect(entered.button("Stop")).to_be_visible()
    await entered.button("Stop").click()
    await entered.wait_answered()


@pytest.mark.parametrize("way", ["button", "Escape"])
async def test_stop_cancels_on_the_server_and_keeps_what_came(entered: OpenPage, server: FakeService, way: str) -> None:
    server.script = until_cancelled
    await entered.ask("Go on and on")
    await expect(entered.answers.last).to_contain_text("first")
    if way == "button":
        await entered.button("Stop").click()
    else:
        await entered.page.keyboard.press("Escape")
    async with asyncio.timeout(PATIENCE_S):
        await server.turns[0].cancelled.wait()
    await entered.wait_answered()
    await expect(entered.answers.last).to_contain_text("first")
    await expect(entered.answers.last).to_contain_text("Stopped.")


async def pictures_of(turn: Turn) -> list[bytes]:
    """The pictures that came with a generation, inline or in pieces."""
    return [
        part.image.data or turn.images.get(index, b"")
        for index, part in enumerate(
            part for message in turn.start.chat.messages for part in message.parts if part.HasField("image")
        )
    ]


async def test_pictures_by_file_several_in_a_turn_and_over_turns(
    entered: OpenPage, server: FakeService, pictures: Path
) -> None:
    circle, seven = pictures / "red_circle.png", pictures / "seven.png"
    await entered.add_file(circle, seven)
    await expect(entered.page.get_by_role("button", name="Remove seven.png")).to_be_visible()
    await entered.ask("What are these?")
    await entered.wait_answered()
    await expect(entered.asked.last.get_by_role("img", name="red_circle.png")).to_be_visible()
    await entered.ask("And which is round?")
    await entered.wait_answered(2)
    for turn in server.turns:
        assert await pictures_of(turn) == [circle.read_bytes(), seven.read_bytes()]
    entered.assert_well()


async def transfer(page: Page, name: str, content: bytes, event: str, target: str) -> None:
    """Pastes or drops a picture, as the browser tells the page of it."""
    await page.evaluate(
        """([data, name, event, target]) => {
            const bytes = Uint8Array.from(atob(data), (character) => character.charCodeAt(0));
            const transfer = new DataTransfer();
            transfer.items.add(new File([bytes], name, {type: "image/png"}));
            const options = {bubbles: true, cancelable: true};
            const told = event === "paste"
                ? new ClipboardEvent("paste", {...options, clipboardData: transfer})
                : new DragEvent(event, {...options, dataTransfer: transfer});
            document.querySelector(target).dispatchEvent(told);
        }""",
        [base64.b64encode(content).decode(), name, event, target],
    )


@pytest.mark.parametrize(("event", "target"), [("paste", "#question"), ("drop", "main")])
async def test_a_picture_by_paste_and_by_drop(
    entered: OpenPage, server: FakeService, pictures: Path, event: str, target: str
) -> None:
    circle = pictures / "red_circle.png"
    await transfer(entered.page, circle.name, circle.read_bytes(), event, target)
    await expect(entered.page.get_by_role("button", name="Remove red_circle.png")).to_be_visible()
    await entered.ask("What is it?")
    await entered.wait_answered()
    assert await pictures_of(server.turns[0]) == [circle.read_bytes()]


async def test_a_picture_at_an_address_is_named_and_not_loaded(entered: OpenPage) -> None:
    await entered.button("Add a picture by address").click()
    address = entered.page.get_by_label("Address of a picture")
    await address.fill("javascript:alert(1)")
    await entered.button("Add").click()
    await expect(entered.page.get_by_text("This is not an http or https address.")).to_be_visible()
    await address.fill("https://pictures.example/cat.png")
    await entered.button("Add").click()
    await expect(entered.page.get_by_role("button", name="Remove pictures.example")).to_be_visible()
    entered.assert_well()


async def test_what_is_no_picture_is_refused_in_words(entered: OpenPage, tmp_path: Path) -> None:
    file = tmp_path / "notes.png"
    file.write_text("no picture")
    await entered.add_file(file)
    await expect(entered.page.get_by_text("notes.png is not a picture that this browser can read.")).to_be_visible()


async def test_edit_and_retry_keep_both_branches(entered: OpenPage, server: FakeService) -> None:
    await entered.ask("red")
    await entered.wait_answered()
    await entered.asked.last.get_by_role("button", name="Edit").click()
    await entered.page.get_by_label("Your words").fill("blue")
    await entered.button("Ask again").click()
    await expect(entered.answers.last).to_contain_text("blue")
    await entered.wait_answered()
    await entered.answers.last.get_by_role("button", name="Retry").click()
    await expect(entered.answers.last.get_by_role("group", name="Branches")).to_contain_text("2/2")
    await entered.wait_answered()
    assert [said(turn) for turn in server.turns] == [["red"], ["blue"], ["blue"]]
    await entered.answers.last.get_by_role("button", name="Earlier branch").click()
    await expect(entered.answers.last.get_by_role("group", name="Branches")).to_contain_text("1/2")
    await entered.asked.last.get_by_role("button", name="Earlier branch").click()
    await expect(entered.asked.last).to_contain_text("red")
    await expect(entered.answers.last).to_contain_text("red")
    await entered.asked.last.get_by_role("button", name="Later branch").click()
    await expect(entered.answers.last).to_contain_text("blue")


async def test_a_reload_keeps_the_chat_with_its_pictures_and_the_key(entered: OpenPage, pictures: Path) -> None:
    await entered.add_file(pictures / "red_circle.png")
    await expect(entered.page.get_by_role("button", name="Remove red_circle.png")).to_be_visible()
    await entered.ask("Keep this")
    await entered.wait_answered()
    async with asyncio.timeout(PATIENCE_S):
        while '"done"' not in await entered.page.evaluate(KEPT):
            await entered.page.wait_for_timeout(50)
    await entered.page.reload()
    await expect(entered.asked.last).to_contain_text("Keep this")
    await expect(entered.asked.last.get_by_role("img", name="red_circle.png")).to_be_visible()
    await expect(entered.answers.last).to_contain_text("Keep this")
    await entered.ask("More")
    await entered.wait_answered(2)


async def test_the_key_is_kept_for_the_session_only_and_travels_in_a_header_only(
    entered: OpenPage, context: BrowserContext
) -> None:
    await entered.ask("Hello")
    await entered.wait_answered()
    kept = "JSON.stringify([{...localStorage}, document.cookie, location.href])"
    assert "user-key" not in await entered.page.evaluate(kept)
    assert await context.cookies() == []
    assert [request.url for request in entered.requests if "user-key" in request.url] == []
    bodies = [request.post_data or "" for request in entered.requests]
    assert [body for body in bodies if "user-key" in body] == []
    other = await OpenPage.open(context, entered.url)
    await expect(other.button("Enter API key").first).to_be_visible()


async def test_a_wrong_key_is_explained(opened: OpenPage) -> None:
    await opened.button("Enter API key").first.click()
    await opened.page.get_by_label("API key", exact=True).fill("sk-wrong")
    await opened.button("Use this key").click()
    await expect(opened.page.get_by_role("alert")).to_contain_text("The server does not know this key")
    await opened.page.keyboard.press("Escape")
    await expect(opened.page.get_by_role("dialog")).to_have_count(0)


async def test_who_asks_without_a_key_is_asked_for_it_and_then_answered(opened: OpenPage) -> None:
    await opened.ask("Hello")
    await opened.page.get_by_label("API key", exact=True).fill("user-key")
    await opened.button("Use this key").click()
    await opened.wait_answered()
    await expect(opened.answers.last).to_contain_text("Hello")


async def test_a_key_that_is_revoked_is_explained_where_one_asks(entered: OpenPage, server: FakeService) -> None:
    server.user_keys.clear()
    await asyncio.sleep(2.1)  # so long the bridge may remember a key
    await entered.ask("Hello")
    await expect(entered.answers.last).to_contain_text("The server does not know this key")
    await expect(entered.answers.last.get_by_role("button", name="Enter API key")).to_be_visible()


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (code_pb2.RESOURCE_EXHAUSTED, "Too much at once: try again"),
        (code_pb2.UNAVAILABLE, "The model is not available: try again"),
        (code_pb2.INVALID_ARGUMENT, "The server refused the request"),
    ],
)
async def test_an_error_is_readable(entered: OpenPage, server: FakeService, code: int, words: str) -> None:
    server.script = Reply(refusal=make_status(code, "the reason in words"))
    await entered.ask("Hello")
    await entered.wait_answered()
    await expect(entered.answers.last.get_by_role("alert")).to_contain_text(words)


async def test_an_answer_that_breaks_off_says_so_and_keeps_what_came(entered: OpenPage, server: FakeService) -> None:
    failure = make_status(code_pb2.INTERNAL, "it broke")
    server.script = Reply(pieces=("half ", "rest"), failure=failure, fail_after=1)
    await entered.ask("Hello")
    await entered.wait_answered()
    await expect(entered.answers.last).to_contain_text("half")
    await expect(entered.answers.last.get_by_role("alert")).to_be_visible()


async def test_calls_are_shown_and_their_results_sent(entered: OpenPage, server: FakeService) -> None:
    async def call(turn: Turn) -> None:
        turn.accept()
        turn.begin()
        if turn.start.chat.messages[-1].tool_call_id:
            turn.say("It is sunny.", reason=pb.FINISH_REASON_STOP)
        else:
            piece = pb.ToolCallDelta(index=0, id="call-1", name="get_weather", arguments_json='{"city": "Paris"}')
            turn.send(delta=pb.Delta(tool_calls=[piece], finish_reason=pb.FINISH_REASON_TOOL_CALLS))
        turn.finish()

    server.script = call
    await entered.give_functions("nonsense")
    await expect(
        entered.page.get_by_text("This is not a JSON list of functions, each with a name", exact=True)
    ).to_be_visible()
    await entered.functions.fill(json.dumps([{"name": "get_weather", "parameters": {"type": "object"}}]))
    await entered.ask("How is the weather?")
    card = entered.page.get_by_label("Call of get_weather")
    await expect(card).to_contain_text('"city": "Paris"')
    await entered.page.get_by_label("Result of get_weather").fill("sunny")
    await entered.button("Send result").click()
    await expect(entered.answers.last).to_contain_text("It is sunny.")
    await entered.wait_answered(2)
    [result] = [one for one in server.turns[-1].start.chat.messages if one.role == chat_pb2.ROLE_TOOL]
    assert (result.tool_call_id, result.parts[0].text) == ("call-1", "sunny")


async def test_two_settings_answer_side_by_side(entered: OpenPage, server: FakeService) -> None:
    await entered.button("Compare").click()
    await entered.page.get_by_label("Temperature, as a number").fill("1.5")
    await entered.ask("Both of you")
    await entered.wait_answered(2)
    assert sorted(turn.start.sampling.temperature for turn in server.turns) == [0.7, 1.5]
    for name in ("Conversation A", "Conversation B"):
        await expect(entered.page.get_by_label(name)).to_contain_text("Both of you")
    await entered.button("Compare").click()
    await expect(entered.answers).to_have_count(1)


async def test_clear_can_be_undone(entered: OpenPage) -> None:
    await entered.ask("Something")
    await entered.wait_answered()
    await entered.button("Clear").click()
    await expect(entered.answers).to_have_count(0)
    await entered.button("Undo").click()
    await expect(entered.answers).to_have_count(1)


async def test_a_conversation_is_exported_and_imported_with_its_figures(
    entered: OpenPage, pictures: Path, tmp_path: Path
) -> None:
    await entered.add_file(pictures / "red_circle.png")
    await expect(entered.page.get_by_role("button", name="Remove red_circle.png")).to_be_visible()
    await entered.ask("Export me")
    await entered.wait_answered()
    async with entered.page.expect_download() as downloading:
        await entered.button("Export").click()
    file = tmp_path / "conversation.json"
    await (await downloading.value).save_as(file)
    [lane] = json.loads(file.read_text())["lanes"]
    [figures] = [turn["figures"] for turn in lane["tree"]["turns"].values() if turn["role"] == "assistant"]
    assert figures["promptTokens"] == 7
    await entered.button("Clear").click()
    await entered.page.get_by_label("Conversation to import").set_input_files(file)
    await expect(entered.asked.last).to_contain_text("Export me")
    await expect(entered.asked.last.get_by_role("img", name="red_circle.png")).to_be_visible()
    await expect(entered.answers.last).to_contain_text("First token")


async def test_an_answer_held_to_a_schema_is_shown_as_json(entered: OpenPage, server: FakeService) -> None:
    server.script = Reply(pieces=('{"name":', '"Ada"}'))
    await entered.page.get_by_text("JSON schema", exact=True).click()
    await entered.page.get_by_label("The answer is held to this schema").fill('{"type": "object"}')
    await entered.ask("Who?")
    await entered.wait_answered()
    await expect(entered.answers.last.locator("pre")).to_have_text('{\n  "name": "Ada"\n}')
    assert json.loads(server.turns[0].start.format.json_schema.schema_json) == {"type": "object"}


async def test_the_tokens_of_a_prompt_are_told_while_one_types(entered: OpenPage, bridge: BridgeUnderTest) -> None:
    await entered.question.fill("How long am I?")
    await expect(entered.page.get_by_text("1 of 32,768 tokens")).to_be_visible()
