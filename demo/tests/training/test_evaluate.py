"""The script asks a real HTTP server, judges its answers and prints the right table."""

import asyncio
import base64
import io
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from PIL import Image

import evaluate
from spyglass_training.exam.judge import Example

COLOURS = ("red", "green", "blue", "yellow")


class Answerer:
    """A server on a port of its own that knows the colour red, and refuses yellow pictures."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.url = ""

    async def models(self, request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [_model("seer"), _model("blind")]})

    async def chat(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.bodies.append(body)
        uri = body["messages"][0]["content"][0]["image_url"]["url"]
        picture = Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGB")
        red, green, _ = picture.getpixel((0, 0))  # type: ignore[misc]
        if red > 200 and green > 200:
            return web.json_response({"error": {"message": "too yellow"}}, status=400)
        message = {"role": "assistant", "content": "Red."}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        return web.json_response(
            {"id": "1", "object": "chat.completion", "created": 1, "model": body["model"], "choices": [choice]}
        )


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 1, "owned_by": "nobody"}


async def _serve(answerer: Answerer, is_up: threading.Event, stop: asyncio.Event) -> None:
    app = web.Application()
    app.add_routes([web.get("/v1/models", answerer.models), web.post("/v1/chat/completions", answerer.chat)])
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    answerer.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    is_up.set()
    await stop.wait()
    await runner.cleanup()


@pytest.fixture
def answerer() -> Iterator[Answerer]:
    served, is_up = Answerer(), threading.Event()
    loop, stop = asyncio.new_event_loop(), asyncio.Event()
    thread = threading.Thread(target=lambda: loop.run_until_complete(_serve(served, is_up, stop)))
    thread.start()
    assert is_up.wait(20)
    yield served
    loop.call_soon_threadsafe(stop.set)
    thread.join()
    loop.close()


def plain_hand(kind: str, seed: int) -> Example:
    """Whole pictures of one colour; one in four is red."""
    colour = COLOURS[seed % 4]
    return Example(kind, Image.new("RGB", (20, 10), colour), "What colour is it?", frozenset({colour}))


def red_hand(kind: str, seed: int) -> Example:
    return Example(kind, Image.new("RGB", (20, 10), "red"), "What colour is it?", frozenset({"red"}))


@pytest.fixture(autouse=True)
def hands(monkeypatch: pytest.MonkeyPatch) -> None:
    made = {"own": red_hand, "other": plain_hand}
    monkeypatch.setattr(evaluate, "load_hand", made.__getitem__)


def test_the_table_tells_what_was_right(answerer: Answerer, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    mistakes = tmp_path / "mistakes.json"
    status = evaluate.main(
        [
            "--url",
            answerer.url,
            "--count",
            "8",
            "--seed",
            "400",
            "--kinds",
            "colour,pick colour",
            "--save",
            str(mistakes),
        ]
    )
    printed = capsys.readouterr()
    assert status == 1
    assert "| kind | own pictures % | other hand % | bar | difference |" in printed.out
    assert "| colour | 100.0 | 33.3 | >= 95 | -66.7 |" in printed.out
    assert "| pick colour | 100.0 | 33.3 | aim 85 | -66.7 |" in printed.out
    assert "32 questions asked, 4 requests failed." in printed.out
    assert "too yellow" in printed.out
    assert "32 of 32 asked, 20 right" in printed.err
    saved = json.loads(mistakes.read_text())
    assert [(one["kind"], one["seed"], one["expected"]) for one in saved[:3]] == [
        ("colour", 401, ["green"]),
        ("colour", 402, ["blue"]),
        ("colour", 403, ["yellow"]),
    ]
    assert saved[0]["answer"] == "Red."
    assert "too yellow" in saved[2]["error"]
    assert len(saved) == 12


def test_questions_are_asked_greedily_with_png_and_jpeg(answerer: Answerer) -> None:
    status = evaluate.main(["--url", answerer.url, "--count", "4", "--hand", "own", "--kinds", "colour"])
    assert status == 0
    assert {(body["model"], body["temperature"], body["max_tokens"]) for body in answerer.bodies} == {("seer", 0, 48)}
    uris = [body["messages"][0]["content"][0]["image_url"]["url"] for body in answerer.bodies]
    assert sorted(uri.partition(";")[0] for uri in uris) == ["data:image/jpeg"] + ["data:image/png"] * 3
    assert answerer.bodies[0]["messages"][0]["content"][1] == {"type": "text", "text": "What colour is it?"}


def test_another_model_may_be_asked(answerer: Answerer, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate.main(["--url", answerer.url, "--count", "1", "--hand", "own", "--kinds", "word", "--model", "blind"])
    assert answerer.bodies[0]["model"] == "blind"
    assert "| word | 100.0 |  |  |  |" in capsys.readouterr().out


def test_a_server_that_is_not_there_is_named(unused_tcp_port: int) -> None:
    with pytest.raises(SystemExit, match="make run"):
        evaluate.main(["--url", f"http://127.0.0.1:{unused_tcp_port}", "--count", "1"])


def test_pictures_are_shown(tmp_path: Path) -> None:
    assert evaluate.main(["--count", "2", "--kinds", "pick colour", "--show", str(tmp_path), "--seed", "4"]) == 0
    with Image.open(tmp_path / "own-pick-colour-4.png") as picture:
        assert picture.size == (20, 10)
    assert "other-pick-colour-5.png\tWhat colour is it?\tgreen" in (tmp_path / "questions.tsv").read_text()


def test_unknown_kinds_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        evaluate.main(["--kinds", "smell"])
    assert "no such kind: smell" in capsys.readouterr().err
