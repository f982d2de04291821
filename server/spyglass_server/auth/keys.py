"""API keys: which are valid, and what they may do.

Keys are kept as SHA-256 hashes: they are long and random, so a slow hash would add nothing.
"""

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Protocol

from spyglass_server.errors import Forbidden, InvalidRequest, Unauthenticated
from spyglass_server.private_file import write_privately

_FILE = "api-key.sha256"
_PREFIX = "sk-spyglass-"


class Scope(Enum):
    """What a key may do."""

    GENERATE = "generate"
    ACT_FOR_OTHERS = "act for others"


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a key stands for. `key_id` is a public name of the key, and the tenant of its caches."""

    key_id: str
    scope: Scope


class KeyStore(Protocol):
    """Knows which keys are valid."""

    async def check(self, key: str) -> Identity:
        """Who a key stands for.

        Raises:
            Unauthenticated: it is not valid.
        """
        ...


async def identify(keys: KeyStore, header: str | None) -> Identity:
    """Who the value of an authorization header, "Bearer KEY", stands for.

    Raises:
        Unauthenticated: it is malformed, or its key is not valid.
    """
    scheme, _, key = (header or "").partition(" ")
    if scheme.lower() != "bearer" or not key:
        raise Unauthenticated
    return await keys.check(key)


async def find_payer(keys: KeyStore, identity: Identity, caller_key: str | None) -> Identity:
    """Who a call is billed to: its own key, or on a gateway's stream that of the end user.

    Raises:
        Forbidden: the key may not act for others.
        InvalidRequest: a gateway does not name its caller.
        Unauthenticated: the caller's key is not valid, or is a gateway's.
    """
    if identity.scope is not Scope.ACT_FOR_OTHERS:
        if caller_key is not None:
            raise Forbidden("this key may not act for others", field="caller")
        return identity
    if caller_key is None:
        raise InvalidRequest("a gateway names the caller of each generation", field="caller")
    caller = await keys.check(caller_key)
    if caller.scope is Scope.ACT_FOR_OTHERS:
        raise Unauthenticated
    return caller


class ConfiguredKeys:
    """The key store of one server: keys from its settings, or the one that it made at its first start."""

    def __init__(self, keys: dict[bytes, Identity]) -> None:
        self._keys = keys

    @classmethod
    def open(
        cls, data_dir: Path, api_keys: tuple[str, ...], bridge_key: str | None
    ) -> tuple["ConfiguredKeys", str | None]:
        """Makes the store from configured keys.

        Without one, the key of an earlier start is used, and on the first start one is made: its hash is
        stored in `data_dir`, and the key is returned to be shown this once.

        Raises:
            ValueError: the keys contradict each other, or the stored hash is damaged.
        """
        if bridge_key in api_keys:
            raise ValueError("--bridge-key must differ from every --api-key")
        keys = {_digest(key): Identity(_key_id(_digest(key)), Scope.GENERATE) for key in api_keys}
        made = None
        if not keys:
            stored, made = _stored_or_new(data_dir)
            keys[stored] = Identity(_key_id(stored), Scope.GENERATE)
        if bridge_key is not None:
            keys[_digest(bridge_key)] = Identity("bridge", Scope.ACT_FOR_OTHERS)
        return cls(keys), made

    async def check(self, key: str) -> Identity:
        digest = _digest(key)
        for known, identity in self._keys.items():
            if hmac.compare_digest(known, digest):
                return identity
        raise Unauthenticated


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


def _key_id(digest: bytes) -> str:
    return "key-" + hashlib.sha256(b"id:" + digest).hexdigest()[:12]


def _stored_or_new(data_dir: Path) -> tuple[bytes, str | None]:
    data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = data_dir / _FILE
    if path.exists():
        stored = path.read_text("ascii", "replace").strip()
        if not re.fullmatch("[0-9a-f]{64}", stored):
            raise ValueError(f"{path} does not hold a key's hash; remove it, and a new key is made")
        return bytes.fromhex(stored), None
    key = _PREFIX + secrets.token_urlsafe(32)
    digest = _digest(key)
    write_privately(path, digest.hex() + "\n")
    return digest, key
