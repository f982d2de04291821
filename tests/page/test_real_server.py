"""The page before a real server with the demo model: it answers, sees a picture, stops, and its examples run."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.async_api import BrowserContext, expect

from checkpoints import demo_checkpoint
from page.open_page import OpenPage
from stack import Stack, program_path

pytestmark = pytest.mark.slow

PATIENT_MS = 60_000
NODE_FOLDER = Path(__file__).parents[2] / ".cache" / "clients" / "bin"
"""Where the tests have put a Node of their own."""
KINDS = ("Message", "Conversation", "Streaming", "Image", "Structured output", "Tools", "This playground")
LANGUAGES = {
    "curl": "curl",
    "Python · openai": sys.executable,
    "Python · spyglass_client": sys.executable,
    "JavaScript": "node",
    "grpcurl": "grpcurl",
}
FASTER = {
    '"max_tokens": 128': '"max_tokens": 24',
    "max_tokens=128": "max_tokens=24",
    '"maxTokens": 128': '"maxTokens": 24',
} | {'"max_tokens": 512': '"max_tokens": 24', "max_tokens=512": "max_tokens=24", '"maxTokens": 512': '"maxTokens": 24'}
"""Shorter answers: they are those of a small model on a small machine."""


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    options = ("--model", str(demo_checkpoint()), "--served-model-name", "spyglass-demo", "--max-model-len", "2048")
    with Stack(tmp_path_factory.mktemp("demo"), *options) as stack:
        yield stack


@pytest.fixture
async def page(context: BrowserContext, demo: Stack) -> OpenPage:
    page = await OpenPage.open(context, demo.http)
    page.page.set_default_timeout(PATIENT_MS)
    await page.enter_key(demo.key)
    await page.page.get_by_label("Temperature, as a number").fill("0")
    return page


async def test_a_picture_is_answered_and_its_turn_remembered(page: OpenPage, pictures: Path) -> None:
    await page.add_file(pictures / "red_circle.png")
    await expect(page.page.get_by_role("button", name="Remove red_circle.png")).to_be_visible()
    await page.ask("What colour is the circle?")
    await expect(page.page.locator(".figures")).to_have_count(1, timeout=PATIENT_MS)
    await expect(page.answers.last).to_contain_text(re.compile("red", re.IGNORECASE))
    await page.ask("What shape is it?")
    await expect(page.page.locator(".figures")).to_have_count(2, timeout=PATIENT_MS)
    await expect(page.answers.last).to_contain_text("Cached")
    page.assert_well()


async def test_stop_is_in_the_ledger(page: OpenPage, demo: Stack) -> None:
    before = len(demo.usage())
    await page.page.get_by_label("Max tokens").fill("1500")
    await page.ask("Tell me a very long story about a lighthouse, with every detail.")
    await expect(page.answers.last).to_contain_text(re.compile(r"\w+ \w+"), timeout=PATIENT_MS)
    await page.button("Stop").click()
    await page.wait_answered()
    for _ in range(100):
        rows = demo.usage()[before:]
        if rows and rows[-1].outcome:
            break
        await page.page.wait_for_timeout(100)
    [row] = rows
    assert row.outcome == "CANCELLED"
    assert 0 < row.completion_tokens < 1500


@pytest.mark.parametrize("language", LANGUAGES)
async def test_every_example_runs_as_it_is_copied(
    page: OpenPage, demo: Stack, language: str, pictures: Path, tmp_path: Path
) -> None:
    program = LANGUAGES[language]
    path = os.pathsep.join([program_path(), str(NODE_FOLDER)])
    if shutil.which(program, path=path) is None:
        pytest.skip(f"{program} is not installed")
    shutil.copyfile(pictures / "red_circle.png", tmp_path / "picture-1.png")
    await page.add_file(pictures / "red_circle.png")
    await expect(page.page.get_by_role("button", name="Remove red_circle.png")).to_be_visible()
    await page.question.fill('It\'s "quoted" $HOME `date` \\ and a\nsecond line')
    await page.tab("API").click()
    panel = page.page.get_by_role("tabpanel", name="API")
    await panel.get_by_role("radio", name=language, exact=True).check()
    for kind in KINDS:
        await panel.get_by_role("radio", name=kind, exact=True).check()
        await expect(panel.locator(".code-head span").last).to_have_text(f"{kind}, {language}")
        await panel.get_by_role("button", name=re.compile("Cop")).last.click()
        await expect(panel.get_by_role("button", name="Copied")).to_be_visible()
        code = str(await page.page.evaluate("navigator.clipboard.readText()"))
        assert demo.key not in code
        for slow, fast in FASTER.items():
            code = code.replace(slow, fast)
        printed = run(language, code, {**demo.environ(), "PATH": path}, tmp_path)
        assert printed.strip(), (kind, code)
        if kind == "Image":
            assert "red" in printed.lower(), printed
        if kind == "Structured output":
            assert "Ada" in printed or "name" in printed, printed
        if kind == "Tools":
            assert "get_weather" in printed, printed


def run(language: str, code: str, environ: dict[str, str], folder: Path) -> str:
    """Runs an example as one would who has copied it, and returns what it prints."""
    program = LANGUAGES[language]
    if language.startswith("Python"):
        command = [program, "-c", code]
    elif language == "JavaScript":
        file = folder / "example.mjs"
        file.write_text(code, encoding="utf-8")
        command = [str(shutil.which("node", path=environ["PATH"])), str(file)]
    else:
        command = ["sh", "-c", code]
    ended = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, (code, ended.stdout, ended.stderr)
    return ended.stdout
