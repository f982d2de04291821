"""API keys: whose they are, what they may do, and what they may use."""

import hashlib
import re
import secrets
import time
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from spyglass_common.keys import KeyLimits
from spyglass_server.errors import Forbidden, InvalidRequest, Unauthenticated

_PREFIX = "sk-spyglass-"
_TENANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_MAX_NAME_CHARACTERS = 128
_MAX_MODELS = 100


class Scope(Enum):
    """What a key may do."""

    GENERATE = "generate"
    ADMIN = "admin"
    GATEWAY = "gateway"


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """A key, without its secret: `digest` is the secret's SHA-256, and `hint` its last characters.

    `id` is its public name. Keys of one `tenant` share caches and turns. An empty `models` allows all models. Times
    are seconds since 1970. A `configured` key comes from the server's settings.
    """

    id: str
    digest: bytes
    hint: str
    name: str
    tenant: str
    scopes: frozenset[Scope]
    models: tuple[str, ...] = ()
    limits: KeyLimits = field(default_factory=KeyLimits)
    created_s: float = 0.0
    expires_s: float | None = None
    revoked_s: float | None = None
    configured: bool = False

    @classmethod
    def of(cls, secret: str, name: str, scopes: frozenset[Scope]) -> "ApiKey":
        """Returns a key of the server's settings with this secret."""
        digest = digest_of(secret)
        key_id = public_name(digest)
        return cls(id=key_id, digest=digest, hint="", name=name, tenant=key_id, scopes=scopes, configured=True)

    @property
    def is_active(self) -> bool:
        """Whether it is neither revoked nor expired."""
        return self.revoked_s is None and (self.expires_s is None or time.time() < self.expires_s)

    def check(self) -> None:
        """Checks its values.

        Raises:
            InvalidRequest: a value is invalid; `field` names it.
        """
        if len(self.name) > _MAX_NAME_CHARACTERS or not self.name.isprintable():
            raise InvalidRequest(f"a name has at most {_MAX_NAME_CHARACTERS} printable characters", field="key.name")
        if not _TENANT.fullmatch(self.tenant):
            raise InvalidRequest("a tenant has 1 to 64 letters, digits, '.', '_' or '-'", field="key.tenant")
        if not self.scopes:
            raise InvalidRequest("a key needs a scope", field="key.scopes")
        if len(self.models) > _MAX_MODELS:
            raise InvalidRequest(f"a key has at most {_MAX_MODELS} models", field="key.models")
        for dollars in ("usd_per_day", "usd_per_month"):
            amount = getattr(self.limits, dollars)
            if amount is not None and not 0 <= amount < float("inf"):
                raise InvalidRequest("an amount of money is 0 or more", field=f"key.limits.{dollars}")


class KeyStore(Protocol):
    """Knows which keys are valid."""

    def check(self, secret: str) -> ApiKey:
        """Returns the key with this secret.

        Raises:
            Unauthenticated: it is not valid.
        """
        ...

    def current(self, key: ApiKey) -> ApiKey:
        """Returns the current state of a key that was valid.

        Raises:
            Unauthenticated: it is no longer valid.
        """
        ...


def identify(keys: KeyStore, header: str | None) -> ApiKey:
    """Returns the key in the value of an authorization header, "Bearer KEY".

    Raises:
        Unauthenticated: the header is malformed, or its key is not valid.
    """
    scheme, _, secret = (header or "").partition(" ")
    if scheme.lower() != "bearer" or not secret:
        raise Unauthenticated
    return keys.check(secret)


def find_payer(keys: KeyStore, key: ApiKey, caller_secret: str | None) -> ApiKey:
    """Returns the key that pays for what is done with `key` now: itself or, for a gateway, the end user's.

    Raises:
        Forbidden: the key may not act for others, or the payer's may not use models.
        InvalidRequest: a gateway does not name its caller.
        Unauthenticated: the key is no longer valid, or the caller's is not.
    """
    payer = find_caller(keys, key, caller_secret)
    if Scope.GENERATE not in payer.scopes:
        raise Forbidden("this key may not use models")
    return payer


def find_caller(keys: KeyStore, key: ApiKey, caller_secret: str | None) -> ApiKey:
    """Returns the key of the caller that `key` acts for, whatever its scopes; raises as `find_payer` does."""
    key = keys.current(key)
    if Scope.GATEWAY not in key.scopes:
        if caller_secret is not None:
            raise Forbidden("this key may not act for others", field="caller")
        return key
    if caller_secret is None:
        raise InvalidRequest("a gateway names the caller of each generation", field="caller")
    caller = keys.check(caller_secret)
    if Scope.GATEWAY in caller.scopes:
        raise Unauthenticated
    return caller


def new_secret() -> str:
    """Returns an unguessable key: long and random, so that a fast hash of it is as good as a slow one."""
    return _PREFIX + secrets.token_urlsafe(32)


def digest_of(secret: str) -> bytes:
    """Returns the digest that is stored for a key."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()


def public_name(digest: bytes) -> str:
    """Returns the id of a key."""
    return "key-" + hashlib.sha256(b"id:" + digest).hexdigest()[:12]
