"""The engine as the stages of the check drive it: models, runners, rows, noise for images.

The only module of the check that looks inside the engine: graphs are counted here, and caches filled.
"""

import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch

from published import SIZES
from spyglass_server.engine.messages import EngineRequest, ImageInput, ImageKey, SamplingParams
from spyglass_server.engine.shared_images import SharedImages
from spyglass_server.engine.worker.batch import Row
from spyglass_server.engine.worker.budget import Limits
from spyglass_server.engine.worker.core import EngineCore
from spyglass_server.engine.worker.image_cache import ImageCache
from spyglass_server.engine.worker.page_pool import PagePool
from spyglass_server.engine.worker.scheduler import Scheduler
from spyglass_server.runtime.config import ModelConfig
from spyglass_server.runtime.cuda.backend import CudaBackend
from spyglass_server.runtime.cuda.plan import recorded_shapes
from spyglass_server.runtime.launch import PAGE_SIZE
from spyglass_server.runtime.model.mllama import Mllama
from spyglass_server.runtime.runner import ModelRunner

GREEDY = SamplingParams(temperature=0.0)
TEMPERATURE = SamplingParams(temperature=0.6, seed=7)
TOP_P = SamplingParams(temperature=0.6, top_p=0.9, seed=7)
LIMITS = Limits(max_batch=64, max_step_tokens=4096, max_chunk_tokens=512)
"""As the product has them by default on GPUs."""


def config_of(size: str) -> ModelConfig:
    """Of a published model; of the first 15 layers of the 90B model ("90B/8"), whose shapes then fit one GPU; or of a
    tiny model ("smoke")."""
    if size == "90B/8":
        text = SIZES["90B"].text
        return replace(SIZES["90B"], text=replace(text, num_layers=15, cross_layers=text.cross_layers[:3]))
    if size != "smoke":
        return SIZES[size]
    sizes = SIZES["11B"]
    text = replace(
        sizes.text, vocab_size=1024, hidden_size=128, intermediate_size=256, num_layers=5, num_heads=4,
        num_kv_heads=2, head_dim=32, cross_layers=(3,),
    )  # fmt: skip
    vision = replace(
        sizes.vision, hidden_size=64, intermediate_size=128, num_layers=2, num_global_layers=1, num_heads=2,
        head_dim=32, tile_size=56, intermediate_layers=(1,), output_size=128,
    )  # fmt: skip
    return replace(sizes, text=text, vision=vision)


def make_runner(
    model: Mllama, num_pages: int, num_tiles: int, dtype: torch.dtype, device: torch.device, has_graphs: bool = True
) -> ModelRunner:
    """A runner whose decode steps are recorded as CUDA graphs, or computed one operation at a time."""
    return ModelRunner(model, num_pages, PAGE_SIZE, num_tiles, dtype, device, records_steps=has_graphs)


def num_recordings(runner: ModelRunner) -> tuple[int, int]:
    """How many shapes of decode steps it has recorded, and how many it should have; a backend for CPUs has none."""
    if not isinstance(runner._backend, CudaBackend):
        return 0, 0
    return len(runner._backend._planner.shapes), len(recorded_shapes(runner._memory.max_batch))


def fill_caches(runner: ModelRunner) -> None:
    """Writes numbers of ordinary size to all slots: memory that was never written may hold anything."""
    for cache in (runner._memory.text, runner._memory.images):
        cache._slots.normal_()


def make_core(runner: ModelRunner, num_pages: int, num_tiles: int) -> EngineCore:
    """The whole engine with empty caches."""
    return EngineCore(Scheduler(LIMITS, PagePool(num_pages, PAGE_SIZE), ImageCache(num_tiles)), runner)


class ScatteredPages:
    """Hands out pages in a random order, as a pool does after a while; none twice."""

    def __init__(self, num_pages: int, seed: int = 1) -> None:
        self._free = list(range(num_pages))
        random.Random(seed).shuffle(self._free)

    def take(self, num_tokens: int) -> tuple[int, ...]:
        return tuple(self._free.pop() for _ in range(-(-num_tokens // PAGE_SIZE)))


@dataclass(frozen=True, slots=True)
class SeenImages:
    """Of a sequence: the tiles of each of its images, and the positions of their tokens."""

    tiles: tuple[tuple[int, ...], ...] = ()
    positions: tuple[int, ...] = ()


def make_row(
    tokens: Sequence[int],
    start: int,
    pages: tuple[int, ...],
    *,
    images: SeenImages | None = None,
    sampling: SamplingParams = GREEDY,
    top_logprobs: int | None = None,
    is_sampled: bool = True,
) -> Row:
    """Tokens of a sequence from a position on; of `pages`, those that it needs so far."""
    seen = images or SeenImages()
    request = EngineRequest(
        id=0, tokens=(), max_tokens=1, sampling=sampling, top_logprobs=top_logprobs, image_positions=seen.positions
    )
    return Row(
        request=request,
        tokens=tuple(tokens),
        start=start,
        pages=pages[: -(-(start + len(tokens)) // PAGE_SIZE)],
        choices=(0,) if is_sampled else (),
        image_tiles=seen.tiles,
    )


@contextmanager
def shared_noise(tile_size: int, images: Iterable[tuple[bytes, int, int]]) -> Iterator[SharedImages]:
    """Images of noise, each (digest, rows, columns), in shared memory."""
    shared = SharedImages()
    try:
        shared.copy(
            (ImageKey("check", digest), rows, columns, _noise(rows * columns * 3 * tile_size**2, digest))
            for digest, rows, columns in images
        )
        yield shared
    finally:
        shared.release()


def encode_noise(
    runner: ModelRunner, tile_size: int, digest: bytes, rows: int, columns: int, tiles: Sequence[int]
) -> None:
    """Encodes an image of noise into tiles."""
    with shared_noise(tile_size, [(digest, rows, columns)]) as shared:
        encode(runner, shared.inputs[0], tiles)


def encode(runner: ModelRunner, image: ImageInput, tiles: Sequence[int]) -> int:
    """Encodes an image into tiles; returns in how many slices."""
    runner.take_image(image)
    slices = 1
    while not runner.encode_image(image.key, tiles):
        slices += 1
    runner.drop_image(image.key)
    return slices


def _noise(size: int, seed: bytes) -> memoryview:
    return memoryview(random.Random(seed).randbytes(size))
