"""`spyglass chat` in a terminal, against a fake server: what a person types and sees."""

import asyncio
import io
import json
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from itertools import pairwise
from pathlib import Path

import pytest
from google.rpc import code_pb2
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console

from client.terminal import Terminal, terminal
from fake_service import FakeService, Script, Turn, repeat, until_cancelled
from pictures import encoded
from spyglass.v1 import chat_pb2
from spyglass.v1 import inference_pb2 as pb
from spyglass_client.chat.markdown import MarkdownWriter
from spyglass_common.status import make_status

Chat = Callable[..., AbstractAsyncContextManager[Terminal]]

CTRL_C, CTRL_D, CTRL_R, ALT_ENTER = "\x03", "\x04", "\x12", "\x1b\r"

DOCUMENT = """# Tea

It is *made* of **leaves**, see [there](https://example.org/tea) and <details>.
Its second line.

## Needed
- a pot
- leaves
  1. green
  2. black

     with more to say

2. two
3. three

| kind | °C |
|------|---:|
| green | 75 |

```python
def brew():

    return "tea"
```
> a quotation
---
The end
===

[1]: https://example.org/1
"""


@pytest.fixture
def chat(service: FakeService) -> Chat:
    """Runs `spyglass chat` in a terminal."""

    @asynccontextmanager
    async def run(*words: str) -> AsyncIterator[Terminal]:
        environ = {name: value for name, value in os.environ.items() if not name.startswith("SPYGLASS_")}
        command = (sys.executable, "-m", "spyglass_client", "chat", "--grpc", service.target, "--api-key", "sk-test")
        async with terminal([*command, *words], environ) as shown:
            yield shown

    return run


def says(text: str, pieces: int = 3) -> Script:
    """A script that answers with a text, so many characters at a time."""

    async def script(turn: Turn) -> None:
        turn.accept()
        turn.begin()
        for start in range(0, len(text), pieces):
            turn.say(text[start : start + pieces])
        turn.say("", reason=pb.FINISH_REASON_STOP)
        turn.finish()

    return script


def said(turn: Turn) -> list[tuple[int, list[str | bytes]]]:
    """The conversation that a request holds."""
    return [
        (message.role, [part.text or part.image.data for part in message.parts]) for message in turn.start.chat.messages
    ]


SYSTEM, USER, ASSISTANT = chat_pb2.ROLE_SYSTEM, chat_pb2.ROLE_USER, chat_pb2.ROLE_ASSISTANT


async def asked_for(shown: Terminal) -> None:
    """Waits until the next question is asked for, and nothing is typed."""
    await shown.until(lambda text: text.endswith("› Ask something, or /help"))


async def enter(shown: Terminal, line: str) -> None:
    """Types a line where it is asked for, and waits until the next one is."""
    await asked_for(shown)
    shown.type(line)
    await shown.until(lambda text: not text.endswith("› Ask something, or /help"))
    shown.type("\r")
    await asked_for(shown)


async def test_a_conversation(chat: Chat, service: FakeService) -> None:
    async with chat("--system", "Be short.", "--temperature", "0") as shown:
        await shown.until("spyglass-demo at 127.0.0.1")
        await enter(shown, "one question")
        assert "[7 (2 cached) + 3 tokens, $0.500000]" in shown.text
        await enter(shown, "two" + ALT_ENTER + "lines")
        assert "› two\n  lines\ntwo lines\n[7" in shown.text
        shown.type(CTRL_D)
        assert await shown.end() == 0
    assert said(service.turns[1]) == [
        (SYSTEM, ["Be short."]),
        (USER, ["one question"]),
        (ASSISTANT, ["one question "]),
        (USER, ["two\nlines"]),
    ]
    assert all(turn.start.sampling.HasField("temperature") for turn in service.turns)


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A folder whose name leaves room in a line of the terminal."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


async def test_pictures_and_files(chat: Chat, service: FakeService, short_path: Path) -> None:
    red, blue = encoded(Image.new("RGB", (60, 20), "red")), encoded(Image.new("RGB", (20, 20), "blue"))
    (short_path / "red one.png").write_bytes(red)
    (short_path / "blue.png").write_bytes(blue)
    (short_path / "notes.md").write_text("some ```text```\n")
    async with chat("--image", str(short_path / "red one.png")) as shown:
        await asked_for(shown)
        assert f"red one.png  60 × 20, {len(red)} bytes" in shown.text
        assert "ff0000" in shown.backgrounds()
        shown.type("/im\t")
        await shown.until(lambda text: text.endswith("› /image"))
        shown.type(f"{short_path}/bl\t")
        await shown.until("/blue.png")
        shown.type("\r")
        await asked_for(shown)
        assert f"blue.png  20 × 20, {len(blue)} bytes" in shown.text
        assert "0000ff" in shown.backgrounds()
        await enter(shown, f"/file {short_path}/notes.md")
        assert "notes.md  16 characters" in shown.text
        await enter(shown, f"/file {short_path}/blue.png")
        assert "blue.png is not UTF-8 text" in shown.text
        await enter(shown, f"/image {short_path}/notes.md")
        assert "notes.md is not a readable picture" in shown.text
        await enter(shown, "/image none.png")
        assert "none.png: No such file or directory" in shown.text
        await enter(shown, "/image ~nobody-here/none.png")
        assert "~nobody-here/none.png: No such file or directory" in shown.text
        await enter(shown, "What is it?")
        await enter(shown, f"/file '{short_path}/notes.md'")
        await enter(shown, "/detach")
        await enter(shown, "And now?")
        shown.type("/exit\r")
        assert await shown.end() == 0
    notes = "notes.md:\n````\nsome ```text```\n````\n\n"
    first = (USER, [red, blue, notes, "What is it?"])
    assert said(service.turns[1]) == [first, (ASSISTANT, ["What is it? "]), (USER, ["And now?"])]


async def test_commands(chat: Chat, service: FakeService) -> None:
    async with chat() as shown:
        await enter(shown, "/help")
        assert "Ctrl-C stops an answer" in shown.text
        await enter(shown, "/unknown")
        assert "There is no command /unknown" in shown.text
        await enter(shown, "/retry")
        assert "There is no question yet" in shown.text
        await enter(shown, "/system Be kind.")
        assert "The system prompt is set" in shown.text
        await enter(shown, "q")
        await enter(shown, "/retry")
        await enter(shown, "/new")
        assert "A new conversation" in shown.text
        await enter(shown, "/system")
        assert "There is no system prompt" in shown.text
        await enter(shown, "r")
    first = [(SYSTEM, ["Be kind."]), (USER, ["q"])]
    assert [said(turn) for turn in service.turns] == [first, first, [(USER, ["r"])]]


async def test_a_question_is_found_again_by_search(chat: Chat, service: FakeService) -> None:
    async with chat() as shown:
        await enter(shown, "the first question")
        shown.type(CTRL_R + "first\r")
        await shown.until(lambda text: text.endswith("› the first question"))
        shown.type("\r")
        await asked_for(shown)
    assert said(service.turns[1])[-1] == (USER, ["the first question"])


def waiting(may_end: asyncio.Event, end: Script | None = None) -> Script:
    """A script that says one word and waits before it ends, well or as another one does."""

    async def script(turn: Turn) -> None:
        turn.accept()
        turn.say("first ")
        await may_end.wait()
        if end is not None:
            await end(turn)
            return
        turn.say("", reason=pb.FINISH_REASON_STOP)
        turn.finish()

    return script


async def full(turn: Turn) -> None:
    """Has no room."""
    turn.finish(make_status(code_pb2.RESOURCE_EXHAUSTED, "the queue \x1b[2Jis full", "QUEUE_FULL", retry_after_s=3))


@pytest.mark.parametrize(
    ("typed", "end", "question"),
    [
        ("next question\r", None, "next question"),
        ("\x1b[200~two\rlines\x1b[201~\r", None, "two\nlines"),
        ("another\r", full, "another"),
    ],
    ids=["typed", "pasted", "before a failure"],
)
async def test_what_is_typed_during_an_answer_is_the_next_question(
    chat: Chat, service: FakeService, typed: str, end: Script | None, question: str
) -> None:
    service.script = waiting(may_end := asyncio.Event(), end)
    async with chat() as shown:
        await asked_for(shown)
        shown.type("q\r")
        await shown.until("first")
        shown.type(typed)
        service.script = repeat
        may_end.set()
        lines, answer = question.replace("\n", "\n  "), question.replace("\n", " ")
        await shown.until(f"› {lines}\n{answer}\n[7")
    assert said(service.turns[1])[-1] == (USER, [question])


async def test_keys_disturb_no_answer_to_one_question(chat: Chat, service: FakeService) -> None:
    service.script = waiting(asked := asyncio.Event())
    async with chat("q") as shown:
        await shown.until("first")
        shown.type("keys\r")
        asked.set()
        assert await shown.end() == 0
        await shown.until("$0.500000]")
        assert shown.text == "first\n[7 (2 cached) + 3 tokens, $0.500000]"


async def test_ctrl_c_stops_the_answer_also_of_a_server_that_goes_on(chat: Chat, service: FakeService) -> None:
    service.script = until_cancelled
    async with chat() as shown:
        await asked_for(shown)
        shown.type(CTRL_C)
        await shown.until("Ctrl-D leaves")
        await asked_for(shown)
        shown.type("q\r")
        await shown.until("first")
        shown.type(CTRL_C)
        await shown.until("$0.500000 (stopped)]")
        await asked_for(shown)
        service.script = deaf
        shown.type("r\r")
        await shown.until("deaf")
        shown.type(CTRL_C)
        await asyncio.wait_for(service.turns[1].cancelled.wait(), 30)
        shown.type(CTRL_C)
        await shown.until("the server does not end the answer")
        await shown.until(lambda text: text.endswith("› r"))
    assert said(service.turns[1]) == [(USER, ["q"]), (ASSISTANT, ["first "]), (USER, ["r"])]


async def deaf(turn: Turn) -> None:
    """Never ends, whatever is asked of it."""
    turn.accept()
    turn.begin()
    turn.say("deaf ")


async def test_a_question_that_failed_can_be_sent_again(chat: Chat, service: FakeService) -> None:
    async with chat("--model", "spyglass-demo") as shown:
        await enter(shown, "a good one")
        service.script = full
        await asked_for(shown)
        shown.type("my question\r")
        await shown.until(lambda text: text.count("› my question") == 2)
        assert "the queue �[2Jis full; try again in 3 s" in shown.text
        assert shown.colours_of("the queue") == {"red"}
        service.script = repeat
        shown.type("\x15")  # takes the line away
        await enter(shown, "/retry")
    assert said(service.turns[-1]) == [(USER, ["a good one"]), (ASSISTANT, ["a good one "]), (USER, ["my question"])]


async def test_markdown_looks_like_what_it_means(chat: Chat, service: FakeService) -> None:
    service.script = says(DOCUMENT)
    async with chat("q") as shown:
        assert await shown.end() == 0
        await shown.until("$0.500000]")
        assert shown.text.startswith(
            "Tea\n\nIt is made of leaves, see there (https://example.org/tea) and <details>.\nIts second line.\n\n"
            "Needed\n\n • a pot\n • leaves"
        )
        assert shown.text.endswith(
            "▌ a quotation\n\n"
            + "-" * 100
            + "\n\nThe end\n\n[1]: https://example.org/1\n[7 (2 cached) + 3 tokens, $0.500000]"
        )
        assert shown.colours_of("def") == {"brightblue"}


async def test_tables_and_pictures_lose_nothing(chat: Chat, service: FakeService) -> None:
    long = "z" * 150
    service.script = says(
        f"| a | b |\r\n|---|---|\r\n| {long} | 日本語の長い説明 |\r\n\r\n![alt](https://example.org/p.png)\r\n"
    )
    async with chat("q") as shown:
        assert await shown.end() == 0
        await shown.until("$0.500000]")
        assert shown.text.count("z") == 150
        assert "alt (https://example.org/p.png)" in shown.text
        assert "�" not in shown.text


async def test_an_answer_is_cut_off(chat: Chat, service: FakeService) -> None:
    service.script = cut_off
    async with chat("q") as shown:
        await shown.until("(cut off at its longest)]")
        assert await shown.end() == 0
    async with chat("--json-schema", "{}", "q") as shown:
        await shown.until("spyglass: the answer is cut off before it has its shape")
        assert await shown.end() == 1


async def cut_off(turn: Turn) -> None:
    """Ends with max_tokens."""
    turn.accept()
    turn.say("some words", reason=pb.FINISH_REASON_LENGTH)
    turn.finish()


async def test_nothing_from_a_model_controls_the_terminal(chat: Chat, service: FakeService) -> None:
    service.script = says("a\x1b[2Jb \x1b]0;title\x07 \x9b1mc")
    async with chat("q") as shown:
        await shown.until("a�[2Jb �]0;title� �1mc")
    async with chat("--json-schema", '{"type": "object"}', "q") as shown:
        await shown.until("a�[2Jb �]0;title� �1mc")


async def test_answers_held_to_a_schema(chat: Chat, service: FakeService, tmp_path: Path) -> None:
    service.script = says('{"**a**": 1}')
    (tmp_path / "schema.json").write_text('{"type": "object"}')
    async with chat("--json-schema", str(tmp_path / "schema.json")) as shown:
        await enter(shown, "q")
        assert '{"**a**": 1}' in shown.text
    assert json.loads(service.turns[0].start.format.json_schema.schema_json) == {"type": "object"}


def shown_of(pieces: list[str]) -> str:
    out = io.StringIO()
    writer = MarkdownWriter(Console(file=out, width=60))
    for piece in pieces:
        writer.write(piece)
    writer.close()
    return out.getvalue()


@given(st.sets(st.integers(1, len(DOCUMENT) - 1)))
def test_what_stays_of_markdown_does_not_depend_on_its_pieces(cuts: set[int]) -> None:
    edges = [0, *sorted(cuts), len(DOCUMENT)]
    pieces = [DOCUMENT[start:end] for start, end in pairwise(edges)]
    assert shown_of(pieces) == shown_of([DOCUMENT])


def test_a_long_block_is_drawn_as_it_is_written() -> None:
    text = "".join(f"- item {number}\n" for number in range(300))
    out = io.StringIO()
    writer = MarkdownWriter(Console(file=out, width=60, height=20, force_terminal=True))
    for piece in text.splitlines(keepends=True):
        writer.write(piece)
    writer.close()
    assert out.getvalue().count(" item 299") >= 1
    assert shown_of([text]).count(" • item") == 300


@given(st.text(alphabet="a1 -*#>|`=_~[]():<&\n\t.", max_size=60))
def test_markdown_of_any_kind(text: str) -> None:
    assert shown_of(list(text)) == shown_of([text])
