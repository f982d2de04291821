"""Keys and the ledger."""

import sqlite3
import stat
from pathlib import Path

import pytest

from spyglass_server.auth import ConfiguredKeys, Scope, identify
from spyglass_server.config import Prices
from spyglass_server.errors import Unauthenticated
from spyglass_server.ledger import SqliteLedger, Total, lock_data_dir, read_server_id


async def test_configured_keys_are_valid_and_no_others(tmp_path: Path) -> None:
    keys, made = ConfiguredKeys.open(tmp_path, ("a", "b"), "bridge-secret")
    assert made is None
    assert await identify(keys, "Bearer a") != await identify(keys, "bearer b")
    assert (await keys.check("a")).scope is Scope.GENERATE
    assert (await keys.check("bridge-secret")).scope is Scope.ACT_FOR_OTHERS
    for header in (None, "", "Bearer", "Bearer ", "Bearer c", "Basic a", "a", "Bearer  a", "Bearer ' OR 1=1--"):
        with pytest.raises(Unauthenticated) as refusal:
            await identify(keys, header)
        assert str(refusal.value) == "a valid API key is needed: authorization: Bearer KEY"


async def test_a_key_is_made_once_and_kept_as_a_hash(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    keys, made = ConfiguredKeys.open(data_dir, (), None)
    assert made is not None
    assert len(made) > 40
    again, second = ConfiguredKeys.open(data_dir, (), None)
    assert second is None
    assert await again.check(made) == await keys.check(made)
    (stored,) = data_dir.iterdir()
    assert made not in stored.read_text()
    assert stat.S_IMODE(stored.stat().st_mode) == 0o600
    assert stat.S_IMODE(data_dir.stat().st_mode) == 0o700


def test_keys_that_contradict_each_other_and_damaged_hashes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--bridge-key must differ"):
        ConfiguredKeys.open(tmp_path, ("a", "b"), "b")
    (tmp_path / "api-key.sha256").write_text("")
    with pytest.raises(ValueError, match="remove it"):
        ConfiguredKeys.open(tmp_path, (), None)


async def test_a_record_is_opened_and_closed_once(tmp_path: Path) -> None:
    ledger = SqliteLedger(tmp_path / "usage.sqlite3", "here")
    record = await ledger.open("k", "r", "m", prompt_tokens=10, cached_tokens=2)
    (running,) = await ledger.latest("k", 5)
    assert (running.finished_s, running.outcome) == (None, "")
    await ledger.close(record, 7, 0.5, "OK")
    await ledger.close(record, 70, 5.0, "INTERNAL")
    (closed,) = await ledger.latest("k", 5)
    assert (closed.completion_tokens, closed.cost_usd, closed.outcome) == (7, 0.5, "OK")
    assert await ledger.total("k") == Total(generations=1, prompt_tokens=10, completion_tokens=7, cost_usd=0.5)
    assert await ledger.total("another") == Total(generations=0, prompt_tokens=0, completion_tokens=0, cost_usd=0.0)
    await ledger.aclose()


async def test_records_that_a_crash_left_open_are_closed_as_lost(tmp_path: Path) -> None:
    path = tmp_path / "usage.sqlite3"
    ledger = SqliteLedger(path, "here")
    await ledger.open("k", "r", "m", 10, 0)
    again = SqliteLedger(path, "here")  # as another process would, after a crash
    (lost,) = await again.latest("k", 1)
    assert lost.outcome == "LOST"
    await ledger.aclose()
    await again.aclose()
    with sqlite3.connect(path) as db:
        assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    db.close()


async def test_a_server_closes_only_its_own_records_as_lost(tmp_path: Path) -> None:
    path = tmp_path / "usage.sqlite3"
    ledger = SqliteLedger(path, "there")
    await ledger.open("k", "r", "m", 10, 0)
    other = SqliteLedger(path, "here")
    (running,) = await other.latest("k", 1)
    assert running.outcome == ""
    await ledger.aclose()
    await other.aclose()


async def test_a_ledger_of_before_records_named_their_server_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "usage.sqlite3"
    ledger = SqliteLedger(path, "here")
    await ledger.open("k", "r", "m", 10, 0)
    await ledger.aclose()
    with sqlite3.connect(path) as db:
        db.execute("ALTER TABLE generations DROP COLUMN server_id")
    db.close()
    again = SqliteLedger(path, "here")
    (lost,) = await again.latest("k", 1)
    assert (lost.prompt_tokens, lost.outcome) == (10, "LOST")
    await again.aclose()


def test_a_data_folder_names_one_server(tmp_path: Path) -> None:
    lock = lock_data_dir(tmp_path)
    assert read_server_id(tmp_path) == read_server_id(tmp_path) != ""
    with pytest.raises(ValueError, match="another server uses"):
        lock_data_dir(tmp_path)
    lock.close()


def test_cost_is_tokens_times_price() -> None:
    prices = Prices(input=0.35, output=0.40, cached_input=0.1)
    assert prices.cost(1000, 0, 500) == 1000 * 0.35 / 1e6 + 500 * 0.40 / 1e6
    assert prices.cost(1000, 1000, 0) == pytest.approx(1000 * 0.1 / 1e6)
