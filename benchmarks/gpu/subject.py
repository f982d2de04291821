"""The model whose speed is measured: a published one's shapes, dummy weights, and caches full of noise."""

import time
from collections.abc import Sequence

import torch

import costs
from harness import (
    GREEDY,
    ScatteredPages,
    SeenImages,
    config_of,
    fill_caches,
    make_core,
    make_row,
    make_runner,
)
from spyglass_server.engine.messages import SamplingParams
from spyglass_server.engine.worker.batch import Row
from spyglass_server.engine.worker.core import EngineCore
from spyglass_server.runtime.config import ModelConfig
from spyglass_server.runtime.dummy_weights import dummy_model
from spyglass_server.runtime.launch import PAGE_SIZE
from spyglass_server.runtime.linear import CONVERTERS
from spyglass_server.runtime.runner import ModelRunner
from stage_run import StageRun
from timing import DeviceLimits, synchronize, wall_ms

BF16 = torch.bfloat16
TILES_OF_IMAGE = 4
_PARTLY_FILLED = 128
"""Pages at the ends of sequences that are not counted when room is asked for."""
_SPARE_BYTES = 5e9
"""Of a GPU's memory, for recordings and what a step needs."""


class Subject:
    """A runner with its pages and tiles, and the limits of the device that it runs on."""

    def __init__(self, run: StageRun, tokens: int, num_images: int) -> None:
        """Makes it with room for so many tokens, or as many as fit, and for images of four tiles."""
        torch.backends.cuda.enable_cudnn_sdp(False)  # as the product's loader does
        self.run, self.device = run, run.device
        self.config: ModelConfig = config_of(run.size)
        self.limits = DeviceLimits.kept_in(run.out, run.device)
        self.num_pages, self.num_tiles = tokens // PAGE_SIZE + _PARTLY_FILLED, TILES_OF_IMAGE * max(num_images, 1)
        started = time.perf_counter()
        model = dummy_model(self.config, BF16, self.device, CONVERTERS.get(run.weights))
        synchronize(self.device)
        if run.is_gpu:
            page = ModelRunner.page_bytes(self.config, PAGE_SIZE, BF16)
            tiles = self.num_tiles * ModelRunner.tile_bytes(self.config, BF16)
            torch.cuda.empty_cache()  # of what making the weights took
            free, total = torch.cuda.mem_get_info()
            self.num_pages = min(self.num_pages, int((free - tiles - _SPARE_BYTES) // page))
            run.record("memory", weights_gb=round((total - free) / 1e9, 1), pages=self.num_pages)
        self.runner = make_runner(model, self.num_pages, self.num_tiles, BF16, self.device)
        fill_caches(self.runner)
        run.record("build", size=run.size, seconds=round(time.perf_counter() - started, 1))

    def core(self) -> EngineCore:
        """The whole engine around the runner, with empty caches."""
        return make_core(self.runner, self.num_pages, self.num_tiles)

    def has_room(self, tokens: int) -> bool:
        return tokens <= self.num_pages * PAGE_SIZE

    def decode_rows(
        self, contexts: Sequence[int], num_seeing: int = 0, sampling: SamplingParams = GREEDY
    ) -> Sequence[Row]:
        """Rows that decode, the first few of which see an image each, as long as there are so many."""
        pages = ScatteredPages(self.num_pages)
        num_images = self.num_tiles // TILES_OF_IMAGE
        rows = []
        for i, context in enumerate(contexts):
            first = i % num_images * TILES_OF_IMAGE
            seen = SeenImages((tuple(range(first, first + TILES_OF_IMAGE)),), (2,)) if i < num_seeing else None
            rows.append(make_row([100 + i], context - 1, pages.take(context), images=seen, sampling=sampling))
        return rows

    def prompt(self, tokens: int, start: int = 0) -> Row:
        """A piece of a prompt without images, behind so many tokens."""
        pages = ScatteredPages(self.num_pages).take(start + tokens)
        return make_row([10 + i % 900 for i in range(tokens)], start, pages, is_sampled=False)

    def step_ms(self, rows: Sequence[Row], times: int) -> float:
        """The median time of a step of these rows: planning, computing, sampling, and telling the host."""
        for output in self.runner.execute(rows):
            assert output.error is None, output.error
        return wall_ms(self.device, lambda: self.runner.execute(rows), times, warmup=2 if self.run.is_gpu else 0)

    def decode_limit_ms(self, context: int, num_seeing: int = 0) -> float:
        """The least that a decode step can take whose rows have so many tokens of context together."""
        layers = costs.layer_bytes(self.config, num_seeing > 0, 1 if self.run.weights == "fp8" else 2)
        head = costs.head_bytes(self.config)
        return self.limits.ms(layers + head + costs.kv_bytes(self.config, context, num_seeing))
