"""`python -m spyglass_client` is the `spyglass` command."""

import sys

from spyglass_client.cli import main

if __name__ == "__main__":
    sys.exit(main())
