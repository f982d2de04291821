"""The locks of `make lock` and the bill of materials: what they hold agrees with what the project asks for. Offline."""

import json
import re
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "requirements"
LOCKS = sorted(path.name for path in FOLDER.glob("*.txt"))
EXTRAS = {"bridge.txt": "bridge", "server.txt": "server", "all.txt": "all", "dev.txt": "dev"}
PLATFORMS = [
    {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": machine, "os_name": "posix"}
    for machine in ("x86_64", "aarch64")
]
ENTRY = re.compile(r"([a-z0-9-]+)==([^ ;]+)(?: ; (.*?))?((?: --hash=sha256:[0-9a-f]{64})+)")


def entries(name: str) -> list[tuple[str, str, str]]:
    """Name, version and marker of each line of a lock; every line must have a hash at least."""
    text = re.sub(r"\s*\\\n\s*", " ", (FOLDER / name).read_text())
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    found = [ENTRY.fullmatch(line) for line in lines]
    assert [line for line, entry in zip(lines, found, strict=True) if entry is None] == []
    return [(entry[1], entry[2], entry[3] or "") for entry in found if entry]


@cache
def versions(name: str, python: str, platform: int) -> dict[str, str]:
    """What a lock installs on a platform, PyTorch from its own lock."""
    environment = PLATFORMS[platform] | {"python_version": python, "python_full_version": f"{python}.4", "extra": ""}
    found: dict[str, str] = {}
    for lock in dict.fromkeys(("torch.txt", name)):
        for package, version, marker in entries(lock):
            if not marker or Marker(marker).evaluate(environment):
                assert found.setdefault(package, version) == version
    return found


def asked(extra: str, project: str = "pyproject.toml") -> list[Requirement]:
    """What the project and an extra ask for, through extras that name others."""
    told: dict[str, Any] = tomllib.loads((ROOT / project).read_text())["project"]
    extras = told["optional-dependencies"]
    waiting, found = [*told["dependencies"], *extras.get(extra, ())], []
    while waiting:
        one = Requirement(waiting.pop())
        if one.name == told["name"]:
            waiting += [line for name in one.extras for line in extras[name]]
        else:
            found.append(one)
    return found


def test_all_locks_are_there() -> None:
    assert {"torch.txt", "weights.txt", *EXTRAS} == set(LOCKS)


@pytest.mark.parametrize("name", LOCKS)
def test_each_entry_has_an_exact_version_and_hashes(name: str) -> None:
    assert entries(name)


@pytest.mark.parametrize("name", sorted(EXTRAS))
@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
@pytest.mark.parametrize("platform", range(len(PLATFORMS)))
def test_a_lock_satisfies_the_project(name: str, python: str, platform: int) -> None:
    requirements = asked(EXTRAS[name])
    if name in ("server.txt", "all.txt", "dev.txt"):
        requirements += asked("train" if name == "dev.txt" else "", "demo/pyproject.toml")
    locked = versions(name, python, platform)
    environment = PLATFORMS[platform] | {"python_version": python}
    wanted = [one for one in requirements if one.marker is None or one.marker.evaluate(environment)]
    assert len(wanted) > 5
    wrong = [str(one) for one in wanted if not one.specifier.contains(locked.get(canonicalize_name(one.name), "0"))]
    assert wrong == []


def test_pytorch_is_in_its_own_lock_alone() -> None:
    assert versions("torch.txt", "3.12", 0)["torch"] in (ROOT / "Makefile").read_text()
    for name in EXTRAS:
        assert [one for one, *_ in entries(name) if one == "torch" or one.startswith(("nvidia-", "cuda-"))] == []


def test_the_bridge_needs_nothing_of_the_models() -> None:
    assert {"numpy", "transformers", "tokenizers"}.isdisjoint(one for one, *_ in entries("bridge.txt"))


@pytest.mark.parametrize("path", sorted(FOLDER.iterdir()), ids=lambda path: path.name)
def test_nothing_comes_from_somewhere_else_than_pypi(path: Path) -> None:
    text = path.read_text()
    assert not re.search(r"file:|localhost|127\.0\.0\.1|--(extra-)?index|--find-links|/home/|/root/|/opt/", text)
    assert set(re.findall(r"https?://([^/\"]+)", text)) <= {"pypi.org", "cyclonedx.org"}


def test_the_bill_of_materials_is_valid() -> None:
    problem = JsonStrictValidator(SchemaVersion.V1_6).validate_str((FOLDER / "sbom.cdx.json").read_text())
    assert problem is None, problem


def test_the_bill_of_materials_lists_what_is_served() -> None:
    bill = json.loads((FOLDER / "sbom.cdx.json").read_text())
    listed = {component["purl"] for component in bill["components"]}
    served = ("torch.txt", "weights.txt", "bridge.txt", "server.txt", "all.txt")
    locked = {f"pkg:pypi/{name}@{version}" for lock in served for name, version, _ in entries(lock)}
    scripts = json.loads((ROOT / "bridge/spyglass_bridge/page/vendor/vendor.json").read_text())
    vendored = {f"pkg:npm/{name.replace('@', '%40')}@{about['version']}" for name, about in scripts.items()}
    assert listed == locked | vendored
    with_licence = [component for component in bill["components"] if component.get("licenses")]
    assert len(with_licence) > len(listed) / 2
    assert {one["name"] for one in with_licence} >= {"aiohttp", "grpcio", "torch", "transformers", "preact", "marked"}


def test_licences_of_vendored_scripts_are_shipped() -> None:
    for folder in ("bridge/spyglass_bridge/page/vendor", "tests/page/vendor"):
        for about in json.loads((ROOT / folder / "vendor.json").read_text()).values():
            [licence] = [file for file in about["files"] if file.endswith("LICENSE")]
            assert len((ROOT / folder / licence).read_text()) > 400
