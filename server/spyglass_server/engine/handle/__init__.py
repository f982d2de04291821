"""The server's side of the engine: starts its process, sends it commands and dispatches its events."""
