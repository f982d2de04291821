"""Fixtures of the comparison with the references: each is made once for the whole folder."""

from pathlib import Path

import pytest
import torch

from checkpoints import random_checkpoint, write_prompt_files
from fidelity.llama_tokenizer import llama_tokenizer
from fidelity.meta_imports import Meta, import_meta
from fidelity.meta_model import MetaModel
from fidelity.transformers_model import TransformersModel


@pytest.fixture(scope="session")
def meta() -> Meta:
    return import_meta()


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model with open gates."""
    return random_checkpoint(tmp_path_factory.mktemp("fidelity") / "tiny", seed=1)


@pytest.fixture(scope="session")
def meta_model(meta: Meta, checkpoint: Path) -> MetaModel:
    """The tiny model run by Meta's reference."""
    return MetaModel(meta, checkpoint, torch.float32)


@pytest.fixture(scope="session")
def transformers_model(checkpoint: Path) -> TransformersModel:
    """The tiny model run by transformers."""
    return TransformersModel(checkpoint)


@pytest.fixture(scope="session")
def llama_folder(meta: Meta, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder with Llama 3's own tokenizer, without weights."""
    return write_prompt_files(tmp_path_factory.mktemp("fidelity") / "llama", llama_tokenizer(meta.tokenizer_path))
