"""Measures one step of the engine in this process, and shows where its time is spent.

    python benchmarks/step.py --rows 1 8 32 --context 128
    python benchmarks/step.py --rows 8 --profile
    python benchmarks/step.py --both
    python benchmarks/step.py --size 11B --device cuda --dtype bfloat16 --rows 1 8 32 64

Steps are run by the engine's own runner on the demo model, on --model, or on random weights in the sizes of a
published one. A decode step computes one token of each row; a prefill step computes the prompts of all rows at
once. The table has the median of many steps; with --both, also of steps without our own CPU kernels, in turn.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.profiler import profile

from processes import checkpoint_or_demo, run_as_engine
from published import SIZES
from spyglass_server.engine.messages import EngineRequest, SamplingParams
from spyglass_server.engine.worker.batch import Row
from spyglass_server.runtime.checkpoint import load_model
from spyglass_server.runtime.config import load_config
from spyglass_server.runtime.dummy_weights import dummy_model
from spyglass_server.runtime.launch import PAGE_SIZE
from spyglass_server.runtime.runner import ModelRunner

GREEDY = SamplingParams(temperature=0.0)


def rows_of(count: int, start: int, tokens: int, decodes: bool) -> list[Row]:
    """Builds rows that compute `tokens` tokens from position `start`, each in its own pages."""
    pages = -(-(start + tokens) // PAGE_SIZE)
    return [
        Row(
            request=EngineRequest(id=i, tokens=(), max_tokens=1, sampling=GREEDY),
            tokens=tuple(20 + 7 * (i + j) % 200 for j in range(tokens)),
            start=start,
            pages=tuple(range(i * pages, (i + 1) * pages)),
            choices=(0,) if decodes else (),
        )
        for i in range(count)
    ]


def median_ms(runner: ModelRunner, rows: Sequence[Row], times: int) -> float:
    """Measures the median time of a step in milliseconds."""
    return medians_ms([runner], rows, times)[0]


def medians_ms(runners: Sequence[ModelRunner], rows: Sequence[Row], times: int) -> list[float]:
    """Does the same for runners that take turns."""
    found: list[list[float]] = [[] for _ in runners]
    for _ in range(times + 2):
        for runner, own in zip(runners, found, strict=True):
            started = time.perf_counter()
            runner.execute(rows)
            own.append(1000 * (time.perf_counter() - started))
    return [statistics.median(own[2:]) for own in found]


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = result.add_argument
    weights = result.add_mutually_exclusive_group()
    weights.add_argument("--model", type=Path, help="a checkpoint (default: the demo model)")
    weights.add_argument("--size", choices=tuple(SIZES), help="random weights in the sizes of this published model")
    add("--device", default="cpu", choices=("cpu", "cuda"), help="(default: %(default)s)")
    add("--dtype", default="float32", choices=("float32", "bfloat16"), help="(default: %(default)s)")
    add("--rows", type=int, nargs="+", default=[1, 8, 32], help="sequences in a step (default: 1 8 32)")
    add("--context", type=int, default=128, help="tokens that each sequence has already (default: %(default)s)")
    add("--times", type=int, default=20, help="steps to measure (default: %(default)s)")
    add("--threads", type=int, help="threads of torch (default: all cores)")
    add("--both", action="store_true", help="also measures steps without our own kernels for CPUs")
    add(
        "--profile",
        action="store_true",
        help="shows the operations of a decode step before the table, longest first",
    )
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the script."""
    given = parser().parse_args(arguments)
    run_as_engine()
    if given.threads:
        torch.set_num_threads(given.threads)
    dtype, device = getattr(torch, given.dtype), torch.device(given.device)
    pages = max(given.rows) * (given.context // PAGE_SIZE + 1)

    def runner_of(*, has_kernels: bool) -> ModelRunner:
        if given.size:
            model = dummy_model(SIZES[given.size], dtype, device)
        else:
            folder = checkpoint_or_demo(given.model)
            model = load_model(folder, load_config(folder), dtype, device)
        return ModelRunner(model, pages, PAGE_SIZE, 0, dtype, device, has_kernels=has_kernels)

    runner = runner_of(has_kernels=True)
    if given.profile:
        rows = rows_of(given.rows[0], given.context, 1, decodes=True)
        median_ms(runner, rows, 2)
        with profile() as found:
            for _ in range(given.times):
                runner.execute(rows)
        order = f"self_{given.device}_time_total"
        print(found.key_averages().table(sort_by=order, row_limit=25, max_name_column_width=50))
    runners = [runner, *([runner_of(has_kernels=False)] if given.both else [])]
    names = ("", ", without kernels")[: len(runners)]
    columns = [f"decode ms{name} | tokens/s | prefill of {given.context} ms{name} | tokens/s" for name in names]
    print(f"| rows | {' | '.join(columns)} |\n|" + " ---: |" * (1 + 4 * len(runners)))
    for count in given.rows:
        prefills = medians_ms(runners, rows_of(count, 0, given.context, decodes=False), 3)
        decodes = medians_ms(runners, rows_of(count, given.context, 1, decodes=True), given.times)
        cells = [
            f"{decode:.1f} | {1000 * count / decode:.0f} | {prefill:.0f} | {1000 * count * given.context / prefill:.0f}"
            for prefill, decode in zip(prefills, decodes, strict=True)
        ]
        print(f"| {count} | {' | '.join(cells)} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
