"""Prints what an extra of this project needs, one requirement a line.

    python scripts/requirements.py bridge

An image that installs this list before the project itself keeps it as a layer of its own, which a
change of the source leaves in the cache. Needs only the standard library and `pyproject.toml` in the
current folder. Extras that name other extras are refused.
"""

import argparse
import tomllib
from pathlib import Path
from typing import Any


def requirements(project: dict[str, Any], extra: str) -> list[str]:
    """The requirements of the project's core and of one extra."""
    found = [*project["dependencies"], *project["optional-dependencies"][extra]]
    if any(requirement.startswith(project["name"] + "[") for requirement in found):
        raise ValueError(f"the extra {extra} names other extras")
    return sorted(found)


def main() -> None:
    project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("extra", choices=sorted(project["optional-dependencies"]))
    print(*requirements(project, parser.parse_args().extra), sep="\n")


if __name__ == "__main__":
    main()
