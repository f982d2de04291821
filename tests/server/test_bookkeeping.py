"""The data folder and prices."""

from pathlib import Path

import pytest

from spyglass_server.config import Prices
from spyglass_server.ledger import lock_data_dir, read_server_id


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
