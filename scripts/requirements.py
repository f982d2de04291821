"""Prints what a project needs, one requirement a line: its dependencies and those of an extra.

    python scripts/requirements.py bridge
    python scripts/requirements.py --project demo/pyproject.toml

An image that installs this list before the project itself keeps it as a layer of its own, which a
change of the source leaves in the cache. Needs only the standard library. Extras that name other
extras are refused.
"""

import argparse
import tomllib
from pathlib import Path
from typing import Any


def requirements(project: dict[str, Any], extra: str | None) -> list[str]:
    """The requirements of the project's core and of at most one extra."""
    found = [*project["dependencies"], *(project["optional-dependencies"][extra] if extra else ())]
    if any(requirement.startswith(project["name"] + "[") for requirement in found):
        raise ValueError(f"the extra {extra} names other extras")
    return sorted(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--project", type=Path, default=Path("pyproject.toml"), help="default: %(default)s")
    parser.add_argument("extra", nargs="?")
    given = parser.parse_args()
    project = tomllib.loads(given.project.read_text(encoding="utf-8"))["project"]
    if given.extra and given.extra not in project["optional-dependencies"]:
        parser.error(f"no extra {given.extra}; there are {', '.join(sorted(project['optional-dependencies']))}")
    print(*requirements(project, given.extra), sep="\n")


if __name__ == "__main__":
    main()
