"""The RPCs of AdminService: API keys, and the usage of all of them."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from grpc import aio

from spyglass.v1 import admin_pb2 as pb
from spyglass.v1 import admin_pb2_grpc
from spyglass_server.auth import Keys
from spyglass_server.codec.keys import apply_update, decode_new_key, encode_key
from spyglass_server.codec.usage import decode_filter, decode_groups, decode_max_records, encode_record, encode_sum
from spyglass_server.errors import InvalidRequest
from spyglass_server.ledger import Ledger

_MAX_PAGE = 1000

if TYPE_CHECKING:  # generic only in the stubs
    Context = aio.ServicerContext[Any, Any]


class AdminServicer(admin_pb2_grpc.AdminServiceServicer):
    """Answers operators, whose keys the boundary has checked."""

    def __init__(self, keys: Keys, ledger: Ledger) -> None:
        self._keys, self._ledger = keys, ledger

    async def CreateKey(self, request: pb.CreateKeyRequest, context: "Context") -> pb.CreateKeyResponse:
        key, secret = await self._keys.create(decode_new_key(request.key))
        return pb.CreateKeyResponse(key=encode_key(key), secret=secret)

    async def ListKeys(self, request: pb.ListKeysRequest, context: "Context") -> pb.ListKeysResponse:
        if request.page_size > _MAX_PAGE:
            raise InvalidRequest(f"a page has at most {_MAX_PAGE} keys", field="page_size")
        keys = self._keys.select(request.tenant, include_ended=request.include_ended)
        if request.page_token:
            ids = [key.id for key in keys]
            if request.page_token not in ids:
                raise InvalidRequest("the page token is of another question", field="page_token")
            keys = keys[ids.index(request.page_token) + 1 :]
        page = keys[: request.page_size or _MAX_PAGE]
        return pb.ListKeysResponse(
            keys=map(encode_key, page), next_page_token=page[-1].id if len(page) < len(keys) else ""
        )

    async def GetKey(self, request: pb.GetKeyRequest, context: "Context") -> pb.GetKeyResponse:
        return pb.GetKeyResponse(key=encode_key(self._keys.get(request.id)))

    async def UpdateKey(self, request: pb.UpdateKeyRequest, context: "Context") -> pb.UpdateKeyResponse:
        paths = request.update_mask.paths
        key = await self._keys.update(request.key.id, lambda key: apply_update(key, request.key, paths))
        return pb.UpdateKeyResponse(key=encode_key(key))

    async def RevokeKey(self, request: pb.RevokeKeyRequest, context: "Context") -> pb.RevokeKeyResponse:
        return pb.RevokeKeyResponse(key=encode_key(await self._keys.revoke(request.id)))

    async def ReportUsage(self, request: pb.ReportUsageRequest, context: "Context") -> pb.ReportUsageResponse:
        chosen = replace(decode_filter(request.filter), tenant=request.tenant, key_id=request.key_id)
        groups, limit = decode_groups(request.group_by), decode_max_records(request.max_records)
        sums = await self._ledger.sums(chosen, groups)
        latest = await self._ledger.latest(chosen, limit)
        return pb.ReportUsageResponse(sums=map(encode_sum, sums), records=map(encode_record, latest))
