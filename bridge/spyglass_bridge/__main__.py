"""`python -m spyglass_bridge` is `spyglass-bridge`."""

from spyglass_bridge.cli import main

if __name__ == "__main__":
    main()
