"""Who may call, and on whose behalf."""

from spyglass_server.auth.keys import Identity, KeyStore, Scope

__all__ = ["Identity", "KeyStore", "Scope"]
