"""The keys of a server: those of its settings, and those in the database, which several servers may share.

All keys are in memory, so that a check needs no query. A shared database is polled for other servers' changes twice a
second. While it cannot be reached, the keys stay as they were.
"""

import asyncio
import hmac
import logging
import re
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from spyglass_common.data_dir import ADMIN_KEY_FILE
from spyglass_server.auth import table
from spyglass_server.auth.keys import ApiKey, Scope, digest_of, new_secret, public_name
from spyglass_server.database import connect, sqlite_url
from spyglass_server.errors import InvalidRequest, NotFound, Unauthenticated, Unavailable
from spyglass_server.private_file import write_privately

T = TypeVar("T")

log = logging.getLogger(__name__)

_OLD_KEY_FILE = "api-key.sha256"
_LOOK_S = 0.5
_HINT_CHARACTERS = 4
_GENERATE = frozenset({Scope.GENERATE})


class Keys:
    """The key store of one server."""

    def __init__(self, configured: Iterable[ApiKey], url: str) -> None:
        """Reads the keys in the database at `url`, whose tables must exist."""
        self._configured = tuple(configured)
        self._is_shared = not url.startswith("sqlite")
        self._engine = connect(url)
        self._thread = ThreadPoolExecutor(1, "keys")
        self._task: asyncio.Task[None] | None = None
        self._changes: set[asyncio.Task[Any]] = set()
        self._number = -1
        self._stored: list[ApiKey] = []
        self._by_digest: dict[bytes, ApiKey] = {}
        self._by_id: dict[str, ApiKey] = {}
        self._take(*self._thread.submit(self._transact, table.load).result())

    @classmethod
    def open(
        cls, data_dir: Path, *, api_keys: tuple[str, ...], bridge_key: str | None, url: str | None
    ) -> tuple["Keys", str | None]:
        """Opens the store with the keys of the settings and the operator's key, which is in the data folder.

        At the first start without a key in the settings, one is made, and returned to be shown only this once.

        Raises:
            ValueError: keys contradict each other, or a file is damaged.
        """
        if bridge_key in api_keys:
            raise ValueError("--bridge-key must differ from every --api-key")
        configured = [ApiKey.of(key, "--api-key", _GENERATE) for key in dict.fromkeys(api_keys)]
        if bridge_key is not None:
            bridge = ApiKey.of(bridge_key, "--bridge-key", frozenset({Scope.GATEWAY}))
            configured.append(replace(bridge, id="bridge", tenant="bridge"))
        admin = ApiKey.of(_operators_key(data_dir), f"{ADMIN_KEY_FILE} in the data folder", frozenset({Scope.ADMIN}))
        keys = cls([*configured, admin], url or sqlite_url(data_dir))
        made = None
        if not api_keys and not keys._stored:
            made = keys._begin(data_dir / _OLD_KEY_FILE)
        return keys, made

    def start(self) -> None:
        """Starts polling for other servers' changes."""
        if self._is_shared:
            self._task = asyncio.create_task(self._look(), name="keys")

    async def aclose(self) -> None:
        """Stops polling, and closes the database."""
        if self._task:
            self._task.cancel()
        await asyncio.gather(*self._changes, *([self._task] if self._task else []), return_exceptions=True)
        await asyncio.to_thread(self._thread.shutdown)
        self._engine.dispose()

    def check(self, secret: str) -> ApiKey:
        digest = digest_of(secret)
        key = self._by_digest.get(digest)  # by hash, so that timing reveals nothing about the key
        if key is None or not hmac.compare_digest(key.digest, digest) or not key.is_active:
            raise Unauthenticated
        return key

    def current(self, key: ApiKey) -> ApiKey:
        now = self._by_id.get(key.id)
        if now is None or not now.is_active:
            raise Unauthenticated
        return now

    def select(self, tenant: str, *, include_ended: bool) -> list[ApiKey]:
        """Returns the keys of a tenant, or of all: those of the settings, then the others, oldest first."""
        return [
            key
            for key in (*self._configured, *self._stored)
            if tenant in ("", key.tenant) and (include_ended or key.is_active)
        ]

    def get(self, key_id: str) -> ApiKey:
        """Returns one key.

        Raises:
            NotFound: no key has this id.
        """
        if (key := self._by_id.get(key_id)) is None:
            raise NotFound(f"there is no key {key_id!r}", field="id")
        return key

    async def create(self, draft: ApiKey) -> tuple[ApiKey, str]:
        """Makes a key like `draft`, with a new id and a new secret, which is returned only this once.

        Raises:
            InvalidRequest: a value is invalid.
            Unavailable: the database cannot be written.
        """
        secret = new_secret()
        key = _finish(draft, digest_of(secret), secret[-_HINT_CHARACTERS:])
        key.check()
        await self._change(lambda db: table.add(db, key))
        return key, secret

    async def update(self, key_id: str, change: Callable[[ApiKey], ApiKey]) -> ApiKey:
        """Changes a key and returns the result.

        Raises:
            NotFound: no key has this id.
            InvalidRequest: it comes from the settings, or a value is invalid.
            Unavailable: the database cannot be written.
        """
        if self.get(key_id).configured:
            raise InvalidRequest(f"the key {key_id!r} comes from the server's settings", field="id")

        def work(db: sa.Connection) -> ApiKey:
            key = table.find(db, key_id)
            if key is None:
                raise NotFound(f"there is no key {key_id!r}", field="id")
            key = change(key)
            key.check()
            table.replace(db, key)
            return key

        return await self._change(work)

    async def revoke(self, key_id: str) -> ApiKey:
        """Ends a key for good and returns it; no effect on a revoked one. Raises as `update` does."""
        return await self.update(key_id, lambda key: replace(key, revoked_s=key.revoked_s or time.time()))

    async def _change(self, work: Callable[[sa.Connection], T]) -> T:
        """Changes keys and then reloads all of them, even if the caller has left meanwhile."""

        async def change() -> T:
            return await self._apply(lambda db: (work(db), table.load(db)))

        task = asyncio.create_task(change(), name="change of keys")
        self._changes.add(task)
        task.add_done_callback(self._changes.discard)
        return await asyncio.shield(task)

    async def _apply(self, work: Callable[[sa.Connection], tuple[T, tuple[int, list[ApiKey]]]]) -> T:
        try:
            made, state = await asyncio.get_running_loop().run_in_executor(self._thread, self._transact, work)
        except SQLAlchemyError as error:
            log.error("keys cannot be changed: %s", error)
            raise Unavailable("keys cannot be changed now", reason="keys_unavailable", retry_after_s=1.0) from error
        self._take(*state)
        return made

    async def _look(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(_LOOK_S)
            try:
                if await loop.run_in_executor(self._thread, self._transact, table.changes) != self._number:
                    self._take(*await loop.run_in_executor(self._thread, self._transact, table.load))
            except SQLAlchemyError as error:
                log.warning("keys cannot be read, and stay as they are: %s", error)

    def _transact(self, work: Callable[[sa.Connection], T]) -> T:
        with self._engine.begin() as db:
            return work(db)

    def _take(self, number: int, stored: list[ApiKey]) -> None:
        self._number, self._stored = number, stored
        self._by_id = {key.id: key for key in (*stored, *self._configured)}
        self._by_digest = {key.digest: key for key in self._by_id.values()}

    def _begin(self, old_file: Path) -> str | None:
        """Makes the first key, or takes over that of an earlier version; returns it if it is new."""
        made = None
        if old_file.exists():
            digest, hint = _read_digest(old_file), ""
        else:
            made = new_secret()
            digest, hint = digest_of(made), made[-_HINT_CHARACTERS:]
        draft = ApiKey(id="", digest=b"", hint="", name="made at the first start", tenant="", scopes=_GENERATE)
        key = _finish(draft, digest, hint)
        self._thread.submit(self._transact, lambda db: table.add(db, key)).result()
        self._take(*self._thread.submit(self._transact, table.load).result())
        old_file.unlink(missing_ok=True)
        return made


def _finish(draft: ApiKey, digest: bytes, hint: str) -> ApiKey:
    key_id = public_name(digest)
    tenant = draft.tenant or key_id
    return replace(draft, id=key_id, digest=digest, hint=hint, tenant=tenant, created_s=time.time())


def _operators_key(data_dir: Path) -> str:
    """The key that `spyglass keys` uses beside the server; users who can read the folder could change keys anyway."""
    path = data_dir / ADMIN_KEY_FILE
    if not path.exists():
        write_privately(path, new_secret() + "\n")
    secret = path.read_text("ascii", "replace").strip()
    if not secret:
        raise ValueError(f"{path} is damaged; remove it, and a new key is made")
    return secret


def _read_digest(path: Path) -> bytes:
    stored = path.read_text("ascii", "replace").strip()
    if not re.fullmatch("[0-9a-f]{64}", stored):
        raise ValueError(f"{path} does not hold a key's hash; remove it, and a new key is made")
    return bytes.fromhex(stored)
