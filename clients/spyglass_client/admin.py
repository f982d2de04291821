"""The client for operators: manages keys and reports the usage of all of them."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType
from typing import Any, Self, cast

import grpc

from spyglass.v1 import admin_pb2 as pb
from spyglass.v1 import admin_pb2_grpc as pb_grpc
from spyglass_client.account import UsageRecord, UsageSum, optional_moment, usage_filter, usage_groups
from spyglass_client.errors import from_rpc_error
from spyglass_client.target import Tls, default_admin_key, default_target, open_blocking_channel
from spyglass_common.keys import KEY_LIMITS, SCOPES, KeyLimits


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """A key without its secret; `hint` is the secret's end. An empty `models` means all models.

    A `configured` key comes from the server's settings.
    """

    id: str
    name: str
    tenant: str
    scopes: tuple[str, ...]
    models: tuple[str, ...]
    limits: KeyLimits
    created: datetime | None
    expires: datetime | None
    revoked: datetime | None
    hint: str
    configured: bool

    @classmethod
    def from_proto(cls, key: pb.ApiKey) -> "ApiKey":
        names = {number: name for name, number in SCOPES.items()}
        return cls(
            id=key.id,
            name=key.name,
            tenant=key.tenant,
            scopes=tuple(names.get(scope, str(scope)) for scope in key.scopes),
            models=tuple(key.models),
            limits=KeyLimits.from_proto(key.limits),
            created=optional_moment(key, "created"),
            expires=optional_moment(key, "expires"),
            revoked=optional_moment(key, "revoked"),
            hint=key.hint,
            configured=key.configured,
        )


class AdminClient:
    """Manages the keys of a Spyglass server, and reports usage.

        with AdminClient() as admin:
            key, secret = admin.create_key(name="alice", tenant="acme", requests_per_minute=60)

    `target` and `tls` are as in `Client`; `admin_key` is a key with the scope admin, and defaults to
    SPYGLASS_ADMIN_KEY. Every method raises SpyglassError if the server cannot be reached or refuses.
    """

    def __init__(
        self,
        target: str | None = None,
        *,
        admin_key: str | None = None,
        tls: Tls | None = None,
        call_timeout_s: float = 30.0,
    ) -> None:
        self.target = target or default_target(os.environ)
        key = admin_key or default_admin_key(os.environ)
        self._metadata = (("authorization", f"Bearer {key}"),) if key else ()
        self._call_timeout_s = call_timeout_s
        self._channel = open_blocking_channel(self.target, tls)
        self._stub = pb_grpc.AdminServiceStub(self._channel)

    def create_key(self, **fields: Any) -> tuple[ApiKey, str]:
        """Creates a key and returns it with its secret, which cannot be shown again.

        The fields are name, tenant, scopes (from SCOPES), models, expires (a datetime) and those of KeyLimits.
        """
        answer = self._call(self._stub.CreateKey, pb.CreateKeyRequest(key=_to_proto(fields)))
        return ApiKey.from_proto(answer.key), answer.secret

    def keys(self, tenant: str = "", *, include_ended: bool = False) -> list[ApiKey]:
        """Lists all keys or a tenant's, oldest first; revoked and expired ones only with `include_ended`."""
        found: list[ApiKey] = []
        token = ""
        while True:
            request = pb.ListKeysRequest(tenant=tenant, include_ended=include_ended, page_token=token)
            answer = self._call(self._stub.ListKeys, request)
            found += map(ApiKey.from_proto, answer.keys)
            if not (token := answer.next_page_token):
                return found

    def key(self, key_id: str) -> ApiKey:
        """Returns one key."""
        return ApiKey.from_proto(self._call(self._stub.GetKey, pb.GetKeyRequest(id=key_id)).key)

    def update_key(self, key_id: str, **fields: Any) -> ApiKey:
        """Changes the given fields, as in `create_key`; None clears a field."""
        key = _to_proto(fields)
        key.id = key_id
        request = pb.UpdateKeyRequest(key=key)
        request.update_mask.paths.extend(f"limits.{name}" if name in KEY_LIMITS else name for name in fields)
        return ApiKey.from_proto(self._call(self._stub.UpdateKey, request).key)

    def revoke_key(self, key_id: str) -> ApiKey:
        """Revokes a key permanently."""
        return ApiKey.from_proto(self._call(self._stub.RevokeKey, pb.RevokeKeyRequest(id=key_id)).key)

    def usage(
        self,
        *,
        tenant: str = "",
        key_id: str = "",
        model: str = "",
        since: datetime | None = None,
        until: datetime | None = None,
        group_by: Sequence[str] = (),
        max_records: int = 0,
    ) -> tuple[list[UsageSum], list[UsageRecord]]:
        """Reports usage: a sum for each group (tenant, key, model, day), and the latest generations."""
        request = pb.ReportUsageRequest(
            filter=usage_filter(model, since, until),
            tenant=tenant,
            key_id=key_id,
            group_by=usage_groups(group_by),
            max_records=max_records,
        )
        answer = self._call(self._stub.ReportUsage, request)
        return list(map(UsageSum.from_proto, answer.sums)), list(map(UsageRecord.from_proto, answer.records))

    def close(self) -> None:
        """Closes the connection."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _call(self, method: Callable[..., Any], request: Any) -> Any:
        try:
            return method(request, metadata=self._metadata, timeout=self._call_timeout_s)
        except grpc.RpcError as error:
            raise from_rpc_error(cast("grpc.Call", error), self.target) from error


def _to_proto(values: dict[str, Any]) -> pb.ApiKey:
    key = pb.ApiKey(name=values.get("name") or "", tenant=values.get("tenant") or "", models=values.get("models") or ())
    for scope in values.get("scopes") or ():
        if scope not in SCOPES:
            raise ValueError(f"there is no scope {scope!r}: use {', '.join(SCOPES)}")
        key.scopes.append(SCOPES[scope])
    if (expires := values.get("expires")) is not None:
        key.expires.FromDatetime(expires)
    key.limits.CopyFrom(KeyLimits(**{name: values.get(name) for name in KEY_LIMITS}).to_proto())
    return key
