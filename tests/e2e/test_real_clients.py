"""Clients that people use, unmodified, against the whole stack with the embedded model.

Only URL, key and model are set. They live in environments of their own, which `make test` makes.
"""

import os
import re
import subprocess
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from checkpoints import demo_checkpoint
from stack import Stack

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent / "clients"
CACHE = Path(__file__).resolve().parents[2] / ".cache"
BIN = CACHE / "clients" / "bin"
LLAMA_INDEX = CACHE / "clients-llama-index" / "bin"
MODEL = "spyglass-demo"
MOST_SKIPPED = 10
AT_ONCE = 4


@pytest.fixture(scope="module")
def talker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    options = ("--model", str(demo_checkpoint()), "--served-model-name", MODEL, "--served-model-name", f"{MODEL}-2")
    with Stack(tmp_path_factory.mktemp("talker"), *options) as stack:
        yield stack


def run(stack: Stack, *command: str | Path, **variables: str) -> str:
    """Runs a client and returns what it says; fails with that when it fails."""
    named = {"SPYGLASS_URL": stack.openai_url, "SPYGLASS_KEY": stack.key, "SPYGLASS_MODEL": MODEL}
    done = subprocess.run(
        command, cwd=HERE, env=os.environ | named | variables, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


PYTHON, NODE = (BIN / "python",), (BIN / "node",)
LANGCHAIN = (*PYTHON, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider")
CLIENTS = {
    "langchain_suite.py": LANGCHAIN,
    "openai_history.py": PYTHON,
    "pydantic_ai_agent.py": PYTHON,
    "openai_python.py": PYTHON,
    "openai_agents_run.py": PYTHON,
    "llama_index_agent.py": (LLAMA_INDEX / "python",),
    "litellm_completion.py": PYTHON,
    "ai_sdk.mjs": NODE,
    "langchain_openai_chat.py": PYTHON,
    "haystack_chat.py": PYTHON,
    "instructor_models.py": PYTHON,
    "openai_node.mjs": NODE,
    "langchain_node.mjs": NODE,
}
"""Each with what runs it, those first that take longest."""


@pytest.fixture(scope="module")
def running(talker: Stack, request: pytest.FixtureRequest) -> Iterator[dict[str, Future[str]]]:
    """What the chosen clients say. Some run at once, since most of the time each waits for a token."""
    items = (item for item in request.session.items if isinstance(item, pytest.Function) and hasattr(item, "callspec"))
    chosen = {item.callspec.params.get("client") for item in items}
    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield {
            script: pool.submit(run, talker, *command, script, SPYGLASS_NODE=str(CACHE / "node"))
            for script, command in CLIENTS.items()
            if script in chosen
        }


@pytest.mark.parametrize("client", CLIENTS)
def test_clients(running: dict[str, Future[str]], client: str) -> None:
    said = running[client].result()
    if client == "langchain_suite.py":
        passed, skipped = (int(re.search(rf"(\d+) {word}", said)[1]) for word in ("passed", "skipped"))  # type: ignore[index]
        assert passed >= 39
        assert skipped <= MOST_SKIPPED, said


def test_the_llm_command(talker: Stack, tmp_path: Path) -> None:
    (tmp_path / "extra-openai-models.yaml").write_text(
        f"- model_id: here\n  model_name: {MODEL}\n  api_base: {talker.openai_url}\n  api_key_name: here\n"
        "  vision: true\n  supports_schema: true\n"
    )
    picture = HERE.parents[2] / "clients" / "examples" / "pictures" / "red_circle.png"

    def llm(*arguments: str) -> str:
        options = ("-m", "here", "--key", talker.key, "-o", "temperature", "0", "-o", "max_tokens", "40")
        return run(talker, BIN / "llm", *options, *arguments, LLM_USER_PATH=str(tmp_path))

    assert llm("Hello!")
    assert "name" in llm("--schema", "name,age int", "Bob is 5")
    assert "red" in llm("-a", str(picture), "Which colour is the circle?")


def test_no_request_that_can_be_made_up_from_the_description_breaks_anything(tiny: Stack) -> None:
    checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
    options = ("--checks", checks, "--phases", "coverage,fuzzing", "--max-examples", "40", "--seed", "1")
    patience = ("--request-timeout", "60")
    key = ("--header", f"Authorization: Bearer {tiny.key}")
    description = f"{tiny.http}/openapi.json"
    hooks = {"SCHEMATHESIS_HOOKS": "fuzzing_hooks", "PYTHONPATH": str(HERE), "SPYGLASS_MODEL": "tiny"}
    run(tiny, BIN / "schemathesis", "run", description, *options, *patience, *key, "--warnings", "off", **hooks)
