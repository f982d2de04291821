"""`python -m spyglass_server` is `spyglass-server`."""

from spyglass_server.cli import main

if __name__ == "__main__":
    main()
