"""Loading a checkpoint: what fits, and what is refused with a text for the operator."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from checkpoints import byte_tokenizer, random_checkpoint, write_prompt_files
from random_weights import Sizes, VisionSizes
from spyglass_server.config import EngineConfig
from spyglass_server.engine.messages import EngineRequest, SamplingParams, TokenOutput
from spyglass_server.engine.worker.batch import Row
from spyglass_server.runtime.config import load_config
from spyglass_server.runtime.dummy_weights import dummy_model
from spyglass_server.runtime.launch import CheckpointLoader
from spyglass_server.runtime.model.vision import whole
from spyglass_server.runtime.runner import ModelRunner


@pytest.fixture
def loader(tiny_checkpoint: Path) -> CheckpointLoader:
    config = EngineConfig(
        load_format="auto", dtype="auto", quantization="none", device="cpu", max_model_len=None,
        gpu_memory_utilization=0.9, cache_bytes=8 << 20, image_cache_bytes=8 << 20,
        tensor_parallel_size=1, max_batch=8, max_step_tokens=64, max_chunk_tokens=None,
    )  # fmt: skip
    return CheckpointLoader(folder=tiny_checkpoint, settings=config)


def changed(loader: CheckpointLoader, **settings: Any) -> CheckpointLoader:
    return replace(loader, settings=replace(loader.settings, **settings))


def greedy(loader: CheckpointLoader) -> list[int]:
    core, _ = loader.load()
    core.submit(EngineRequest(id=1, tokens=tuple(range(5, 25)), max_tokens=8, sampling=SamplingParams(temperature=0.0)))
    tokens = []
    while core.has_work:
        tokens += [event.token for event in core.step() if isinstance(event, TokenOutput)]
    return tokens


def test_the_engine_says_what_it_has_loaded(loader: CheckpointLoader) -> None:
    _, info = loader.load()
    assert (info.dtype, info.device, info.max_tokens) == ("float32", "cpu", 4096)
    assert info.max_image_tiles > 4


def test_precision_is_the_checkpoints_unless_it_is_chosen(loader: CheckpointLoader, tmp_path: Path) -> None:
    half = replace(loader, folder=random_checkpoint(tmp_path / "half", dtype=torch.bfloat16))
    assert half.load()[1].dtype == "bfloat16"
    assert changed(half, dtype="float32").load()[1].dtype == "float32"


def test_weights_in_8_bits_are_said_and_answer(loader: CheckpointLoader) -> None:
    small = changed(loader, quantization="int8")
    assert (loader.load()[1].quantization, small.load()[1].quantization) == ("none", "int8")
    assert len(greedy(small)) == 8


@pytest.mark.parametrize("quantization", ["none", "int8"])
def test_dummy_weights_need_no_files_and_are_the_same_at_each_start(
    loader: CheckpointLoader, tmp_path: Path, quantization: str
) -> None:
    folder = write_prompt_files(tmp_path / "empty", byte_tokenizer(), dtype=torch.bfloat16)
    assert not list(folder.glob("*.safetensors"))
    dummy = changed(replace(loader, folder=folder), load_format="dummy", quantization=quantization)
    assert dummy.load()[1].dtype == "bfloat16"
    assert greedy(dummy) == greedy(dummy)
    with pytest.raises(ValueError, match=r"no model\.safetensors"):
        replace(loader, folder=folder).load()


def test_states_of_dummy_weights_stay_of_ordinary_size_through_many_layers(tmp_path: Path) -> None:
    vision = VisionSizes(hidden_size=64, num_layers=32, num_global_layers=8)
    sizes = Sizes(
        hidden_size=128,
        num_heads=4,
        intermediate_size=448,
        num_layers=100,
        cross_layers=tuple(range(3, 100, 5)),
        vision=vision,
    )
    folder = write_prompt_files(tmp_path / "deep", byte_tokenizer(), sizes=sizes, dtype=torch.bfloat16)
    model = dummy_model(load_config(folder), torch.bfloat16, torch.device("cpu"))
    pixels = torch.randn(1, 4, 3, 28, 28, generator=torch.Generator().manual_seed(0)).bfloat16()
    image = whole(model.vision(pixels, 2, 2, 512))
    assert 0.01 < image.float().std() < 100
    runner = ModelRunner(model, 4, 16, 4, torch.bfloat16, torch.device("cpu"))
    request = EngineRequest(id=0, tokens=(), max_tokens=1)
    logits = runner.logits(Row(request=request, tokens=tuple(range(40)), start=0, pages=(0, 1, 2)))
    assert 0.01 < logits.std() < 100
    assert (logits - logits.mean(dim=0)).std() > 0.01  # tokens make a difference


def test_caches_beyond_the_memory_are_refused_in_the_operators_words(loader: CheckpointLoader) -> None:
    with pytest.raises(ValueError, match="too little memory for the model and its caches"):
        changed(loader, cache_bytes=1 << 50).load()


def test_sharded_checkpoints_give_the_same_answers(loader: CheckpointLoader, tmp_path: Path) -> None:
    sharded = random_checkpoint(tmp_path / "sharded", num_shards=3)
    assert len(list(sharded.glob("*.safetensors"))) == 3
    assert greedy(replace(loader, folder=sharded)) == greedy(loader)


def test_prefixes_of_other_versions_give_the_same_answers(
    loader: CheckpointLoader, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    for path in tiny_checkpoint.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())

    def renamed(name: str) -> str:
        if name.startswith("language_model.lm_head"):
            return name.removeprefix("language_model.")
        return "model." + name.replace("language_model.model.", "language_model.")

    tensors = load_file(tmp_path / "model.safetensors")
    save_file({renamed(name): tensor for name, tensor in tensors.items()}, tmp_path / "model.safetensors")
    assert greedy(replace(loader, folder=tmp_path)) == greedy(loader)


def test_a_small_cache_shortens_the_context_and_a_smaller_one_is_refused(
    loader: CheckpointLoader, caplog: pytest.LogCaptureFixture
) -> None:
    _, info = changed(loader, cache_bytes=1 << 20).load()
    assert 0 < info.max_tokens < 4096
    assert "not 4096" in caplog.text
    with pytest.raises(ValueError, match="no room"):
        changed(loader, cache_bytes=100).load()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_model_len": 5000}, "made for 4096"),
        ({"max_model_len": 4000, "cache_bytes": 1 << 20}, "--cache-bytes has room"),
        ({"image_cache_bytes": 1000}, "--image-cache-bytes"),
        ({"device": "cuda"}, "no CUDA device"),
    ],
)
def test_settings_that_do_not_fit_are_named(loader: CheckpointLoader, change: dict[str, Any], message: str) -> None:
    if change == {"device": "cuda"} and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(ValueError, match=message):
        changed(loader, **change).load()


def test_damaged_and_foreign_checkpoints_are_refused(
    loader: CheckpointLoader, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    for path in tiny_checkpoint.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    weights, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    here = replace(loader, folder=tmp_path)
    tensors = load_file(weights)
    first = next(name for name in tensors if "q_proj" in name)

    save_file({name: tensor for name, tensor in tensors.items() if name != first}, weights)
    with pytest.raises(ValueError, match="has no tensor"):
        here.load()
    save_file(tensors | {first: torch.zeros(3, 3)}, weights)
    with pytest.raises(ValueError, match="should have shape"):
        here.load()
    weights.write_bytes(b"\x10" + bytes(100))
    with pytest.raises(ValueError, match="damaged"):
        here.load()
    weights.unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(ValueError, match="other weight formats are not loaded"):
        here.load()
    config.write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(ValueError, match="only 'mllama' is served"):
        here.load()
