"""Authentication: who may call, on whose behalf, and what for."""

from spyglass_server.auth.keys import ApiKey, KeyStore, Scope, find_caller, find_payer, identify
from spyglass_server.auth.stored import Keys

__all__ = ["ApiKey", "KeyStore", "Keys", "Scope", "find_caller", "find_payer", "identify"]
