"""The servers that the end-to-end tests share; each is started when a test first needs it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from checkpoints import demo_checkpoint
from stack import Stack

LLAMA = "meta-llama/Llama-3.2-90B-Vision-Instruct"


@pytest.fixture(scope="session")
def tiny(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Serves random weights as `tiny`: noise, but hundreds of tokens a second, and pictures count."""
    data_dir = tmp_path_factory.mktemp("tiny")
    with Stack(data_dir, "--model", str(tiny_checkpoint), "--served-model-name", "tiny") as stack:
        yield stack


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Serves the demo model under the name of a model that people know."""
    options = ("--model", str(demo_checkpoint()), "--served-model-name", LLAMA, "--max-model-len", "512")
    with Stack(tmp_path_factory.mktemp("demo"), *options) as stack:
        yield stack
