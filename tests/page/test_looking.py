"""Tiles before sending, and where the model looked: drawn from what the bridge tells, which these tests script."""

import base64
import json
from pathlib import Path
from typing import Any

from playwright.async_api import Route, expect

from bridge_setup import MODEL
from page.open_page import OpenPage

CANVAS = {"tile_size": 560, "rows": 1, "columns": 2, "picture_width": 747, "picture_height": 560}
ROWS, COLUMNS = 40, 80
GRID = {"rows": ROWS, "columns": COLUMNS, "covered_rows": 40.0, "covered_columns": 53.3}


def answer_tokens(asked: list[Any], **fields: Any) -> Any:
    async def answer(route: Route) -> None:
        asked.append(route.request.post_data_json)
        told = {"count": 40, "max_model_len": 8192, "tokens": [], "estimated_cost": 1.4e-5, **fields}
        await route.fulfill(json=told)

    return answer


async def test_tiles_tokens_and_cost_are_shown_before_sending(entered: OpenPage, pictures: Path) -> None:
    asked: list[Any] = []
    await entered.page.route("**/tokenize", answer_tokens(asked, images=[CANVAS]))
    await entered.add_file(pictures / "star_and_square.png")
    await entered.question.fill("What is it?")
    preview = entered.page.get_by_role("img", name="star_and_square.png as the model sees it: 2 tiles of 560 × 560")
    await expect(preview).to_be_visible()
    await expect(entered.page.get_by_text("40 of 8,192 tokens · $0.000014")).to_be_visible()
    await entered.page.get_by_role("radio", name="low").check()
    await entered.page.wait_for_timeout(600)
    image = asked[-1]["messages"][-1]["content"][0]["image_url"]
    assert set(image) == {"width", "height", "detail"}
    assert image["detail"] == "low"
    assert await entered.violations() == []


async def test_a_server_that_cannot_count_leaves_the_picture_as_it_is(entered: OpenPage, pictures: Path) -> None:
    async def refuse(route: Route) -> None:
        await route.fulfill(status=400, json={"error": {"message": "no", "type": "x", "param": None, "code": None}})

    await entered.page.route("**/tokenize", refuse)
    await entered.add_file(pictures / "star_and_square.png")
    await entered.question.fill("What is it?")
    await entered.page.wait_for_timeout(600)
    await expect(entered.page.locator(".pending img")).to_be_visible()
    await expect(entered.page.get_by_text("Enter sends")).to_be_visible()


def attention_map(row: int, column: int) -> dict[str, Any]:
    """All attention in 8 by 8 patches at this place."""
    data = bytearray(ROWS * COLUMNS)
    for y in range(row, row + 8):
        for x in range(column, column + 8):
            data[y * COLUMNS + x] = 255
    return {"scale": 0.02, "data": base64.b64encode(bytes(data)).decode()}


def stream(*tokens: tuple[str, list[Any]]) -> str:
    """A stream of these tokens with their maps."""
    head = {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": MODEL}
    lines = []
    for text, maps in tokens:
        attention = {"images": [GRID], "tokens": [{"token": text, "maps": maps}]}
        choice = {"index": 0, "delta": {"content": text}, "finish_reason": None, "image_attention": attention}
        lines.append({**head, "choices": [choice]})
    lines.append({**head, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    return "".join(f"data: {json.dumps(line)}\n\n" for line in lines) + "data: [DONE]\n\n"


async def test_where_it_looked_is_drawn_for_chosen_tokens(entered: OpenPage, pictures: Path) -> None:
    asked: list[Any] = []
    tokens: list[tuple[str, list[Any]]] = [
        ("A", [attention_map(16, 8)]),
        (" red", [attention_map(16, 40)]),
        (" star", [None]),
        (".", []),
    ]

    async def answer(route: Route) -> None:
        asked.append(route.request.post_data_json)
        await route.fulfill(body=stream(*tokens), content_type="text/event-stream")

    await entered.page.route("**/v1/chat/completions", answer)
    await entered.page.get_by_label("Show where it looked").check()
    await entered.add_file(pictures / "star_and_square.png")
    await expect(entered.page.get_by_role("button", name="Remove star_and_square.png")).to_be_visible()
    await entered.ask("What is it?")
    await entered.wait_answered()
    assert asked[0]["include"] == ["image_attention"]
    await entered.page.get_by_text("Where it looked", exact=True).first.click()
    overlay = entered.page.locator(".looked-pictures canvas")
    await expect(overlay).to_have_attribute("aria-label", "star_and_square.png, most attention at the centre left")
    first = await overlay.evaluate("(canvas) => canvas.toDataURL()")
    token = entered.page.locator(".token")
    await token.nth(1).click()
    await expect(overlay).to_have_attribute("aria-label", "star_and_square.png, most attention at the centre right")
    assert await overlay.evaluate("(canvas) => canvas.toDataURL()") != first
    await entered.page.keyboard.press("ArrowRight")
    await entered.page.mouse.move(0, 0)
    await expect(token.nth(2)).to_be_focused()
    await expect(overlay).to_have_attribute("aria-label", "star_and_square.png: no attention was kept for this choice")
    await token.nth(0).click()
    await token.nth(1).click(modifiers=["Shift"])
    await entered.page.mouse.move(0, 0)
    await expect(entered.page.get_by_text("2 tokens: “A red”")).to_be_visible()
    await entered.page.get_by_role("button", name="Sentence").click()
    await expect(entered.page.get_by_text("4 tokens: “A red star.”")).to_be_visible()
    assert await entered.violations() == []
