"""Checkpoints that several parts of the tests share."""

from pathlib import Path

import pytest

from checkpoints import random_checkpoint


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Mllama checkpoint with open gates, float32."""
    return random_checkpoint(tmp_path_factory.mktemp("checkpoints") / "tiny", seed=0)
