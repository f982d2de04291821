"""The wheels, and what a fresh environment gets: the client alone, then the bridge, without the engine's packages."""

import json
import os
import re
import shutil
import subprocess
import urllib.request
import venv
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest

from client.terminal import terminal
from stack import clean_environ

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PARTS = ("protos", "common", "server", "bridge", "clients", "launcher", "demo", "pyproject.toml", "README.md")
MAX_WHEEL_BYTES = 1_500_000
HEAVY = {"torch", "transformers", "accelerate", "numpy", "pillow", "tokenizers", "safetensors", "gguf"}


class Environment:
    """A virtual environment with the wheel of this repository."""

    def __init__(self, folder: Path) -> None:
        """Makes it, and builds the wheel from a copy of the files, so that nothing here is touched."""
        self._bin = folder / "venv" / "bin"
        venv.create(folder / "venv", with_pip=True)
        source = folder / "source"
        source.mkdir()
        for part in PARTS:
            if (ROOT / part).is_dir():
                shutil.copytree(ROOT / part, source / part, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / part, source / part)
        self.wheel, self.demo_wheel = (self._build(path, folder) for path in (source, source / "demo"))

    def install(self, extra: str = "") -> None:
        """Installs the package, with an extra such as [bridge]."""
        self._pip("install", f"{self.wheel}{extra}")

    def packages(self) -> set[str]:
        """The names of all that is installed."""
        lines = self._pip("freeze", "--all").splitlines()
        return {re.split("[ =@]", line)[0].lower() for line in lines}

    def run(self, program: str, *arguments: str) -> str:
        """What a program of the environment prints on its way to a good end."""
        command, environ = self.command(program, *arguments)
        return subprocess.run(command, env=environ, capture_output=True, text=True, check=True).stdout

    def failure(self, program: str, *arguments: str) -> str:
        """What a program of the environment says on stderr when it ends with status 1."""
        command, environ = self.command(program, *arguments)
        ended = subprocess.run(command, env=environ, capture_output=True, text=True)
        assert ended.returncode == 1
        return ended.stderr

    def modules(self, *imported: str) -> set[str]:
        """All modules that a program of the environment has imported when it has imported these."""
        program = f"import sys, {', '.join(imported)}; sys.stdout.write(' '.join(sys.modules))"
        return set(self.run("python", "-c", program).split())

    def start(self, program: str, *arguments: str) -> subprocess.Popen[str]:
        """Starts a program whose output is read through a pipe."""
        command, environ = self.command(program, *arguments)
        return subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True)

    def command(self, program: str, *arguments: str) -> tuple[list[str], dict[str, str]]:
        """How to run a program of the environment: without the ways by which this Python finds its modules."""
        environ = {name: value for name, value in clean_environ().items() if name != "PYTHONPATH"}
        environ["PATH"] = os.pathsep.join([str(self._bin), os.defpath])
        return [str(self._bin / program), *arguments], environ

    def _build(self, source: Path, folder: Path) -> Path:
        before = set(folder.glob("*.whl"))
        self._pip("wheel", "--no-deps", "--wheel-dir", str(folder), str(source))
        [wheel] = {*folder.glob("*.whl")} - before
        return wheel

    def _pip(self, *arguments: str) -> str:
        return self.run("python", "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments)


def foreign(modules: set[str], *parts: str) -> set[str]:
    """The modules of these parts of Spyglass, and the packages that only an engine or a demo needs."""
    names = {f"spyglass_{part}" for part in (*parts, "demo", "training")} | HEAVY | {"PIL"}
    return {module for module in modules if module.partition(".")[0] in names}


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    return Environment(tmp_path_factory.mktemp("install"))


def metadata_of(wheel: zipfile.ZipFile) -> Message:
    """The name, version and requirements of a wheel."""
    [path] = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
    return Parser().parsestr(wheel.read(path).decode())


def test_the_wheel_is_small_and_holds_nothing_of_the_demo(environment: Environment) -> None:
    assert environment.wheel.stat().st_size < MAX_WHEEL_BYTES
    with zipfile.ZipFile(environment.wheel) as wheel:
        assert [name for name in wheel.namelist() if "demo" in name or name.endswith(".safetensors")] == []
        pages = {"index.html", "main.js", "page.css", "vendor/marked.js", "vendor/marked.LICENSE", "vendor/vendor.json"}
        assert {f"spyglass_bridge/page/{name}" for name in pages} <= set(wheel.namelist())
        needed = metadata_of(wheel).get_all("Requires-Dist") or []
    assert "torch" in {re.split("[ =<>;[]", line)[0] for line in needed}
    assert [line for line in needed if line.startswith(("font-", "gguf", "matplotlib", "resvg", "spyglass-demo"))] == []


def test_the_demo_is_a_wheel_of_its_own_without_its_training(environment: Environment) -> None:
    with zipfile.ZipFile(environment.demo_wheel) as wheel:
        names = set(wheel.namelist())
        needed = metadata_of(wheel).get_all("Requires-Dist") or []
    assert {f"spyglass_demo/{file}" for file in ("adapter.safetensors", "ADAPTER.md", "chat_template.jinja")} <= names
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"spyglass_demo"}
    without_extra = {re.split("[ =<>;[]", line)[0] for line in needed if "extra ==" not in line}
    assert without_extra == {"gguf", "numpy", "safetensors", "tokenizers"}


def test_the_client_installs_alone_and_then_the_bridge(environment: Environment) -> None:
    environment.install()
    assert not environment.packages() & (HEAVY | {"aiohttp", "pydantic", "jinja2"})
    assert not foreign(environment.modules("spyglass_client", "spyglass_client.cli"), "server", "bridge", "launcher")
    assert "chat" in environment.run("spyglass", "--help")
    assert "--max-batch" in environment.run("spyglass", "serve", "--help")
    assert environment.failure("spyglass", "serve") == "spyglass: serve needs: pip install 'spyglass[bridge,server]'\n"

    environment.install("[bridge]")
    assert "aiohttp" in environment.packages()
    assert not environment.packages() & HEAVY
    assert not foreign(
        environment.modules("spyglass_bridge.app", "spyglass_bridge.cli"), "server", "client", "launcher"
    )
    assert "--bridge-key" in environment.run("spyglass-bridge", "--help")
    assert environment.failure("spyglass", "serve") == "spyglass: serve needs: pip install 'spyglass[server]'\n"
    options = ("--http", "127.0.0.1:0", "--grpc", "127.0.0.1:1", "--bridge-key", "some-key")
    with environment.start("spyglass-bridge", *options) as bridge:
        try:
            assert bridge.stdout is not None
            address = bridge.stdout.readline().split()[-1]
            with urllib.request.urlopen(f"{address}/health") as answer:
                assert json.load(answer)["status"] == "ok"
        finally:
            bridge.terminate()
    assert bridge.returncode == 0


async def test_a_conversation_names_the_extra_that_it_needs(environment: Environment) -> None:
    environment.install()
    command, environ = environment.command("spyglass", "chat", "--grpc", "127.0.0.1:1")
    async with terminal(command, environ) as shown:
        await shown.until("a conversation needs: pip install 'spyglass[chat]'")
        assert await shown.end() == 2
    async with terminal([*command, "a question"], environ) as shown:
        await shown.until("spyglass: no connection to 127.0.0.1:1")
        assert await shown.end() == 1
    environment.install("[chat]")
    async with terminal(command, environ) as shown:
        await shown.until("spyglass: no connection to 127.0.0.1:1")
        assert await shown.end() == 1


def test_the_typed_protocol_is_in_the_wheel(environment: Environment) -> None:
    environment.install()
    where = environment.run("python", "-c", "import spyglass.v1 as v1, sys; sys.stdout.write(v1.__path__[0])")
    assert where.startswith(environment.run("python", "-c", "import sys; sys.stdout.write(sys.prefix)"))
    assert {"inference_pb2.pyi", "inference_pb2_grpc.pyi"} <= {path.name for path in Path(where).iterdir()}
