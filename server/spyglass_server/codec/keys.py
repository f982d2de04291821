"""Converts keys between the protocol's messages and the key store's values."""

from collections.abc import Sequence
from dataclasses import replace

from spyglass.v1 import admin_pb2 as pb
from spyglass_common.keys import KEY_LIMITS, SCOPES, KeyLimits
from spyglass_server.auth import ApiKey, Scope
from spyglass_server.codec import events
from spyglass_server.codec.checks import in_calendar
from spyglass_server.errors import InvalidRequest

_SCOPES = {number: Scope(name) for name, number in SCOPES.items()}
_SET_BY_SERVER = {"id", "created", "revoked", "hint", "configured"}


def encode_key(key: ApiKey) -> pb.ApiKey:
    """A key, without its secret."""
    return pb.ApiKey(
        id=key.id,
        name=key.name,
        tenant=key.tenant,
        scopes=sorted(SCOPES[scope.value] for scope in key.scopes),
        models=key.models,
        limits=key.limits.to_proto(),
        created=events.timestamp(key.created_s or None),
        expires=events.timestamp(key.expires_s),
        revoked=events.timestamp(key.revoked_s),
        hint=key.hint,
        configured=key.configured,
    )


def decode_new_key(key: pb.ApiKey) -> ApiKey:
    """Decodes a new key; its tenant may be empty.

    Raises:
        InvalidRequest: a value is invalid.
    """
    for field, _ in key.ListFields():
        if field.name in _SET_BY_SERVER:
            raise InvalidRequest(f"key.{field.name} is for the server to say", field=f"key.{field.name}")
    return ApiKey(
        id="",
        digest=b"",
        hint="",
        name=key.name,
        tenant=key.tenant,
        scopes=_decode_scopes(key.scopes) or frozenset({Scope.GENERATE}),
        models=tuple(key.models),
        limits=KeyLimits.from_proto(key.limits),
        expires_s=_expiry(key),
    )


def apply_update(key: ApiKey, values: pb.ApiKey, paths: Sequence[str]) -> ApiKey:
    """Returns a key with new values for the fields that `paths` name; fields absent from `values` are cleared.

    Raises:
        InvalidRequest: `paths` is empty, or names a field that cannot be changed.
    """
    if not paths:
        raise InvalidRequest("update_mask must name what is to be changed", field="update_mask")
    limits = KeyLimits.from_proto(values.limits)
    for path in paths:
        match path.split("."):
            case ["name"]:
                key = replace(key, name=values.name)
            case ["tenant"]:
                key = replace(key, tenant=values.tenant or key.id)
            case ["scopes"]:
                key = replace(key, scopes=_decode_scopes(values.scopes))
            case ["models"]:
                key = replace(key, models=tuple(values.models))
            case ["expires"]:
                key = replace(key, expires_s=_expiry(values))
            case ["limits"]:
                key = replace(key, limits=limits)
            case ["limits", name] if name in KEY_LIMITS:
                key = replace(key, limits=replace(key.limits, **{name: getattr(limits, name)}))
            case _:
                raise InvalidRequest(f"{path!r} of a key cannot be changed", field="update_mask")
    return key


def _decode_scopes(scopes: Sequence["pb.Scope.ValueType"]) -> frozenset[Scope]:
    if unknown := [scope for scope in scopes if scope not in _SCOPES]:
        raise InvalidRequest(f"there is no scope {unknown[0]}", field="key.scopes")
    return frozenset(_SCOPES[scope] for scope in scopes)


def _expiry(key: pb.ApiKey) -> float | None:
    return in_calendar("key.expires", key.expires) if key.HasField("expires") else None
