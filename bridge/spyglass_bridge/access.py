"""Checks callers' keys with the server and briefly caches the verdicts by key hash."""

import asyncio
import hashlib
import re
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from spyglass_bridge.errors import ApiError, invalid_api_key

_BEARER = re.compile(r"(?i:bearer) ([\x21-\x7e]{1,512})")
_KEEP_S = 1.0
"""A server that shares its keys with others may lag by half a second; in total that is less than two seconds."""
_MAX_ANSWERS = 10_000


def bearer_key(headers: list[str]) -> str:
    """Returns the key from a request's Authorization headers. Raises ApiError 401 unless there is exactly one."""
    match = _BEARER.fullmatch(headers[0]) if len(headers) == 1 else None
    if match is None:
        raise invalid_api_key()
    return match[1]


@dataclass(frozen=True, slots=True)
class _Answer:
    good_until: float
    verdict: str | ApiError


class AccessChecker:
    """Caches answers of `Backend.check_access`, good and bad, for at most 1 s and in bounded number."""

    def __init__(self, check_access: Callable[[str], Awaitable[str | ApiError]]) -> None:
        self._check_access = check_access
        self._answers: OrderedDict[bytes, _Answer] = OrderedDict()

    async def check(self, key: str) -> str:
        """Returns the key's tenant. Raises ApiError: 401 or 403 if it may not call, 503 if the server cannot say."""
        digest = hashlib.sha256(key.encode()).digest()
        now = asyncio.get_running_loop().time()
        answer = self._answers.get(digest)
        if answer is None or answer.good_until <= now:
            answer = _Answer(now + _KEEP_S, await self._check_access(key))
            self._remember(digest, answer)
        if isinstance(answer.verdict, ApiError):
            raise answer.verdict
        return answer.verdict

    def _remember(self, digest: bytes, answer: _Answer) -> None:
        self._answers[digest] = answer
        self._answers.move_to_end(digest)
        while len(self._answers) > _MAX_ANSWERS:
            self._answers.popitem(last=False)
