"""Whether a caller's key may come in, asked of the server and remembered for a moment.

Owns the cache of answers. Knows nothing of keys themselves: it keeps only their hashes.
"""

import asyncio
import hashlib
import logging
import re
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import grpc

from spyglass.v1 import inference_pb2 as pb
from spyglass_bridge.errors import ApiError, from_rpc_error, invalid_api_key, server_unavailable

if TYPE_CHECKING:
    from spyglass.v1.inference_pb2_grpc import InferenceServiceAsyncStub
    from spyglass_bridge.link import Link, Metadata

_BEARER = re.compile(r"(?i:bearer) ([\x21-\x7e]{1,512})")
_KEEP_S = 2.0
_MAX_ANSWERS = 10_000
_RPC_TIMEOUT_S = 2.0
_VERDICTS = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)

_log = logging.getLogger(__name__)


def bearer_key(headers: list[str]) -> str:
    """The key in the Authorization headers of a request. Raises the 401 unless there is exactly one."""
    match = _BEARER.fullmatch(headers[0]) if len(headers) == 1 else None
    if match is None:
        raise invalid_api_key()
    return match[1]


@dataclass(frozen=True, slots=True)
class _Answer:
    good_until: float
    refusal: ApiError | None


class AccessChecker:
    """Answers of CheckAccess, good and bad, at most 2 s old and bounded in number."""

    def __init__(self, stub: "InferenceServiceAsyncStub", metadata: "Metadata", link: "Link") -> None:
        self._stub = stub
        self._metadata = metadata
        self._link = link
        self._answers: OrderedDict[bytes, _Answer] = OrderedDict()

    async def check(self, key: str) -> None:
        """Returns if the key may call. Raises ApiError: 401 or 403 if not, 503 if nobody can tell."""
        digest = hashlib.sha256(key.encode()).digest()
        now = asyncio.get_running_loop().time()
        answer = self._answers.get(digest)
        if answer is None or answer.good_until <= now:
            answer = _Answer(now + _KEEP_S, await self._ask(key))
            self._remember(digest, answer)
        if answer.refusal is not None:
            raise answer.refusal

    async def _ask(self, key: str) -> ApiError | None:
        request = pb.CheckAccessRequest(caller=pb.Caller(bearer_key=key))
        try:
            await self._stub.CheckAccess(request, metadata=self._metadata, timeout=_RPC_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            # Without a link the refusal may mean the bridge's own key, and be no fault of the caller's.
            if error.code() in _VERDICTS and self._link.is_up:
                return from_rpc_error(error)
            _log.warning("a key could not be checked: %s: %s", error.code().name, error.details())
            raise server_unavailable() from error
        return None

    def _remember(self, digest: bytes, answer: _Answer) -> None:
        self._answers[digest] = answer
        self._answers.move_to_end(digest)
        while len(self._answers) > _MAX_ANSWERS:
            self._answers.popitem(last=False)
