"""The `spyglass` command against a fake server."""

import asyncio
import io
import json
import os
import signal
import subprocess
import sys
from asyncio.subprocess import PIPE
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from google.rpc import code_pb2
from PIL import Image

from fake_service import FakeService, Turn, until_cancelled
from pictures import encoded
from spyglass.v1 import inference_pb2 as pb
from spyglass_client.cli import main
from spyglass_common.status import make_status

Run = Callable[..., Coroutine[Any, Any, tuple[int, str, str]]]


@pytest.fixture
def run(service: FakeService, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the command; returns its exit code, stdout and stderr."""
    for name in os.environ:
        if name.startswith("SPYGLASS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("SPYGLASS_GRPC", service.target)
    monkeypatch.setenv("SPYGLASS_API_KEY", "sk-test")

    async def run(*words: str, stdin: str | None = None) -> tuple[int, str, str]:
        if stdin is not None:
            monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        code = await asyncio.to_thread(main, words)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


async def test_chat_prints_only_the_text(run: Run, service: FakeService) -> None:
    assert await run("chat", "how are you") == (0, "how are you \n", "")
    assert service.authorizations == ["Bearer sk-test"]


async def test_chat_options_reach_the_server(run: Run, service: FakeService, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(name.encode())
    images = ("--image", str(tmp_path / "a"), "--image", str(tmp_path / "b"))
    (tmp_path / "text").write_text("t")
    files = ("--file", str(tmp_path / "text"))
    options = ("--system", "s", "--model", "m", "--max-tokens", "5", "--temperature", "0", "--seed", "0")
    shape = ("--json-schema", '{"type": "array"}')
    code, _, _ = await run("chat", *images, *files, *options, *shape, "--api-key", "sk-other", "q")
    assert code == 0
    start = service.turns[0].start
    system, user = start.chat.messages
    assert system.parts[0].text == "s"
    assert [part.text or part.image.data for part in user.parts] == [b"a", b"b", "text:\n```\nt\n```\n\n", "q"]
    assert json.loads(start.format.json_schema.schema_json) == {"type": "array"}
    assert (start.model, start.stopping.max_tokens) == ("m", 5)
    assert start.sampling.HasField("temperature")
    assert start.sampling.HasField("seed")
    assert service.authorizations == ["Bearer sk-other"]


async def look(turn: Turn) -> None:
    """A script: looks at the top left patch of each picture."""
    turn.accept()
    grid = pb.ImageGrid(rows=2, columns=2, covered_rows=2, covered_columns=1.5)
    turn.send(started=pb.Started(prompt_tokens=7, image_grids=[grid, grid]))
    attention = pb.TokenAttention(bytes=b"red", maps=[pb.ImageMap(scale=0.5, data=bytes((255, 0, 0, 51)))] * 2)
    assert turn.start.output.HasField("image_attention")
    turn.send(delta=pb.Delta(text="red", token_ids=[1], attention=[attention], finish_reason=pb.FINISH_REASON_STOP))
    turn.finish()


async def test_chat_draws_where_the_model_looked(run: Run, service: FakeService, tmp_path: Path) -> None:
    service.script = look
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(encoded(Image.new("RGB", (60, 80), "white")))
    images = ("--image", str(tmp_path / "a.png"), "--image", str(tmp_path / "b.png"))
    code, out, err = await run("chat", *images, "--show-attention", str(tmp_path / "looked.png"), "What?")
    assert (code, out) == (0, "red\n")
    assert err.count("where the model looked:") == 2
    for number in (1, 2):
        with Image.open(tmp_path / f"looked-{number}.png") as drawn:
            assert drawn.size == (60, 80)
            bright, dark = (sum(drawn.getpixel(place)) for place in ((5, 5), (5, 75)))  # type: ignore[arg-type]
        assert bright > 1.3 * dark


async def test_without_a_picture_there_is_nothing_to_look_at(run: Run, tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        await run("chat", "--show-attention", str(tmp_path / "looked.png"), "What?")
    assert not (tmp_path / "looked.png").exists()


async def test_chat_options_from_the_environment(
    run: Run, service: FakeService, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "a").write_bytes(b"a")
    (tmp_path / "b").write_bytes(b"b")
    monkeypatch.setenv("SPYGLASS_CHAT_IMAGE", f"{tmp_path}/a{os.pathsep}{tmp_path}/a")
    monkeypatch.setenv("SPYGLASS_CHAT_MAX_TOKENS", "5")
    monkeypatch.setenv("SPYGLASS_CHAT_MODEL", "m")
    await run("chat", "q")
    await run("chat", "q", "--image", f"{tmp_path}/b", "--max-tokens", "6")
    first, second = (turn.start for turn in service.turns)
    assert [part.image.data for part in first.chat.messages[0].parts] == [b"a", b"a", b""]
    assert [part.image.data for part in second.chat.messages[0].parts] == [b"b", b""]
    assert (first.model, first.stopping.max_tokens, second.stopping.max_tokens) == ("m", 5, 6)


@pytest.mark.parametrize("words", [("chat",), ("chat", "-")])
async def test_chat_reads_the_question_from_stdin(run: Run, words: tuple[str, ...]) -> None:
    assert await run(*words, stdin="from a pipe\n") == (0, "from a pipe \n", "")
    assert await run(*words, stdin=" \n") == (1, "", "spyglass: the question on stdin is empty\n")
    assert await run(*words, stdin="\udcff") == (1, "", "spyglass: the question on stdin is not UTF-8 text\n")


async def test_an_answer_that_is_cut_off_is_told_of(run: Run, service: FakeService) -> None:
    async def cut_off(turn: Turn) -> None:
        turn.accept()
        turn.say("some words", reason=pb.FINISH_REASON_LENGTH)
        turn.finish()

    service.script = cut_off
    assert await run("chat", "q") == (0, "some words\n", "spyglass: the answer is cut off at its longest\n")
    code, out, error = await run("chat", "--json-schema", "{}", "q")
    assert (code, out) == (1, "some words\n")
    assert "--max-tokens is too small" in error


async def test_chat_without_a_question_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdin", terminal)
    with pytest.raises(SystemExit, match="2"):
        main(["chat"])
    assert "give a question" in capsys.readouterr().err


async def test_an_error_is_one_line_and_status_1(run: Run, service: FakeService) -> None:
    service.refusal = make_status(code_pb2.INVALID_ARGUMENT, "must be at most 2", "OUT_OF_RANGE", field="sampling.t")
    assert await run("chat", "q") == (1, "", "spyglass: must be at most 2 (sampling.t)\n")
    service.refusal = make_status(code_pb2.RESOURCE_EXHAUSTED, "the queue is full", "QUEUE_FULL", retry_after_s=3)
    assert await run("models") == (1, "", "spyglass: the queue is full; try again in 3 s\n")
    assert await run("chat", "--image", "none.png", "q") == (1, "", "spyglass: none.png: No such file or directory\n")
    code, out, error = await run("models", "--grpc", "127.0.0.1:1")
    assert (code, out) == (1, "")
    assert error.startswith("spyglass: no connection to 127.0.0.1:1: ")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["chat", "--max-tokens", "0", "q"], "--max-tokens: '0' is not a whole number above 0"),
        (["chat", "--seed", "-1", "q"], "--seed: '-1' is not a whole number"),
        (["chat", "--json-schema", "none.json", "q"], "--json-schema: 'none.json' cannot be read: "),
        (["chat", "--json-schema", "{]", "q"], "--json-schema: '{]' is not JSON: "),
        (["chat", "--json-schema", '{"a":' * 100_000, "q"], "is not JSON: "),
        (["chat", "--json-schema", os.devnull, "q"], f"--json-schema: '{os.devnull}' is not JSON: "),
        (["usage", "--records", "x"], "--records: 'x' is not a whole number"),
        (["models", "--grpc", "nowhere"], "--grpc: 'nowhere' is not HOST:PORT"),
        ([], "COMMAND"),
    ],
)
def test_wrong_options_are_status_2(words: list[str], complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(words)
    assert complaint in capsys.readouterr().err


async def test_a_wrong_variable_of_serve_does_not_disturb_chat(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPYGLASS_MAX_BATCH", "many")
    assert (await run("chat", "q"))[0] == 0
    with pytest.raises(SystemExit, match="2"):
        main(["serve"])


async def test_models(run: Run) -> None:
    assert await run("models") == (
        0,
        "MODEL          DTYPE    CONTEXT  MAX TOKENS  IMAGES  $/M IN  $/M OUT\n"
        "spyglass-demo  float32    2,048       1,024      16    0.35     0.40\n"
        "\n"
        "MODEL          HOST  DEVICE    MEMORY  WEIGHTS  TEXT CACHE  TOKENS  IMAGE CACHE  TILES\n"
        "spyglass-demo  here  cpu     24.00 GB  0.71 GB     2.15 GB  23,296      1.07 GB  1,234\n",
        "",
    )
    [model] = json.loads((await run("models", "--json"))[1])
    assert (model["id"], model["created"], model["tags"]) == ("spyglass-demo", "2023-11-14T22:13:20+00:00", ["vision"])
    assert model["pricing"] == {"input_tokens": 0.35, "output_tokens": 0.4, "cached_input_tokens": 0.35}
    assert (model["memory"]["weight_bytes"], model["memory"]["image_cache_tiles"]) == (712_000_000, 1234)


async def test_models_have_a_line_for_each_device(run: Run, service: FakeService) -> None:
    for host in ("gpu-a", "gpu-b"):
        service.model.ranks.add(host=host, device_name="H100", device_bytes=80 * 10**9, weight_bytes=22 * 10**9)
    lines = (await run("models"))[1].splitlines()[4:]
    assert [line.split()[1:4] for line in lines] == [["gpu-a", "0:", "H100"], ["gpu-b", "1:", "H100"]]
    [found] = json.loads((await run("models", "--json"))[1])
    assert [rank["host"] for rank in found["ranks"]] == ["gpu-a", "gpu-b"]


async def test_usage(run: Run) -> None:
    assert await run("usage", "--records", "2") == (
        0,
        "KEY    GENERATIONS  PROMPT TOKENS  CACHED  GENERATED TOKENS  IMAGES    COST $\n"
        "key-1            2             70       0                30       0  0.250000\n"
        "\n"
        "STARTED (UTC)        REQUEST  MODEL          OUTCOME  PROMPT  GENERATED    COST $\n"
        "2023-11-14 22:13:20  r0       spyglass-demo  running       7          3  0.500000\n"
        "2023-11-14 22:13:20  r1       spyglass-demo  OK            7          3  0.500000\n",
        "",
    )
    assert (await run("usage", "--records", "0"))[1].count("\n") == 2
    usage = json.loads((await run("usage", "--json"))[1])
    assert (usage["key_id"], len(usage["records"])) == ("key-1", 10)
    assert usage["records"][0]["finished"] is None
    assert usage["records"][1]["usage"]["prompt_tokens"] == 7


async def test_ctrl_c_cancels(service: FakeService) -> None:
    service.script = until_cancelled
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "spyglass_client", "chat", "--grpc", service.target, "q"), stdout=PIPE, stderr=PIPE
    )
    assert process.stdout is not None
    try:
        assert await process.stdout.readexactly(6) == b"first "
        process.send_signal(signal.SIGINT)
        out, error = await asyncio.wait_for(process.communicate(), 30)
    except TimeoutError:
        process.kill()  # it must not be left to other tests
        await process.communicate()
        raise
    assert (process.returncode, out, error) == (130, b"\n", b"")


def test_version_and_help() -> None:
    command = (sys.executable, "-m", "spyglass_client")
    version = subprocess.run([*command, "--version"], check=True, capture_output=True, text=True)
    assert version.stdout.startswith("spyglass ")
    text = subprocess.run([*command, "serve", "--help"], check=True, capture_output=True, text=True).stdout
    assert "SPYGLASS_MODEL" in text


def test_the_client_imports_neither_the_server_nor_the_bridge() -> None:
    code = "import sys, spyglass_client.cli; print(*{name.partition('.')[0] for name in sys.modules})"
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    imported = set(result.stdout.split())
    assert "spyglass_client" in imported
    assert not imported & {"spyglass_server", "spyglass_bridge", "torch", "aiohttp"}
