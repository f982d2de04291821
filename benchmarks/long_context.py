"""Measures the cost of a long context: memory per token, and time by how much of it is read.

    python benchmarks/long_context.py

A prompt of 32,768 tokens goes through the engine, scheduler, pages and chunks included, on a small model with random
weights; then one token is decoded at several context lengths. Attention's time is that of a step minus that of
a step without context.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace

import torch

from processes import run_as_engine
from published import SIZES
from spyglass_server.engine.messages import EngineRequest, RequestFailed, SamplingParams, TokenOutput
from spyglass_server.engine.worker.budget import Limits
from spyglass_server.engine.worker.core import EngineCore
from spyglass_server.engine.worker.image_cache import ImageCache
from spyglass_server.engine.worker.page_pool import PagePool
from spyglass_server.engine.worker.scheduler import Scheduler
from spyglass_server.runtime.dummy_weights import dummy_model
from spyglass_server.runtime.launch import PAGE_SIZE
from spyglass_server.runtime.runner import ModelRunner
from step import median_ms, rows_of

_ANSWER = 8
_TEXT = replace(
    SIZES["11B"].text, vocab_size=1024, hidden_size=512, intermediate_size=1024, num_layers=5, num_heads=8,
    num_kv_heads=8, cross_layers=(3,),
)  # fmt: skip
_VISION = replace(SIZES["11B"].vision, hidden_size=64, intermediate_size=64, num_layers=32, num_heads=2)
_SMALL = replace(SIZES["11B"], text=_TEXT, vision=replace(_VISION, output_size=6 * 64))


def run_long(runner: ModelRunner, pool: PagePool, tokens: int) -> tuple[float, int]:
    """Computes a prompt and a short answer; returns the seconds and the peak number of pages."""
    core = EngineCore(Scheduler(Limits(max_batch=1, max_step_tokens=512), pool, ImageCache(4)), runner)
    prompt = tuple(number % 1000 for number in range(tokens - _ANSWER))
    core.submit(EngineRequest(id=1, tokens=prompt, max_tokens=_ANSWER, sampling=SamplingParams(temperature=0.0)))
    started, held, answered = time.perf_counter(), 0, 0
    while core.has_work:
        events = core.step()
        if any(isinstance(event, RequestFailed) for event in events):
            sys.exit("the prompt failed")
        answered += sum(isinstance(event, TokenOutput) for event in events)
        held = max(held, pool.num_pages - pool.num_free)
    if answered != _ANSWER:
        sys.exit(f"{answered} tokens were answered instead of {_ANSWER}")
    core.check()
    return time.perf_counter() - started, held


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = result.add_argument
    add("--tokens", type=int, default=32_768, help="prompt and answer together (default: %(default)s)")
    add("--times", type=int, default=30, help="steps to measure at each context (default: %(default)s)")
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the script."""
    given = parser().parse_args(arguments)
    run_as_engine()
    dtype, device = torch.float32, torch.device("cpu")
    pages = given.tokens // PAGE_SIZE + 1
    runner = ModelRunner(dummy_model(_SMALL, dtype, device), pages, PAGE_SIZE, 0, dtype, device)
    seconds, held = run_long(runner, PagePool(pages, PAGE_SIZE), given.tokens)
    page_bytes = ModelRunner.page_bytes(_SMALL, PAGE_SIZE, dtype)
    own = given.tokens * page_bytes // PAGE_SIZE
    print(f"{given.tokens:,} tokens after {seconds:.2f} s; pages of {held * page_bytes / 1e6:.1f} MB,", end=" ")
    print(f"{held * page_bytes / own:.3f} times what the tokens need")
    bare = median_ms(runner, rows_of(1, 0, 1, decodes=True), given.times)
    print("\n| context | attention ms | ns for a cached kB | pages scattered: ms | ns |\n|" + " ---: |" * 5)
    for context in sorted({c for c in (4096, 8192, 16_384) if c < given.tokens} | {given.tokens}):
        kilobytes = context * page_bytes / PAGE_SIZE / 1000
        (row,) = rows_of(1, context - 1, 1, decodes=True)
        cells = []
        for pages in (row.pages, row.pages[::-1]):
            attention = median_ms(runner, [replace(row, pages=pages)], given.times) - bare
            cells += [f"{attention:.2f}", f"{1e6 * attention / kilobytes:.1f}"]
        print(f"| {context:,} | {' | '.join(cells)} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
