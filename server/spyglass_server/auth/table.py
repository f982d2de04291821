"""Keys in the database."""

from dataclasses import asdict
from typing import Any

import sqlalchemy as sa

from spyglass_common.keys import KeyLimits
from spyglass_server.auth.keys import ApiKey, Scope
from spyglass_server.database import API_KEYS, KEY_CHANGES


def load(db: sa.Connection) -> tuple[int, list[ApiKey]]:
    """Returns the number of changes so far, and all keys, oldest first."""
    number = changes(db)
    rows = db.execute(sa.select(API_KEYS).order_by(API_KEYS.c.created_s, API_KEYS.c.id)).mappings()
    return number, [_from_row(row) for row in rows]


def changes(db: sa.Connection) -> int:
    """Returns the number of changes so far."""
    return int(db.execute(sa.select(KEY_CHANGES.c.number)).scalar_one())


def add(db: sa.Connection, key: ApiKey) -> None:
    """Adds a key."""
    db.execute(sa.insert(API_KEYS).values(_to_row(key)))
    _count(db)


def find(db: sa.Connection, key_id: str) -> ApiKey | None:
    """Returns one key, locked against other changes until the transaction ends."""
    _count(db)  # takes the lock
    row = db.execute(sa.select(API_KEYS).where(API_KEYS.c.id == key_id)).mappings().first()
    return None if row is None else _from_row(row)


def replace(db: sa.Connection, key: ApiKey) -> None:
    """Changes a key that `find` has returned."""
    db.execute(sa.update(API_KEYS).where(API_KEYS.c.id == key.id).values(_to_row(key)))


def _count(db: sa.Connection) -> None:
    db.execute(sa.update(KEY_CHANGES).values(number=KEY_CHANGES.c.number + 1))


def _to_row(key: ApiKey) -> dict[str, Any]:
    return {
        "id": key.id,
        "digest": key.digest.hex(),
        "hint": key.hint,
        "name": key.name,
        "tenant": key.tenant,
        "scopes": sorted(scope.value for scope in key.scopes),
        "models": list(key.models),
        "limits": {name: value for name, value in asdict(key.limits).items() if value is not None},
        "created_s": key.created_s,
        "expires_s": key.expires_s,
        "revoked_s": key.revoked_s,
    }


def _from_row(row: Any) -> ApiKey:
    values = dict(row)
    return ApiKey(
        **values
        | {
            "digest": bytes.fromhex(values["digest"]),
            "scopes": frozenset(map(Scope, values["scopes"])),
            "models": tuple(values["models"]),
            "limits": KeyLimits(**values["limits"]),
        }
    )
