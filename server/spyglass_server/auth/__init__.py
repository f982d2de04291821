"""Authentication: who may call, and on whose behalf."""

from spyglass_server.auth.keys import ConfiguredKeys, Identity, KeyStore, Scope, find_payer, identify

__all__ = ["ConfiguredKeys", "Identity", "KeyStore", "Scope", "find_payer", "identify"]
