"""What fits a device: the arithmetic, with the sizes of the published models."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from checkpoints import byte_tokenizer, write_prompt_files
from random_weights import Sizes, VisionSizes
from spyglass_server.planning.memory import CacheSizes, CacheUnits, CacheWishes, divide
from spyglass_server.runtime.config import ModelConfig, load_config
from spyglass_server.runtime.fit import Device, Fit
from spyglass_server.runtime.launch import PAGE_SIZE
from spyglass_server.runtime.sizing import cache_units
from spyglass_server.runtime.weights import count_parameters, empty_model

GB = 10**9
BF16 = torch.bfloat16
VISION = VisionSizes(
    tile_size=560, hidden_size=1280, num_heads=16, intermediate_size=5120, num_layers=32, num_global_layers=8,
    intermediate_layers=(3, 7, 15, 23, 30),
)  # fmt: skip
PUBLISHED = {
    "11B": Sizes(
        hidden_size=4096, num_heads=32, num_kv_heads=8, intermediate_size=14_336, num_layers=40,
        cross_layers=tuple(range(3, 40, 5)), context_length=131_072, vision=VISION,
    ),
    "90B": Sizes(
        hidden_size=8192, num_heads=64, num_kv_heads=8, intermediate_size=28_672, num_layers=100,
        cross_layers=tuple(range(3, 100, 5)), context_length=131_072, vision=VISION,
    ),
}  # fmt: skip
WISHES = CacheWishes(cache_bytes=None, image_cache_bytes=None, max_model_len=None, max_images=64)


@pytest.fixture(scope="module")
def configs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelConfig]:
    """Of the published models, by size."""
    found = {}
    for name, sizes in PUBLISHED.items():
        folder = write_prompt_files(tmp_path_factory.mktemp(name), byte_tokenizer(), sizes=sizes, dtype=BF16)
        config = load_config(folder)
        found[name] = replace(config, text=replace(config.text, vocab_size=128_256))
    return found


@pytest.fixture(scope="module")
def fit(configs: dict[str, ModelConfig]) -> Callable[..., Fit]:
    """Makes the fit of a published model to a device of so many GB."""
    counts = {name: count_parameters(empty_model(config)) for name, config in configs.items()}

    def make(size: str, total_gb: float, quantization: str = "none", held: int = 0, **wishes: Any) -> Fit:
        return Fit(
            count=counts[size],
            device=Device(name="GPU", total=int(total_gb * GB), share=0.9, held=held),
            wishes=replace(WISHES, **wishes),
            units={BF16: cache_units(configs[size], BF16, PAGE_SIZE)},
            quantizations=("none", "fp8"),
            dtype=BF16,
            quantization=quantization,
        )

    return make


@pytest.mark.parametrize(
    ("size", "quantization", "gb"),
    [("11B", "none", 21.3), ("11B", "fp8", 12.6), ("90B", "none", 177.2), ("90B", "fp8", 91.7)],
)
def test_the_weights_of_published_models(fit: Callable[..., Fit], size: str, quantization: str, gb: float) -> None:
    assert fit(size, 80, quantization).weight_bytes / GB == pytest.approx(gb, abs=0.05)


def test_pages_and_tiles_of_published_models(configs: dict[str, ModelConfig]) -> None:
    """128 and 320 KiB a token of text; a tile is 1,601 tokens in each cross-attention layer."""
    units = {size: cache_units(config, BF16, PAGE_SIZE) for size, config in configs.items()}
    assert (units["11B"].page_bytes, units["90B"].page_bytes) == (PAGE_SIZE * 128 << 10, PAGE_SIZE * 320 << 10)
    assert (units["11B"].tile_bytes, units["90B"].tile_bytes) == (1601 * 8 * 4096, 1601 * 20 * 4096)


@pytest.mark.parametrize(
    ("size", "total_gb", "quantization", "tokens", "images"),
    [
        ("11B", 80, "none", 268_768, 64),  # the third of 48.7 GB would be more images than run at once
        ("11B", 141, "none", 687_632, 64),
        ("90B", 141, "fp8", 67_824, 21),
    ],
)
def test_free_memory_is_divided(
    fit: Callable[..., Fit], size: str, total_gb: float, quantization: str, tokens: int, images: int
) -> None:
    one = fit(size, total_gb, quantization)
    one.check()
    units = one.units[BF16]
    sizes = one.divide(one.weight_bytes, 2 * GB)
    assert (sizes.num_pages * PAGE_SIZE, sizes.num_tiles // 4) == (tokens, images)
    left = int(0.9 * total_gb * GB) - one.weight_bytes - 2 * GB - sizes.nbytes(units)
    assert 0 <= left < units.page_bytes
    assert sizes.num_tiles * units.tile_bytes <= (left + sizes.nbytes(units)) / 3


def test_what_others_hold_is_not_divided(fit: Callable[..., Fit]) -> None:
    units = fit("11B", 80).units[BF16]
    alone, beside = (fit("11B", 80, held=held * GB).divide(21 * GB, 2 * GB).nbytes(units) for held in (0, 10))
    assert alone - beside == pytest.approx(10 * GB, 1e-3)


UNITS = CacheUnits(page_size=16, page_bytes=10, tile_bytes=100, image_tiles=4)


@pytest.mark.parametrize(
    ("free", "wishes", "expected"),
    [
        (6000, {}, CacheSizes(num_pages=400, num_tiles=20)),
        (6000, {"max_images": 2}, CacheSizes(num_pages=520, num_tiles=8)),
        (6000, {"max_model_len": 16 * 450}, CacheSizes(num_pages=450, num_tiles=15)),  # images get less than a third
        (6000, {"max_model_len": 16 * 560}, CacheSizes(num_pages=560, num_tiles=4)),
        (600, {}, CacheSizes(num_pages=20, num_tiles=4)),  # one image, although it is more than a third
        (6000, {"cache_bytes": 1000}, CacheSizes(num_pages=100, num_tiles=50)),
        (6000, {"cache_bytes": 1000, "max_images": 2}, CacheSizes(num_pages=100, num_tiles=8)),
        (6000, {"image_cache_bytes": 3000}, CacheSizes(num_pages=300, num_tiles=30)),
        (6000, {"cache_bytes": 95, "image_cache_bytes": 450}, CacheSizes(num_pages=9, num_tiles=4)),
    ],
)
def test_what_is_set_or_needed_goes_first(free: int, wishes: dict[str, int], expected: CacheSizes) -> None:
    wanted = replace(WISHES, **wishes)
    assert wanted.least(UNITS) <= free
    assert divide(free, wanted, UNITS) == expected


@pytest.mark.parametrize(
    ("size", "total_gb", "options", "message"),
    [
        (
            "90B",
            80,
            {},
            "the weights take 177 GB in bfloat16, but GPU has 80 GB, of which --gpu-memory-utilization 0.9 allows "
            "72 GB; no --dtype or --quantization fits: the smallest, bfloat16 with --quantization fp8, needs 92.2 GB, "
            "which takes a device of 102 GB",
        ),
        (
            "90B",
            141,
            {},
            "the weights take 177 GB in bfloat16, but GPU has 141 GB, of which --gpu-memory-utilization 0.9 allows "
            "127 GB; --quantization fp8 needs 92.2 GB",
        ),
        (
            "90B",
            141,
            {"max_model_len": 131_072},
            "the weights take 177 GB in bfloat16, but GPU has 141 GB, of which --gpu-memory-utilization 0.9 allows "
            "127 GB; --quantization fp8 --max-model-len 105952 fits",
        ),
        (
            "90B",
            141,
            {"quantization": "fp8", "max_model_len": 131_072},
            "the weights take 91.7 GB in fp8 and bfloat16, and GPU has 141 GB, of which --gpu-memory-utilization 0.9 "
            "allows 127 GB; that leaves 35.2 GB for caches, where --max-model-len 131072 needs 42.9 GB and an image "
            "needs 525 MB; --max-model-len 105952 fits",
        ),
        (
            "11B",
            24,
            {"held": GB},
            "the weights take 21.3 GB in bfloat16, but GPU has 24 GB, of which --gpu-memory-utilization 0.9 allows "
            "21.6 GB and others hold 1 GB; --quantization fp8 needs 12.8 GB",
        ),
        (
            "11B",
            80,
            {"cache_bytes": 60 * GB, "image_cache_bytes": 2 * GB},
            "the weights take 21.3 GB in bfloat16, and GPU has 80 GB, of which --gpu-memory-utilization 0.9 allows "
            "72 GB; that leaves 50.7 GB for caches, where --cache-bytes is 60 GB and --image-cache-bytes is 2 GB; no "
            "--dtype or --quantization fits: the smallest, bfloat16 with --quantization fp8, needs 74.6 GB, which "
            "takes a device of 82.9 GB",
        ),
    ],
)
def test_what_does_not_fit_is_refused_with_what_would(
    fit: Callable[..., Fit], size: str, total_gb: float, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match="the weights take") as refusal:
        fit(size, total_gb, **options).check()
    assert str(refusal.value) == message


def test_a_step_that_leaves_too_little_is_refused(fit: Callable[..., Fit]) -> None:
    one = fit("11B", 24.5)
    one.check()
    with pytest.raises(ValueError, match=r"weights take 21\.3 GB and a step up to 2 GB.*leaves 0 MB.*fp8 needs 14\.8"):
        one.divide(one.weight_bytes, 2 * GB)
