"""Carries to a machine without network what the check needs there beside torch, transformers and what they bring.

    python benchmarks/gpu/wheels.py --list      # what is fetched
    python benchmarks/gpu/wheels.py             # fetches it into .whl, at the root of the repository

The check unpacks them for the time of a run, those alone that its machine lacks.
"""

import argparse
import importlib.metadata
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
THERE = ("torch", "transformers", "jinja2", "networkx", "numpy", "safetensors", "tokenizers")
"""What the machine has: these two, and of the product's requirements those that they bring."""
ALONE = ("accelerate", "psutil")
"""Fetched without what they need, which would be torch."""
PLATFORMS = (*(f"manylinux_2_{minor}_x86_64" for minor in (34, 31, 28, 27, 24, 17)), "manylinux2014_x86_64")


def requirements() -> list[str]:
    """The product's requirements that are fetched together with what they need."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    return sorted({one for one in (*project["dependencies"], *extras["server"], *extras["bridge"]) if _is_fetched(one)})


def _is_fetched(requirement: str) -> bool:
    return _name(requirement) not in (*THERE, *ALONE)


def _name(requirement: str) -> str:
    return re.split(r"[^\w.-]", requirement)[0].lower()


def fetch(folder: Path, python: str) -> None:
    """Fetches the wheels for Linux on x86-64 and a version of Python such as 3.12.

    Raises:
        subprocess.CalledProcessError: pip could not; it has said why.
    """
    options = ["--only-binary", ":all:", "--implementation", "cp", "--python-version", python, "--dest", str(folder)]
    options += [word for platform in PLATFORMS for word in ("--platform", platform)]
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", *options]
    subprocess.run([*pip, *requirements()], check=True)
    subprocess.run([*pip, "--no-deps", *ALONE], check=True)


def unpack(wheels: Sequence[Path], folder: Path) -> list[str]:
    """Unpacks wheels that fit this Python, and that it lacks in that version or a newer one; returns their names."""
    from packaging.tags import sys_tags
    from packaging.utils import parse_wheel_filename
    from packaging.version import Version

    tags, unpacked = set(sys_tags()), []
    for wheel in wheels:
        name, version, _, fitting = parse_wheel_filename(wheel.name)
        try:
            is_there = Version(importlib.metadata.version(name)) >= version
        except importlib.metadata.PackageNotFoundError:
            is_there = False
        if not is_there and tags & fitting:
            with zipfile.ZipFile(wheel) as file:
                file.extractall(folder)
            unpacked.append(str(name))
    return unpacked


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="prints what is fetched, beside what it needs itself")
    parser.add_argument("--python", default="3.12", help="version of the machine's Python (default: %(default)s)")
    given = parser.parse_args(arguments)
    if given.list:
        print(*requirements(), *ALONE, sep="\n")
        return
    folder = ROOT / ".whl"
    fetch(folder, given.python)
    wheels = list(folder.glob("*.whl"))
    print(f"{len(wheels)} wheels in {folder}, {sum(wheel.stat().st_size for wheel in wheels) / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
