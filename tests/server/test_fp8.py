"""Weights in fp8: rounded when they are loaded, or published so.

No GPU is needed: on CPUs the same values are rounded as there, and what GPUs compute with them is stood in for.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from checkpoints import random_checkpoint
from fidelity.ours import Ours
from fidelity.prompts import PROMPTS
from quantized import fp8_checkpoint
from random_weights import Sizes
from spyglass_server.config import EngineConfig
from spyglass_server.runtime import linear as linear_module
from spyglass_server.runtime.checkpoint import load_model
from spyglass_server.runtime.config import load_config
from spyglass_server.runtime.fp8 import to_fp8
from spyglass_server.runtime.launch import CheckpointLoader
from spyglass_server.runtime.linear import Fp8Linear, fp8_product
from spyglass_server.runtime.model.mllama import Mllama
from spyglass_server.runtime.runner import ModelRunner

CPU = torch.device("cpu")
PROMPT = PROMPTS["text, image, text"]


def loader(folder: Path, **changes: Any) -> CheckpointLoader:
    settings = EngineConfig(
        load_format="auto", dtype="auto", quantization="none", device="cpu", max_model_len=None,
        gpu_memory_utilization=0.9, cache_bytes=8 << 20, image_cache_bytes=8 << 20,
        tensor_parallel_size=1, max_batch=8, max_step_tokens=64, max_chunk_tokens=8,
    )  # fmt: skip
    return CheckpointLoader(folder=folder, settings=replace(settings, **changes))


def model_of(folder: Path, convert: Callable[[nn.Linear], nn.Module] | None = None) -> Mllama:
    return load_model(folder, load_config(folder), torch.float32, CPU, convert)


def logits(model: Mllama, folder: Path) -> Tensor:
    """Of a prompt with a picture."""
    runner = ModelRunner(model, 64, 16, 128, torch.float32, CPU)
    return Ours(runner, folder).logits(PROMPT.token_ids(), PROMPT.images())


def relative(near: Tensor, exact: Tensor) -> float:
    return float((near.float() - exact.float()).norm() / exact.float().norm())


# --- products --------------------------------------------------------------------------------------


def test_rows_are_rounded_to_three_bits_beside_the_largest_value() -> None:
    x = torch.tensor([[896.0, 34.0, -50.0, 0.001], [0.0, 0.0, 0.0, 0.0], [7e-6, -1e-6, 0.0, 0.0]])
    values, scales = to_fp8(x)
    assert values.dtype == torch.float8_e4m3fn
    assert (values.float() * scales)[:2].tolist() == [[896.0, 32.0, -48.0, 0.0], [0.0, 0.0, 0.0, 0.0]]
    assert (values.float() * scales)[2, 0] == pytest.approx(7e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_product_is_that_of_the_rounded_values(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 48, generator=generator).to(dtype)
    weight, scales = to_fp8(torch.randn(33, 48, generator=generator))
    rounded, by_token = to_fp8(x)
    expected = (rounded.double() * by_token) @ (weight.double() * scales).t()
    out = fp8_product(x, weight, scales.t())
    assert out.dtype == dtype
    assert relative(out, expected) < (1e-6 if dtype == torch.float32 else 4e-3)


def test_every_value_of_the_format_counts_as_what_it_is() -> None:
    every = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn)
    finite = every[~every.float().isnan()].reshape(-1, 1)
    assert len(finite) == 254
    out = fp8_product(torch.ones(1, 1), finite, torch.ones(1, len(finite)))
    torch.testing.assert_close(out[0], finite[:, 0].float(), rtol=1e-6, atol=0)


def test_a_row_that_is_not_finite_spoils_no_other() -> None:
    weight, scales = to_fp8(torch.eye(16))
    x = torch.ones(3, 16)
    x[1, 3] = torch.inf
    out = fp8_product(x, weight, scales.t())
    torch.testing.assert_close(out[[0, 2]], x[[0, 2]], rtol=1e-6, atol=0)
    assert not out[1].isfinite().all()


def test_inputs_may_lie_in_memory_in_any_order() -> None:
    values, scales = to_fp8(torch.arange(12.0).reshape(3, 4).t())
    assert values.is_contiguous()
    torch.testing.assert_close(values.float() * scales, torch.arange(12.0).reshape(3, 4).t(), rtol=0.07, atol=0)


class OnGpu(Tensor):
    """Computes on the CPU and says that it is on a GPU."""

    is_cuda = True


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[tuple[int, int]], list[tuple[Any, ...]]]:
    """Makes products those of a GPU with a compute capability; returns the products of its fp8 units."""

    def make(capability: tuple[int, int]) -> list[tuple[Any, ...]]:
        calls: list[tuple[Any, ...]] = []
        scaled_mm = torch._scaled_mm

        def count(a: Tensor, b: Tensor, **options: Any) -> Tensor:
            calls.append((tuple(a.shape), tuple(b.shape), b.stride(0), options["out_dtype"]))
            scales = {name: options.pop(name).as_subclass(Tensor) for name in ("scale_a", "scale_b")}
            return scaled_mm(a.as_subclass(Tensor), b, **scales, **options)

        monkeypatch.setattr(torch, "_scaled_mm", count)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        linear_module._has_fp8_units.cache_clear()
        return calls

    return make


def test_gpus_with_fp8_units_multiply_in_fp8(gpu: Callable[[tuple[int, int]], list[tuple[Any, ...]]]) -> None:
    calls = gpu((8, 9))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 48, generator=generator).bfloat16()
    weight, scales = to_fp8(torch.randn(32, 48, generator=generator))
    out = fp8_product(x.as_subclass(OnGpu), weight, scales.t())
    assert calls == [((5, 48), (48, 32), 1, torch.bfloat16)]
    assert relative(out, fp8_product(x, weight, scales.t())) < 4e-3


@pytest.mark.parametrize(("capability", "outputs"), [((8, 0), 32), ((9, 0), 33)], ids=["no units", "odd size"])
def test_other_products_on_gpus_leave_the_inputs_as_they_are(
    gpu: Callable[[tuple[int, int]], list[tuple[Any, ...]]], capability: tuple[int, int], outputs: int
) -> None:
    calls = gpu(capability)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 48, generator=generator).bfloat16()
    weight, scales = to_fp8(torch.randn(outputs, 48, generator=generator))
    out = fp8_product(x.as_subclass(OnGpu), weight, scales.t())
    assert not calls
    assert out.dtype == torch.bfloat16
    assert relative(out, x.double() @ (weight.double() * scales).t()) < 5e-3


# --- rounded when loaded ---------------------------------------------------------------------------


def test_the_layers_of_text_take_a_byte_for_each_weight_and_answer_nearly_the_same(tiny_checkpoint: Path) -> None:
    full, small = model_of(tiny_checkpoint), model_of(tiny_checkpoint, Fp8Linear.quantized)
    matrices = [m.weight for m in full.text.layers.modules() if isinstance(m, nn.Linear)]
    kept = [m for m in small.text.layers.modules() if isinstance(m, Fp8Linear)]
    assert len(kept) == len(matrices) > 10
    assert sum(buffer.nbytes for m in kept for buffer in m.buffers()) < 1.1 * sum(matrix.numel() for matrix in matrices)
    exact, near = logits(full, tiny_checkpoint), logits(small, tiny_checkpoint)
    assert 0 < relative(near, exact) < 0.12


def test_it_is_said_how_weights_are_kept(tiny_checkpoint: Path, tmp_path: Path) -> None:
    assert loader(tiny_checkpoint, quantization="fp8").load()[1].quantization == "fp8"
    published = fp8_checkpoint(tiny_checkpoint, tmp_path)
    assert loader(published).load()[1].quantization == "fp8"
    assert loader(published, quantization="fp8").load()[1].quantization == "fp8"
    assert loader(published, load_format="dummy").load()[1].quantization == "fp8"


def test_int8_is_refused_on_gpus(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ValueError, match=r"int8 is for CPUs: on a GPU it is slower than bfloat16.*choose fp8"):
        loader(tiny_checkpoint, quantization="int8", device="cuda").load()


# --- published so ----------------------------------------------------------------------------------


@pytest.mark.parametrize("num_kv_heads", [2, 4])
def test_a_published_folder_answers_as_the_same_weights_rounded_when_loaded(tmp_path: Path, num_kv_heads: int) -> None:
    source = random_checkpoint(tmp_path / "source", sizes=Sizes(num_kv_heads=num_kv_heads), dtype=torch.bfloat16)
    published = fp8_checkpoint(source, tmp_path / "published")
    ours, theirs = model_of(source, Fp8Linear.quantized), model_of(published)
    same = logits(ours, source)
    assert torch.equal(logits(theirs, published), same)
    assert relative(same, logits(model_of(source), source)) < 0.12


def test_scales_in_bfloat16_are_those_that_weights_are_multiplied_by(tiny_checkpoint: Path, tmp_path: Path) -> None:
    published = fp8_checkpoint(tiny_checkpoint, tmp_path, scale_dtype=torch.bfloat16)
    exact = logits(model_of(tiny_checkpoint), tiny_checkpoint)
    assert relative(logits(model_of(published), published), exact) < 0.12


def test_nothing_of_a_published_folder_is_left_unused(
    tiny_checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model_of(fp8_checkpoint(tiny_checkpoint, tmp_path))
    assert "not used" not in caplog.text


def test_a_layer_that_the_folder_leaves_in_full_is_served_in_full(tiny_checkpoint: Path, tmp_path: Path) -> None:
    kept = ("lm_head", "multi_modal_projector", "vision_model", "layers.0.mlp.down_proj", "layers.2.self_attn.k_proj")
    published = fp8_checkpoint(tiny_checkpoint, tmp_path, kept=kept)
    _, info = loader(published, quantization="fp8").load()
    assert info.quantization == "fp8"
    full, model = model_of(tiny_checkpoint), model_of(published)
    plain = {name for name, module in model.text.layers.named_modules() if isinstance(module, nn.Linear)}
    assert plain == {"0.mlp.down", "2.qkv"}  # of three that are one, two are in fp8
    weights, exact = (m.text.get_submodule("layers.2.qkv").get_parameter("weight") for m in (model, full))
    size = len(exact)
    assert torch.equal(weights[size // 2 : 3 * size // 4], exact[size // 2 : 3 * size // 4])
    assert 0 < relative(weights, exact) < 0.04


def test_what_lies_outside_of_the_layers_of_text_is_made_full_again(tiny_checkpoint: Path, tmp_path: Path) -> None:
    published = fp8_checkpoint(tiny_checkpoint, tmp_path, kept=())
    full, model = model_of(tiny_checkpoint), model_of(published)
    for part in ("text.head", "vision.projector", "vision.layers.0.fc1"):
        weight, exact = (m.get_submodule(part).get_parameter("weight") for m in (model, full))
        assert 0 < relative(weight, exact) < 0.04


def _group(**changes: object) -> Callable[[dict[str, Any]], None]:
    def change(config: dict[str, Any]) -> None:
        for name, value in changes.items():
            part, _, key = name.partition("__")
            group = config["config_groups"]["group_0"]
            if key:
                group[part][key] = value
            else:
                group[part] = value

    return change


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda config: config.update(quant_method="fbgemm_fp8"), "quant_method 'fbgemm_fp8'"),
        (lambda config: config.update(quantization_status="frozen"), "quantization_status 'frozen'"),
        (lambda config: config.update(sparsity_config={"format": "sparse-24-bitmask"}), "sparsity 'sparse-24-bitmask'"),
        (lambda config: config.update(kv_cache_scheme={"num_bits": 8}), "a kv_cache_scheme"),
        (lambda config: config.update(config_groups={}), "no config_groups"),
        (_group(weights__num_bits=4), "weights of num_bits 4"),
        (_group(weights__type="int"), "weights of type 'int'"),
        (_group(weights__strategy="tensor"), "weights of strategy 'tensor'"),
        (_group(weights__strategy="block"), "weights of strategy 'block'"),
        (_group(input_activations__dynamic=False), "input_activations of dynamic False"),
        (_group(input_activations__strategy="tensor"), "input_activations of strategy 'tensor'"),
        (_group(input_activations__symmetric=False), "input_activations with zero points"),
        (_group(input_activations=None), "no input_activations"),
        (_group(output_activations={"num_bits": 8}), "output_activations"),
    ],
)
def test_other_schemes_are_refused_and_what_is_served_is_named(
    tiny_checkpoint: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None], found: str
) -> None:
    folder = fp8_checkpoint(tiny_checkpoint, tmp_path, change=change)
    with pytest.raises(ValueError, match=rf"quantized with {found}; served are .*FP8-dynamic"):
        loader(folder).load()


def test_a_published_folder_is_not_made_int8(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--quantization is int8, but the checkpoint is stored in fp8"):
        loader(fp8_checkpoint(tiny_checkpoint, tmp_path), quantization="int8").load()


def test_fp8_of_which_the_configuration_does_not_tell_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = fp8_checkpoint(tiny_checkpoint, tmp_path)
    (folder / "config.json").write_bytes((tiny_checkpoint / "config.json").read_bytes())
    with pytest.raises(ValueError, match=r"is in fp8, but config.json has no quantization_config"):
        loader(folder).load()


@pytest.mark.parametrize(
    ("scale", "message"),
    [(torch.ones(1), "and not one for each output"), (None, r"no tensor '.*q_proj\.weight_scale'")],
    ids=["of the tensor", "none"],
)
def test_scales_that_do_not_fit_are_refused(
    tiny_checkpoint: Path, tmp_path: Path, scale: Tensor | None, message: str
) -> None:
    folder = fp8_checkpoint(tiny_checkpoint, tmp_path)
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in tensors if name.endswith("q_proj.weight_scale"))
    if scale is None:
        del tensors[name]
    else:
        tensors[name] = scale
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ValueError, match=message):
        loader(folder).load()
