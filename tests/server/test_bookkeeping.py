"""Keys and the ledger."""

import stat
from pathlib import Path

import pytest

from spyglass_server.auth import ConfiguredKeys, Scope, identify
from spyglass_server.config import Prices
from spyglass_server.errors import Unauthenticated
from spyglass_server.ledger import lock_data_dir, read_server_id


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
