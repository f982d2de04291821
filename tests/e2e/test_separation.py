"""Only the engine process knows torch: looked for in what programs import and in what processes map."""

import subprocess
import sys
from pathlib import Path

import pytest

from stack import Stack, children, command_line

pytestmark = pytest.mark.slow

HEAVY = {"torch", "transformers", "accelerate", "gguf", "spyglass_demo"}
"""Packages of the engine and of the demo."""

SERVER = """
import sys
from pathlib import Path
from spyglass_server.app import Server
from spyglass_server.prompt import PromptMaker
from spyglass_server.prompt.prompt_maker import ChatInput, ImageSlot
from spyglass_server.prompt.conversation import Message
maker = PromptMaker(Path(sys.argv[1]), max_image_pixels=100_000)
message = Message("user", (None, "What is it?"))
assert maker.prepare(ChatInput((message,), (ImageSlot("image"),)), [Path(sys.argv[2]).read_bytes()]).images
"""
ENGINE = """
import sys
from pathlib import Path
import torch
from spyglass_server.runtime.checkpoint import load_model
from spyglass_server.runtime.config import load_config
from spyglass_server.runtime.runner import ModelRunner
cpu, folder = torch.device("cpu"), Path(sys.argv[1])
ModelRunner(load_model(folder, load_config(folder), torch.float32, cpu), 8, 16, 4, torch.float32, cpu)
"""
BRIDGE = """
from spyglass_bridge.app import make_app
from spyglass_bridge.cli import main
"""
CLIENT = """
from spyglass_client import AsyncClient, Client
from spyglass_client.cli import main
"""
LAUNCHER = """
from spyglass_launcher.serve import run_serve
from spyglass_launcher.settings import SETTINGS
"""
PICTURE = Path(__file__).parents[2] / "clients" / "examples" / "pictures" / "red_circle.png"


def imported_by(program: str, *arguments: str) -> set[str]:
    """The top-level packages that a program has imported at its end."""
    return {name.partition(".")[0] for name in modules_of(program, *arguments)}


def modules_of(program: str, *arguments: str) -> set[str]:
    """The modules that a program has imported at its end."""
    ending = "\nimport sys\nsys.stdout.write(' '.join(sys.modules))"
    command = [sys.executable, "-c", program + ending, *arguments]
    return set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())


def maps_torch(pid: int) -> bool:
    """Whether a process has loaded torch's libraries."""
    return "libtorch" in Path(f"/proc/{pid}/maps").read_text()


def test_the_server_makes_prompts_without_the_engines_packages(tiny_checkpoint: Path) -> None:
    imported = imported_by(SERVER, str(tiny_checkpoint), str(PICTURE))
    assert {"grpc", "tokenizers", "PIL"} <= imported
    assert not imported & HEAVY


def test_the_engine_starts_without_torchs_compiler(tiny_checkpoint: Path) -> None:
    """To import it takes half as long as all the rest."""
    modules = modules_of(ENGINE, str(tiny_checkpoint))
    assert "torch" in modules
    assert not modules & {"torch._dynamo", "torch._inductor", "sympy"}


def test_the_bridge_imports_neither_the_model_nor_the_other_parts() -> None:
    imported = imported_by(BRIDGE)
    assert {"grpc", "aiohttp"} <= imported
    assert not imported & (HEAVY | {"numpy", "PIL", "tokenizers", "jinja2", "spyglass_server", "spyglass_client"})


def test_the_client_imports_little() -> None:
    imported = imported_by(CLIENT)
    assert "grpc" in imported
    assert not imported & (
        HEAVY
        | {"numpy", "PIL", "aiohttp", "pydantic", "openai", "spyglass_server", "spyglass_bridge", "spyglass_launcher"}
    )


def test_the_launcher_imports_the_settings_of_server_and_bridge_and_nothing_else_of_them() -> None:
    modules = modules_of(LAUNCHER)
    assert not {name.partition(".")[0] for name in modules} & (HEAVY | {"numpy", "PIL", "aiohttp", "pydantic"})
    assert {name for name in modules if name.startswith(("spyglass_server", "spyglass_bridge"))} == {
        *("spyglass_server", "spyglass_server.settings"),
        *("spyglass_bridge", "spyglass_bridge.settings"),
    }


def test_of_a_running_stack_only_the_engine_has_loaded_torch(tiny: Stack) -> None:
    with tiny.client() as client:
        assert client.generate("What is it?", images=[PICTURE], max_tokens=4).token_ids
    assert maps_torch(tiny.engine_pid())
    others = {tiny.serve_pid, *children(tiny.serve_pid), *children(tiny.server_pid)} - {tiny.engine_pid()}
    assert len(others) >= 3  # serve, server, bridge
    assert [command_line(pid) for pid in others if maps_torch(pid)] == []
