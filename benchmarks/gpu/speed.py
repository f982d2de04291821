"""A part of the check: speed in the shapes of a published model on random weights, beside what the device can do.

`ratio` is the least time for what must be read or computed, at this device's best measured rates, over the time that it
took, sampling and waiting included.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch.profiler import ProfilerActivity, profile

import costs
from engine import (
    GREEDY,
    TEMPERATURE,
    TOP_P,
    ScatteredPages,
    SeenImages,
    config_of,
    encode_noise,
    fill_caches,
    make_core,
    make_row,
    make_runner,
    shared_noise,
)
from engine_load import run_requests
from part import Part
from spyglass_server.engine.messages import EngineRequest, SamplingParams
from spyglass_server.engine.worker.batch import Row
from spyglass_server.runtime.dummy_weights import dummy_model
from spyglass_server.runtime.launch import PAGE_SIZE
from spyglass_server.runtime.runner import ModelRunner
from timing import DeviceLimits, synchronize, wall_ms

BF16 = torch.bfloat16
TILES = (0, 1, 2, 3)
"""Where the image stands that rows see."""
COPIES_BYTES = 12e9
"""Memory that is left for what attention copies."""
HOST_CALLS = (
    "cudaStreamSynchronize", "cudaMemcpyAsync", "cudaLaunchKernel", "cudaLaunchKernelExC", "cudaGraphLaunch",
    "aten::_local_scalar_dense",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Shapes:
    """What is measured. Decode steps: rows, tokens of context, and how many rows see an image. Decode steps of rows of
    unlike lengths. Prefills: tokens of a step, tokens before them. Loads of the engine: requests at once, tokens of a
    prompt, tokens of an answer, and how many requests have an image."""

    decodes: Sequence[tuple[int, int, int]]
    unlike: Sequence[int]
    prefills: Sequence[tuple[int, int]]
    new_prefills: Sequence[int]
    traces: Sequence[tuple[int, int, int]]
    loads: Sequence[tuple[int, int, int, int]]
    num_sampling: int
    num_images: int
    times: int


FULL = Shapes(
    decodes=((1, 1024, 0), (8, 1024, 0), (32, 1024, 0), (64, 1024, 0), (16, 8192, 0), (8, 512, 8), (32, 512, 8),
             (1, 512, 1)),
    unlike=(8192, 4096, 3000, 2048, 1024, 1000, 600, 500, *[200] * 24),
    prefills=((512, 0), (2048, 0), (512, 16_384)),
    new_prefills=range(300, 306),
    traces=((1, 1024, 0), (32, 512, 8)),
    loads=((1, 512, 64, 0), (32, 512, 64, 0), (16, 256, 48, 8)),
    num_sampling=64,
    num_images=4,
    times=20,
)  # fmt: skip
SMOKE = Shapes(
    decodes=((1, 64, 0), (4, 48, 2)),
    unlike=(64, 100),
    prefills=((64, 0), (32, 128)),
    new_prefills=(30, 31),
    traces=((2, 64, 1),),
    loads=((2, 40, 6, 1),),
    num_sampling=4,
    num_images=2,
    times=2,
)


class Speed:
    """The stages of this part. `build` comes first."""

    def __init__(self, part: Part) -> None:
        self._part, self._device = part, part.device
        self._shapes = SMOKE if part.is_smoke else FULL
        self._config = config_of(part.size)
        self._tile_size = self._config.vision.tile_size
        self._limits = DeviceLimits.kept_in(part.out, part.device)
        self._num_pages, self._num_tiles = 400, 16
        self._runner: ModelRunner

    def build(self) -> None:
        started = time.perf_counter()
        model = dummy_model(self._config, BF16, self._device)
        synchronize(self._device)
        if self._device.type == "cuda":
            self._num_tiles = 64
            page = ModelRunner.page_bytes(self._config, PAGE_SIZE, BF16)
            tile = ModelRunner.tile_bytes(self._config, BF16)
            free, total = torch.cuda.mem_get_info()
            self._num_pages = int(min(free - self._num_tiles * tile - COPIES_BYTES, 30e9) // page)
            self._part.record("memory", weights_gb=round((total - free) / 1e9, 1), pages=self._num_pages)
        self._runner = make_runner(model, self._num_pages, self._num_tiles, BF16, self._device)
        fill_caches(self._runner)
        self._part.record("build", size=self._part.size, seconds=round(time.perf_counter() - started, 1))

    def image(self) -> None:
        """Encodes images of four tiles; the states of the last stay for other stages."""
        seconds, slices = [], 0
        for number in range(self._shapes.num_images):
            synchronize(self._device)
            started = time.perf_counter()
            slices = encode_noise(self._runner, self._tile_size, b"%d" % number, 2, 2, TILES)
            synchronize(self._device)
            seconds.append(time.perf_counter() - started)
        limit_ms = self._limits.ms(0, costs.image_operations(self._config))
        self._record("image", 1000 * min(seconds[1:]), limit_ms, first_ms=round(1000 * seconds[0], 1), slices=slices)

    def decode(self) -> None:
        for count, context, num_seeing in self._shapes.decodes:
            if count * context // PAGE_SIZE > self._num_pages:
                self._part.record("decode", rows=count, context=context, skipped="the cache is too small")
                continue
            rows = self._decode_rows([context] * count, num_seeing)
            ms = self._ms(rows, self._shapes.times)
            limit_ms = self._decode_limit_ms(count * context, num_seeing)
            tokens_per_s = round(1000 * count / ms)
            self._record(
                "decode", ms, limit_ms, rows=count, context=context, num_seeing=num_seeing, tokens_per_s=tokens_per_s
            )

    def unlike_lengths(self) -> None:
        """What traffic is: rows of very different lengths, one of which sees an image."""
        rows = self._decode_rows(self._shapes.unlike, 1)
        limit_ms = self._decode_limit_ms(sum(self._shapes.unlike), 1)
        self._record("decode of unlike lengths", self._ms(rows, self._shapes.times), limit_ms, rows=len(rows))

    def sampling(self) -> None:
        count = self._shapes.num_sampling
        for name, sampling in (("greedy", GREEDY), ("temperature", TEMPERATURE), ("temperature and top_p", TOP_P)):
            ms = self._ms(self._decode_rows([64] * count, 0, sampling), self._shapes.times)
            self._part.record("sampling", rows=count, how=name, ms=round(ms, 2))

    def prefill(self) -> None:
        for tokens, start in self._shapes.prefills:
            ms = self._ms([self._prompt(tokens, start)], min(self._shapes.times, 8))
            operations = costs.prefill_operations(self._config, tokens, start)
            limit_ms = self._limits.ms(costs.weight_bytes(self._config, sees_image=False), operations)
            tokens_per_s = round(1000 * tokens / ms)
            self._record("prefill", ms, limit_ms, tokens=tokens, start=start, tokens_per_s=tokens_per_s)

    def new_prefills(self) -> None:
        """Of lengths that were never computed: some libraries prepare themselves for each."""
        found = []
        for tokens in self._shapes.new_prefills:
            work = partial(self._runner.execute, [self._prompt(tokens, 0)])
            found.append(wall_ms(self._device, work, times=1, warmup=0))
        self._part.record("prefill of new lengths", ms=[round(ms, 1) for ms in found])

    def trace(self) -> None:
        """Where a decode step's time goes: kernels, and what the host calls and waits for."""
        is_gpu = self._device.type == "cuda"
        for count, context, num_seeing in self._shapes.traces:
            rows = self._decode_rows([context] * count, num_seeing)
            for _ in range(3):
                self._runner.execute(rows)
            with profile(activities=[ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * is_gpu]) as found:
                for _ in range(3):
                    self._runner.execute(rows)
                synchronize(self._device)
            events = found.key_averages()
            name = "self_device_time_total" if is_gpu else "self_cpu_time_total"
            kernels = [event for event in events if str(event.device_type).endswith("CUDA") is is_gpu]
            kernels.sort(key=lambda event: getattr(event, name), reverse=True)
            self._part.record(
                "trace",
                rows=count,
                num_seeing=num_seeing,
                kernels=sum(event.count for event in kernels) // 3,
                device_ms=round(sum(getattr(event, name) for event in kernels) / 3000, 2),
                host_calls={event.key: event.count / 3 for event in events if event.key in HOST_CALLS},
                longest=[
                    (event.key[:70], round(event.count / 3, 1), round(getattr(event, name) / 3000, 3))
                    for event in kernels[:14]
                ],
            )

    def engine(self) -> None:
        """The whole engine in this process: scheduler, caches, sampler."""
        vocabulary = min(1000, self._config.text.vocab_size)
        for together, prompt, answer, num_images in self._shapes.loads:
            core = make_core(self._runner, self._num_pages, self._num_tiles)
            generator = torch.Generator().manual_seed(together)
            with shared_noise(self._tile_size, [(b"engine %d" % i, 2, 2) for i in range(num_images)]) as shared:
                requests = [
                    EngineRequest(
                        id=i + 1,
                        tokens=tuple(torch.randint(10, vocabulary, (prompt,), generator=generator).tolist()),
                        max_tokens=answer,
                        sampling=TOP_P,
                        images=shared.inputs[i : i + 1],
                        image_positions=(2,) if i < num_images else (),
                    )
                    for i in range(together)
                ]
                summary = run_requests(core, requests, together)
            core.check()
            self._part.record_load("engine", summary, together=together, num_images=num_images)

    def peak(self) -> None:
        if self._device.type == "cuda":
            allocated, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
            self._part.record("peak", allocated_gb=round(allocated / 1e9, 1), reserved_gb=round(reserved / 1e9, 1))

    def _ms(self, rows: Sequence[Row], times: int) -> float:
        for output in self._runner.execute(rows):
            assert output.error is None, output.error
        return wall_ms(self._device, lambda: self._runner.execute(rows), times)

    def _decode_rows(
        self, contexts: Sequence[int], num_seeing: int, sampling: SamplingParams = GREEDY
    ) -> Sequence[Row]:
        pages = ScatteredPages(self._num_pages)
        seen = SeenImages((TILES,), (2,))
        return [
            make_row(
                [100 + i],
                context - 1,
                pages.take(context),
                images=seen if i < num_seeing else None,
                sampling=sampling,
            )
            for i, context in enumerate(contexts)
        ]

    def _prompt(self, tokens: int, start: int) -> Row:
        pages = ScatteredPages(self._num_pages).take(start + tokens)
        return make_row([10 + i % 900 for i in range(tokens)], start, pages, is_sampled=False)

    def _decode_limit_ms(self, context: int, num_seeing: int) -> float:
        weights = costs.weight_bytes(self._config, sees_image=num_seeing > 0)
        return self._limits.ms(weights + costs.kv_bytes(self._config, context, num_seeing))

    def _record(self, stage: str, ms: float, limit_ms: float, **figures: object) -> None:
        ratio = round(limit_ms / ms, 3)
        self._part.record(stage, ms=round(ms, 2), limit_ms=round(limit_ms, 2), ratio=ratio, **figures)


def main() -> None:
    """Runs the part."""
    part = Part.from_arguments()
    speed = Speed(part)
    if not part.stage("build", 20.0, speed.build):
        sys.exit("there is nothing to measure")
    part.stage("image", 10.0, speed.image)
    part.stage("decode", 25.0, speed.decode)
    part.stage("trace", 15.0, speed.trace)
    part.stage("prefill", 15.0, speed.prefill)
    part.stage("prefill of new lengths", 5.0, speed.new_prefills)
    part.stage("sampling", 10.0, speed.sampling)
    part.stage("decode of unlike lengths", 10.0, speed.unlike_lengths)
    part.stage("engine", 40.0, speed.engine)
    part.stage("peak", 0.0, speed.peak)


if __name__ == "__main__":
    main()
