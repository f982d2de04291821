"""Clients that people use, unmodified, against the whole stack with the demo model.

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
AT_ONCE = 6


@pytest.fixture(scope="module")
def talker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    options = ("--model", str(demo_checkpoint()), "--served-model-name", MODEL, "--served-model-name", f"{MODEL}-2")
    with Stack(tmp_path_factory.mktemp("talker"), *options) as stack:
        yield stack


def run(stack: Stack, *command: str | Path, **variables: str) -> str:
    """Runs a client and returns what it says; fails with that when it fails."""
    named = {"SPYGLASS_URL": stack.openai_url, "SPYGLASS_KEY": stack.key, "SPYGLASS_MODEL": MODEL}
    # clients are installed without bytecode, so each process may keep what it compiles for the next ones
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(
        command, cwd=HERE, env=environ | named | variables, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


PYTHON, NODE = BIN / "python", BIN / "node"
SUITE = (PYTHON, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", "langchain_suite.py", "-k")
SUITE_PARTS = {"structured and not async": (6, 0), "async": (11, 0), "not structured and not async": (22, 10)}
"""Of each part of LangChain's suite, how many tests pass at least, and how many are skipped at most."""
CLIENTS: dict[str, tuple[str | Path, ...]] = {
    **{part: (*SUITE, part) for part in SUITE_PARTS},
    **{f"openai_history {way}": (PYTHON, "openai_history.py", way) for way in ("created", "parsed", "streamed")},
    "pydantic_ai": (PYTHON, "pydantic_ai_agent.py"),
    "openai": (PYTHON, "openai_python.py"),
    "openai_agents": (PYTHON, "openai_agents_run.py"),
    "llama_index": (LLAMA_INDEX / "python", "llama_index_agent.py"),
    "litellm": (PYTHON, "litellm_completion.py"),
    **{f"ai_sdk {provider}": (NODE, "ai_sdk.mjs", provider) for provider in ("compatible", "openai")},
    "langchain_openai": (PYTHON, "langchain_openai_chat.py"),
    "haystack": (PYTHON, "haystack_chat.py"),
    "instructor": (PYTHON, "instructor_models.py"),
    "openai_node": (NODE, "openai_node.mjs"),
    "langchain_node": (NODE, "langchain_node.mjs"),
}
"""The commands of clients, those first that take longest."""


@pytest.fixture(scope="module")
def running(talker: Stack, request: pytest.FixtureRequest) -> Iterator[dict[str, Future[str]]]:
    """What the chosen clients say. Several run at once: their answers are computed in one batch."""
    items = (item for item in request.session.items if isinstance(item, pytest.Function) and hasattr(item, "callspec"))
    chosen = {item.callspec.params.get("client") for item in items}
    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield {
            client: pool.submit(run, talker, *command, SPYGLASS_NODE=str(CACHE / "node"))
            for client, command in CLIENTS.items()
            if client in chosen
        }


@pytest.mark.parametrize("client", [client for client in CLIENTS if client not in SUITE_PARTS])
def test_clients(running: dict[str, Future[str]], client: str) -> None:
    running[client].result()


@pytest.mark.parametrize("client", SUITE_PARTS)
def test_langchains_suite(running: dict[str, Future[str]], client: str) -> None:
    min_passed, max_skipped = SUITE_PARTS[client]
    said = running[client].result()
    passed, skipped = (
        int(found[1]) if (found := re.search(rf"(\d+) {word}", said)) else 0 for word in ("passed", "skipped")
    )
    assert passed >= min_passed
    assert skipped <= max_skipped, said


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
