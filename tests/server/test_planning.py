"""Plans: sizes against the model itself, times and costs against what must hold for any hardware, and the command."""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from spyglass_client.cli import main
from spyglass_server.config import EngineConfig
from spyglass_server.planning.hardware import GPUS
from spyglass_server.planning.published import CONFIGS
from spyglass_server.planning.sizes import ModelSizes
from spyglass_server.runtime.config import load_config
from spyglass_server.runtime.launch import CheckpointLoader
from spyglass_server.runtime.measurement import allocated_bytes
from spyglass_server.runtime.mesh import Alone
from spyglass_server.runtime.sharding import sharded_text
from spyglass_server.runtime.slot_cache import SlotCache
from spyglass_server.runtime.weights import count_parameters, empty_model

ROOT = Path(__file__).resolve().parents[2]
Planned = Callable[..., Any]

_CUT = re.compile(
    r"text\.(embedding|head)\.weight|text\.layers\.\d+\.(qkv|q|kv|o|mlp\.gate_up|mlp\.down)\.weight"
    r"|vision\.(global_)?layers\.\d+\.(attention\.(qkv|o)\.weight|fc1\.(weight|bias)|fc2\.weight)"
    r"|vision\.(patch|projector)\.weight"
)
"""Parameters of which each rank has a part."""


class Rank(Alone):
    """The first of some ranks, which sums and joins nothing."""

    def __init__(self, size: int) -> None:
        self.size = size


@pytest.fixture
def planned(capsys: pytest.CaptureFixture[str]) -> Planned:
    """Runs `spyglass plan --json` and returns what it printed."""

    def run(*words: str) -> Any:
        code = main(["plan", "--json", *words])
        found = json.loads(capsys.readouterr().out)
        assert code == (0 if found["fits"] else 1)
        return found

    return run


def write(folder: Path, raw: Mapping[str, Any]) -> Path:
    (folder / "config.json").write_text(json.dumps(raw), "utf-8")
    return folder


@pytest.mark.parametrize("size", ["11b", "90b"])
@pytest.mark.parametrize("num_ranks", [1, 2, 4, 8])
def test_parameters_are_those_of_the_model_and_of_a_ranks_part(size: str, num_ranks: int, tmp_path: Path) -> None:
    model = empty_model(load_config(write(tmp_path, CONFIGS[size])))
    expected = sum(
        parameter.numel() // (num_ranks if _CUT.fullmatch(name) else 1) for name, parameter in model.named_parameters()
    )
    count = ModelSizes.of(CONFIGS[size]).of_rank(num_ranks).count()
    assert count.linear + count.other == expected
    if num_ranks == 1:
        assert count == count_parameters(model)


@pytest.mark.parametrize("num_ranks", [2, 3, 4, 8, 16])
def test_parameters_of_a_rank_are_those_that_it_holds(num_ranks: int, tmp_path: Path) -> None:
    config = load_config(write(tmp_path, CONFIGS["90b"]))
    part = empty_model(config, Rank(num_ranks))
    assert ModelSizes.of(CONFIGS["90b"]).of_rank(num_ranks).count() == count_parameters(part)


def test_predicted_bytes_are_those_of_the_tensors_of_one_of_two_ranks(small: dict[str, Any], tmp_path: Path) -> None:
    config = load_config(write(tmp_path, small))
    sizes, text = ModelSizes.of(small).of_rank(2), sharded_text(config.text, 2)
    units = sizes.cache_units(4)
    before = allocated_bytes()
    part = empty_model(config, Rank(2)).to_empty(device="cpu")
    tokens, tile = 100 * units.page_size, config.vision.tokens_per_tile
    caches = [
        SlotCache(layers, slots, text, torch.float32, torch.device("cpu"))
        for layers, slots in ((text.num_self_layers, tokens), (len(text.cross_layers), 9 * tile))
    ]
    allocated = allocated_bytes() - before
    predicted = sizes.count().nbytes(4, "none") + 100 * units.page_bytes + 9 * units.tile_bytes
    assert predicted == pytest.approx(allocated, rel=0.05)
    assert (part.mesh.size, len(caches)) == (2, 2)  # they have lived until here


def test_what_does_not_divide_is_padded_and_key_heads_are_repeated() -> None:
    model = ModelSizes.of(CONFIGS["11b"])
    three, sixteen = model.of_rank(3).text, model.of_rank(16).text
    assert (three.num_heads, three.num_kv_heads, three.vocab_size) == (12, 3, 42_752)
    assert (sixteen.num_heads, sixteen.num_kv_heads) == (2, 1)
    with pytest.raises(ValueError, match="32 heads with 8 key-value heads cannot be divided among 12 ranks"):
        model.of_rank(12)


def test_what_a_configuration_leaves_out_has_the_defaults_of_transformers(tmp_path: Path) -> None:
    raw = {"model_type": "mllama", "text_config": {"dtype": "bfloat16"}, "vision_config": {}}
    assert ModelSizes.of(raw).count() == count_parameters(empty_model(load_config(write(tmp_path, raw))))
    assert ModelSizes.of(raw).dtype == "bfloat16"


@pytest.fixture
def _one_process_again(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """For an engine of several ranks, of which this process is the first."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    if dist.is_initialized():
        dist.destroy_process_group()


@pytest.mark.usefixtures("_one_process_again")
@pytest.mark.parametrize(
    ("dtype", "quantization", "changes", "num_ranks"),
    [
        ("float32", "none", {}, 1),
        ("bfloat16", "int8", {"num_hidden_layers": 12, "cross_attention_layers": [1, 5, 9]}, 1),
        ("bfloat16", "fp8", {"num_key_value_heads": 1, "intermediate_size": 700}, 1),
        ("float32", "none", {}, 2),
    ],
)
def test_predicted_bytes_are_those_of_the_tensors_of_a_running_engine(
    dtype: str,
    quantization: str,
    changes: Mapping[str, Any],
    num_ranks: int,
    small: dict[str, Any],
    tokenizer: Path,
    tmp_path: Path,
) -> None:
    raw = {**small, "text_config": {**small["text_config"], **changes}}
    write(tmp_path, raw)
    (tmp_path / "tokenizer.json").write_bytes(tokenizer.read_bytes())
    model, itemsize = ModelSizes.of(raw).of_rank(num_ranks), 4 if dtype == "float32" else 2
    units = model.cache_units(itemsize)
    settings = EngineConfig(
        load_format="dummy", dtype=dtype, quantization=quantization, device="cpu", max_model_len=None,
        gpu_memory_utilization=0.9, cache_bytes=100 * units.page_bytes, image_cache_bytes=9 * units.tile_bytes,
        max_batch=4, max_step_tokens=None, max_chunk_tokens=None, tensor_parallel_size=num_ranks,
    )  # fmt: skip
    before = allocated_bytes()
    core, info = CheckpointLoader(folder=tmp_path, settings=settings).load()
    allocated = allocated_bytes() - before
    core.close()
    predicted = model.count().nbytes(itemsize, quantization) + 100 * units.page_bytes + 9 * units.tile_bytes
    assert predicted == pytest.approx(allocated, rel=0.05)
    assert len(info.ranks) == num_ranks
    for rank in info.ranks:
        assert rank.weight_bytes == pytest.approx(model.count().nbytes(itemsize, quantization), rel=0.01)


def test_a_plan_fits_as_the_engine_would_and_says_what_would_where_it_does_not(planned: Planned) -> None:
    too_small = planned("--model", "11b", "--gpu", "rtx-4090")
    assert (too_small["fits"], too_small["speeds"]) == (False, [])
    options = [advice.split(":")[0].split() for advice in too_small["advice"]]
    assert ["--quantization", "fp8"] in options
    for words in options:
        assert planned("--model", "11b", *(["--gpu", "rtx-4090"] if "--gpu" not in words else []), *words)["fits"]


def test_requests_fit_by_their_tokens_and_pictures(planned: Planned) -> None:
    memory = planned("--prompt-tokens", "1000", "--answer-tokens", "25")["memory"]
    assert memory["requests"] == memory["num_pages"] // 65
    memory = planned("--pictures", "3", "--tiles", "2")["memory"]
    assert memory["requests"] == memory["num_tiles"] // 6
    used = memory["num_pages"] * memory["page_bytes"] + memory["num_tiles"] * memory["tile_bytes"]
    assert 0 <= memory["budget_bytes"] - memory["weight_bytes"] - memory["step_bytes"] - used < memory["page_bytes"]


@pytest.mark.parametrize(
    ("options", "limit"),
    [
        ((), "bandwidth"),
        (("--bf16-tflops", "0.1"), "compute"),
        (("--bandwidth-gbs", "1e9", "--bf16-tflops", "1e9"), "launches"),
        (("--tensor-parallel-size", "2", "--link-gbs", "0.001"), "link"),
    ],
)
def test_the_resource_that_is_short_is_named(options: tuple[str, ...], limit: str, planned: Planned) -> None:
    speeds = planned("--at-once", "4", *options)["speeds"]
    assert [speed["between_tokens"]["limit"] for speed in speeds] == [limit, limit]


def test_a_decode_step_reads_the_weights_once_and_each_rows_pages(planned: Planned) -> None:
    alone, full = planned("--prompt-tokens", "1000", "--answer-tokens", "48", "--at-once", "64")["speeds"]
    rate, context = 3350e9 * 0.83, 1024
    assert alone["between_tokens"]["seconds"] == pytest.approx((15.009e9 + context * 131_072) / rate + 0.0004, rel=0.01)
    more = full["between_tokens"]["seconds"] - alone["between_tokens"]["seconds"]
    assert more == pytest.approx(63 * context * 131_072 / rate, rel=0.01)


def test_two_gpus_decode_faster_than_one_by_less_than_half_the_time(planned: Planned) -> None:
    seconds = [planned("--tensor-parallel-size", n)["speeds"][0]["between_tokens"]["seconds"] for n in ("1", "2")]
    assert seconds[0] / 2 < seconds[1] < seconds[0]


def test_prices_of_tokens_add_up_to_that_of_the_hours(planned: Planned) -> None:
    plan = planned("--prompt-tokens", "2000", "--answer-tokens", "100", "--gpu-price", "3.6")
    prices, speed = plan["prices"], plan["speeds"][-1]
    requests_per_s = speed["tokens_per_s"] / 100
    per_request = (2000 * prices["computed"]["input"] + 100 * prices["computed"]["output"]) / 1e6
    assert requests_per_s * per_request == pytest.approx(0.001)
    assert prices["list"] == {"input": 0.35, "output": 0.4}


def test_figures_of_the_hardware_are_options(planned: Planned) -> None:
    same = ("--memory-gb", "141", "--bandwidth-gbs", "4800", "--gpu-price", "3.79")
    assert planned("--gpu", "h200")["speeds"] == planned(*same)["speeds"]
    assert set(planned("--gpu", "l4")["gpu"]) == set(replace(GPUS["l4"]).__dataclass_fields__)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("--model", "12b"), "'12b' is none of 11b, 90b, and no folder or file"),
        (("--quantization", "int8"), "--quantization int8 is for CPUs"),
        (("--tiles", "5", "--pictures", "1"), "at most 4"),
        (("--prompt-tokens", "200000"), "more than the 131072"),
        (("--at-once", "65"), "--max-batch allows 64"),
        (("--tensor-parallel-size", "12"), "cannot be divided among 12 ranks"),
        (("--measure", "--tensor-parallel-size", "2"), "--measure runs on one device"),
        (("--measure", "--device", "cuda"), "spyglass: --device is cuda, but torch sees no CUDA device"),
    ],
)
def test_what_cannot_be_planned_is_refused(
    words: tuple[str, ...], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", *words]) == 1
    assert text in capsys.readouterr().err


def test_a_plan_needs_no_torch() -> None:
    program = (
        "import sys; from spyglass_client.cli import main; code = main(['plan']); "
        "sys.exit(code or sorted({'torch', 'transformers', 'numpy'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_pages_plans_are_those_of_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "docs" / "planning.md").read_text("utf-8")
    plans = re.findall(r"^\$ spyglass plan (.*)\n((?:.*\n)*?)```$", page, re.MULTILINE)
    assert len(plans) >= 7
    for words, shown in plans:
        main(["plan", *words.split()])
        assert capsys.readouterr().out.rstrip("\n") == shown.rstrip("\n"), words
    for name, gpu in GPUS.items():
        fp8 = "" if gpu.fp8_tflops is None else f"{gpu.fp8_tflops:g}"
        figures = (gpu.memory_gb, gpu.bandwidth_gbs, gpu.fp32_tflops, gpu.bf16_tflops)
        cells = [f"`{name}`", *(f"{figure:g}" for figure in figures), fp8, f"{gpu.link_gbs:g}", f"{gpu.price:.2f}"]
        assert f"| {' | '.join(cells)} |" in page


@pytest.mark.slow
def test_measured_stands_beside_predicted(
    small: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("spyglass_server.planning.measure.SECONDS", 2.0)
    del small["text_config"]["num_key_value_heads"]  # the default, 8, is the number of heads
    folder = str(write(tmp_path, small))
    words = ("--model", folder, "--prompt-tokens", "40", "--answer-tokens", "8", "--at-once", "2", "--pictures", "1")
    assert main(["plan", "--measure", "--device", "cpu", "--json", *words]) == 0
    figures = {one["name"]: one for one in json.loads(capsys.readouterr().out)["figures"]}
    assert figures["all tensors"]["measured"] == pytest.approx(figures["all tensors"]["predicted"], rel=0.05)
    for count in (1, 2):
        figure = figures[f"{count} at once: answer tokens/s"]
        assert figure["measured"] > 0
        assert figure["predicted"] > 0


@pytest.fixture
def small() -> dict[str, Any]:
    """A model of some 10 MB."""
    text = {
        "vocab_size": 1000, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 5,
        "num_attention_heads": 8, "num_key_value_heads": 4, "max_position_embeddings": 4096,
        "cross_attention_layers": [1, 3], "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
    }  # fmt: skip
    vision = {
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_global_layers": 1,
        "attention_heads": 2, "image_size": 56, "patch_size": 14, "max_num_tiles": 4,
        "intermediate_layers_indices": [1], "vision_output_dim": 128,
    }  # fmt: skip
    return {"model_type": "mllama", "dtype": "float32", "text_config": text, "vision_config": vision}


@pytest.fixture
def tokenizer(tiny_checkpoint: Path) -> Path:
    """A file that grammars can be made with."""
    return tiny_checkpoint / "tokenizer.json"
