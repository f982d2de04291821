"""Clients that people use, unmodified, against the whole stack with the embedded model.

Only URL, key and model are set. They live in environments of their own, which `make test` makes.
"""

import os
import re
import subprocess
from collections.abc import Iterator
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


@pytest.fixture(scope="module")
def talker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    options = ("--model", str(demo_checkpoint()), "--served-model-name", MODEL, "--served-model-name", f"{MODEL}-2")
    with Stack(tmp_path_factory.mktemp("talker"), *options) as stack:
        yield stack


def run(stack: Stack, *command: str | Path, **variables: str) -> str:
    """Runs a client and returns what it says; fails with that when it fails."""
    named = {"SPYGLASS_URL": stack.openai_url, "SPYGLASS_KEY": stack.key, "SPYGLASS_MODEL": MODEL}
    done = subprocess.run(
        command, cwd=HERE, env=os.environ | named | variables, capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.parametrize(
    "script",
    [
        "openai_python.py",
        "openai_history.py",
        "langchain_openai_chat.py",
        "litellm_completion.py",
        "instructor_models.py",
        "pydantic_ai_agent.py",
        "openai_agents_run.py",
        "haystack_chat.py",
    ],
)
def test_python_clients(talker: Stack, script: str) -> None:
    run(talker, BIN / "python", script)


def test_a_client_that_wants_an_older_openai(talker: Stack) -> None:
    run(talker, LLAMA_INDEX / "python", "llama_index_agent.py")


@pytest.mark.parametrize("script", ["openai_node.mjs", "ai_sdk.mjs", "langchain_node.mjs"])
def test_clients_for_node(talker: Stack, script: str) -> None:
    run(talker, BIN / "node", script, SPYGLASS_NODE=str(CACHE / "node"))


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


def test_langchains_suite(talker: Stack) -> None:
    said = run(talker, BIN / "python", "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", "langchain_suite.py")
    passed, skipped = (int(re.search(rf"(\d+) {word}", said)[1]) for word in ("passed", "skipped"))  # type: ignore[index]
    assert passed >= 39
    assert skipped <= MOST_SKIPPED, said


def test_no_request_that_can_be_made_up_from_the_description_breaks_anything(tiny: Stack) -> None:
    checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
    options = ("--checks", checks, "--phases", "coverage,fuzzing", "--max-examples", "40", "--seed", "1")
    patience = ("--request-timeout", "60")
    key = ("--header", f"Authorization: Bearer {tiny.key}")
    description = f"{tiny.http}/openapi.json"
    hooks = {"SCHEMATHESIS_HOOKS": "fuzzing_hooks", "PYTHONPATH": str(HERE), "SPYGLASS_MODEL": "tiny"}
    run(tiny, BIN / "schemathesis", "run", description, *options, *patience, *key, "--warnings", "off", **hooks)
