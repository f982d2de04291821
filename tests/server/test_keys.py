"""Keys: kept as hashes, shared between servers, changed and revoked while they run."""

import asyncio
import sqlite3
import stat
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from spyglass_server.auth import ApiKey, Keys, Scope, find_payer, identify
from spyglass_server.errors import Forbidden, InvalidRequest, NotFound, Unauthenticated, Unavailable
from spyglass_server.ledger import Ledger

Open = Callable[..., tuple[Keys, str | None]]
DRAFT = ApiKey(id="", digest=b"", hint="", name="alice", tenant="acme", scopes=frozenset({Scope.GENERATE}))


@pytest.fixture
async def opened(tmp_path: Path) -> AsyncIterator[Open]:
    """Opens the store as a server does, as often as one wants."""
    await Ledger(tmp_path, "server-1").aclose()  # makes the tables
    stores: list[Keys] = []

    def open_keys(
        *api_keys: str, bridge_key: str | None = None, url: str | None = None, folder: Path = tmp_path
    ) -> tuple[Keys, str | None]:
        keys, made = Keys.open(folder, api_keys=api_keys, bridge_key=bridge_key, url=url)
        stores.append(keys)
        return keys, made

    yield open_keys
    for keys in stores:
        await keys.aclose()


async def test_configured_keys_are_valid_and_no_others(opened: Open) -> None:
    keys, made = opened("a", "b", bridge_key="bridge-secret")
    assert made is None
    assert identify(keys, "Bearer a") != identify(keys, "bearer b")
    assert keys.check("a").scopes == {Scope.GENERATE}
    assert keys.check("bridge-secret").scopes == {Scope.GATEWAY}
    for header in (None, "", "Bearer", "Bearer ", "Bearer c", "Basic a", "a", "Bearer  a", "Bearer ' OR 1=1--"):
        with pytest.raises(Unauthenticated) as refusal:
            identify(keys, header)
        assert str(refusal.value) == "a valid API key is needed: authorization: Bearer KEY"
    with pytest.raises(InvalidRequest, match="settings"):
        await keys.revoke(keys.check("a").id)


async def test_a_key_is_made_once_and_kept_as_a_hash(opened: Open, tmp_path: Path) -> None:
    keys, made = opened()
    assert made is not None
    assert len(made) > 40
    again, second = opened()
    assert second is None
    assert again.check(made) == keys.check(made)
    assert not _holds(tmp_path, made)
    assert stat.S_IMODE((tmp_path / "admin-key").stat().st_mode) == 0o600
    assert (await again.revoke(again.check(made).id)).revoked_s is not None
    assert opened()[1] is None  # one that was revoked is not replaced


async def test_the_key_of_an_earlier_version_is_taken_over(opened: Open, tmp_path: Path) -> None:
    hash_of_a = "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb"
    (tmp_path / "api-key.sha256").write_text(hash_of_a + "\n")
    keys, made = opened()
    assert made is None
    assert keys.check("a").tenant == keys.check("a").id
    assert not (tmp_path / "api-key.sha256").exists()


async def test_keys_that_contradict_each_other_and_damaged_files_are_refused(opened: Open, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--bridge-key must differ"):
        opened("a", "b", bridge_key="b")
    (tmp_path / "api-key.sha256").write_text("")
    with pytest.raises(ValueError, match="remove it"):
        opened()
    (tmp_path / "admin-key").write_text("\n")
    with pytest.raises(ValueError, match="remove it"):
        opened()


async def test_the_operators_key_may_manage_and_nothing_else(opened: Open, tmp_path: Path) -> None:
    keys, _ = opened("a")
    admin = keys.check((tmp_path / "admin-key").read_text().strip())
    assert admin.scopes == {Scope.ADMIN}
    with pytest.raises(Forbidden):
        find_payer(keys, admin, None)


async def test_a_key_is_made_changed_and_revoked(opened: Open) -> None:
    keys, _ = opened("a", bridge_key="bridge-secret")
    key, secret = await keys.create(DRAFT)
    assert (key.name, key.tenant, key.hint) == ("alice", "acme", secret[-4:])
    assert keys.check(secret) == key == opened("a")[0].check(secret)
    changed = await keys.update(key.id, lambda old: replace(old, models=("m",)))
    assert keys.current(key) == changed
    assert changed.models == ("m",)
    assert keys.select("acme", include_ended=False) == [changed]
    with pytest.raises(InvalidRequest, match="scope"):
        await keys.update(key.id, lambda old: replace(old, scopes=frozenset()))
    await keys.update(key.id, lambda old: replace(old, expires_s=time.time() - 1))
    assert not _knows(keys, secret)
    with pytest.raises(Unauthenticated):
        keys.current(key)
    await keys.update(key.id, lambda old: replace(old, expires_s=None))
    assert keys.check(secret).id == key.id
    revoked = await keys.revoke(key.id)
    assert await keys.revoke(key.id) == revoked
    with pytest.raises(Unauthenticated):
        find_payer(keys, keys.check("bridge-secret"), secret)
    assert keys.select("acme", include_ended=False) == []
    assert keys.select("acme", include_ended=True) == [revoked]
    with pytest.raises(NotFound):
        await keys.revoke("key-none")


async def test_servers_that_share_a_database_share_keys_within_two_seconds(
    opened: Open, tmp_path: Path, postgres: str
) -> None:
    await Ledger(tmp_path, "server-1", postgres).aclose()
    here, _ = opened("a", url=postgres, folder=tmp_path)
    there, _ = opened("a", url=postgres, folder=tmp_path)
    there.start()
    key, secret = await here.create(DRAFT)
    async with asyncio.timeout(2):
        while not _knows(there, secret):  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.01)
    await here.revoke(key.id)
    async with asyncio.timeout(2):
        while _knows(there, secret):  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.01)


async def test_keys_stay_valid_while_the_database_is_locked(opened: Open, tmp_path: Path) -> None:
    keys, made = opened()
    assert made is not None
    lock = sqlite3.connect(tmp_path / "usage.sqlite3", isolation_level=None)
    lock.execute("BEGIN EXCLUSIVE")
    try:
        assert keys.check(made).name
        with pytest.raises(Unavailable):
            await keys.create(DRAFT)
    finally:
        lock.execute("ROLLBACK")
        lock.close()
    key, _ = await keys.create(DRAFT)
    assert keys.current(key) == key


def _holds(folder: Path, secret: str) -> bool:
    return any(path.is_file() and secret.encode() in path.read_bytes() for path in folder.rglob("*"))


def _knows(keys: Keys, secret: str) -> bool:
    try:
        return bool(keys.check(secret))
    except Unauthenticated:
        return False
