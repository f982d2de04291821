"""The package in a fresh environment: the client alone, then the bridge, neither with the engine's packages."""

import json
import os
import re
import shutil
import subprocess
import urllib.request
import venv
from pathlib import Path

import pytest

from stack import clean_environ

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PARTS = ("protos", "server", "bridge", "clients", "pyproject.toml", "README.md")
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
        self._pip("wheel", "--no-deps", "--wheel-dir", str(folder), str(source))
        [self._wheel] = folder.glob("*.whl")

    def install(self, extra: str = "") -> None:
        """Installs the package, with an extra such as [bridge]."""
        self._pip("install", f"{self._wheel}{extra}")

    def packages(self) -> set[str]:
        """The names of all that is installed."""
        lines = self._pip("freeze", "--all").splitlines()
        return {re.split("[ =@]", line)[0].lower() for line in lines}

    def run(self, program: str, *arguments: str) -> str:
        """What a program of the environment prints on its way to a good end."""
        command = [str(self._bin / program), *arguments]
        return subprocess.run(command, env=self._environ(), capture_output=True, text=True, check=True).stdout

    def start(self, program: str, *arguments: str) -> subprocess.Popen[str]:
        """Starts a program whose output is read through a pipe."""
        return subprocess.Popen(
            [str(self._bin / program), *arguments], env=self._environ(), stdout=subprocess.PIPE, text=True
        )

    def _environ(self) -> dict[str, str]:
        """Without the ways by which this Python finds its modules."""
        return {name: value for name, value in clean_environ().items() if name != "PYTHONPATH"} | {
            "PATH": os.pathsep.join([str(self._bin), os.defpath])
        }

    def _pip(self, *arguments: str) -> str:
        return self.run("python", "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments)


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    return Environment(tmp_path_factory.mktemp("install"))


def test_the_client_installs_alone_and_then_the_bridge(environment: Environment) -> None:
    environment.install()
    assert not environment.packages() & (HEAVY | {"aiohttp", "pydantic", "jinja2"})
    environment.run("python", "-c", "from spyglass_client import AsyncClient, Client")
    assert "chat" in environment.run("spyglass", "--help")

    environment.install("[bridge]")
    assert "aiohttp" in environment.packages()
    assert not environment.packages() & HEAVY
    assert "--bridge-key" in environment.run("spyglass-bridge", "--help")
    options = ("--http", "127.0.0.1:0", "--grpc", "127.0.0.1:1", "--bridge-key", "some-key")
    with environment.start("spyglass-bridge", *options) as bridge:
        try:
            assert bridge.stdout is not None
            address = bridge.stdout.readline().split()[-1]
            with urllib.request.urlopen(f"{address}/health") as answer:
                assert json.load(answer) == {"status": "ok"}
        finally:
            bridge.terminate()
    assert bridge.returncode == 0


def test_the_typed_protocol_is_in_the_wheel(environment: Environment) -> None:
    environment.install()
    where = environment.run("python", "-c", "import spyglass.v1 as v1, sys; sys.stdout.write(v1.__path__[0])")
    assert where.startswith(environment.run("python", "-c", "import sys; sys.stdout.write(sys.prefix)"))
    assert {"inference_pb2.pyi", "inference_pb2_grpc.pyi"} <= {path.name for path in Path(where).iterdir()}
