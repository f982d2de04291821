"""Shows plans: tables for people, JSON for programs."""

import dataclasses
import json
from collections.abc import Iterable, Sequence
from typing import Any

from spyglass_server.planning.memory import gigabytes
from spyglass_server.planning.plan import Memory, Plan, Question
from spyglass_server.planning.times import Speed, Time


def as_text(plan: Plan, list_input: float, list_output: float) -> str:
    """Formats a plan as tables. `list_input` and `list_output` are prices per million tokens, in US dollars."""
    parts = [_headline(plan.question), table(_memory_rows(plan))]
    if not plan.fits:
        advice = [f"  {line}" for line in plan.advice] or ["  nothing in the table of GPUs"]
        parts.append("\n".join(["It does not fit. What would:", *advice]))
        return "\n\n".join(parts) + "\n"
    assert plan.costs is not None
    assert plan.memory.caches is not None
    parts += [_requests(plan), table(_speed_rows(plan.speeds))]
    rows = [
        ("US$ for a million tokens", "computed", "list"),
        ("input", f"{plan.costs.input:.3f}", f"{list_input:.2f}"),
        ("output", f"{plan.costs.output:.3f}", f"{list_output:.2f}"),
    ]
    hour = plan.question.gpu.price * plan.question.num_gpus
    parts.append(table(rows) + f"\nat US$ {hour:.2f} an hour, {plan.speeds[-1].at_once} at once all the time")
    return "\n\n".join(parts) + "\n"


def as_json(plan: Plan, list_input: float, list_output: float) -> str:
    """Formats a plan as JSON; bytes are per GPU, times in seconds, prices in US dollars per million tokens."""
    question, memory = plan.question, plan.memory
    found: dict[str, Any] = {
        "model": question.name,
        "dtype": question.dtype,
        "quantization": question.quantization,
        "gpu": dataclasses.asdict(question.gpu),
        "num_gpus": question.num_gpus,
        "load": dataclasses.asdict(question.load),
        "fits": plan.fits,
        "memory": {
            "budget_bytes": memory.budget,
            "weight_bytes": memory.weights,
            "step_bytes": memory.step,
            "page_bytes": memory.units.page_bytes,
            "page_tokens": memory.units.page_size,
            "tile_bytes": memory.units.tile_bytes,
            "num_pages": memory.caches.num_pages if memory.caches else 0,
            "num_tiles": memory.caches.num_tiles if memory.caches else 0,
            "requests": memory.requests,
        },
        "speeds": [_speed(speed) for speed in plan.speeds],
        "advice": plan.advice,
    }
    if plan.costs:
        costs = {"input": plan.costs.input, "output": plan.costs.output}
        found["prices"] = {"computed": costs, "list": {"input": list_input, "output": list_output}}
    return json.dumps(found, indent=2) + "\n"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Aligns rows of cells in columns: the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def duration(seconds: float) -> str:
    """Formats a time with three digits, in seconds or milliseconds."""
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"


def _headline(question: Question) -> str:
    gpu = question.gpu
    form = question.dtype if question.quantization == "none" else f"{question.quantization} and {question.dtype}"
    return (
        f"{question.name} in {form} on {question.num_gpus} x {gpu.name} "
        f"({gpu.memory_gb:g} GB, {gpu.bandwidth_gbs:g} GB/s, {gpu.bf16_tflops:g} TFLOP/s)"
    )


def _memory_rows(plan: Plan) -> list[tuple[str, str]]:
    memory, question = plan.memory, plan.question
    rows = [
        ("memory of each GPU", gigabytes(question.gpu.memory_gb * 1e9)),
        (f"may be used ({question.utilization:g}, less the driver's)", gigabytes(memory.budget)),
        ("weights", gigabytes(memory.weights)),
        ("a step, at most", gigabytes(memory.step)),
    ]
    if memory.caches:
        rows += _cache_rows(memory)
    return rows


def _cache_rows(memory: Memory) -> Iterable[tuple[str, str]]:
    assert memory.caches is not None
    pages, tiles, units = memory.caches.num_pages, memory.caches.num_tiles, memory.units
    yield (
        f"text: {pages:,} pages, {pages * units.page_size:,} tokens",
        gigabytes(pages * units.page_bytes),
    )
    yield (
        f"pictures: {tiles:,} tiles, {tiles // units.image_tiles:,} of the largest",
        gigabytes(tiles * units.tile_bytes),
    )


def _requests(plan: Plan) -> str:
    load, memory = plan.question.load, plan.memory
    plural = "s" if load.images > 1 else ""
    pictures = f" and {load.images} picture{plural} of {load.tiles} tiles" if load.images else ""
    text = f"requests of {load.prompt:,} + {load.answer:,} tokens{pictures}: {memory.requests:,} fit"
    most = plan.question.max_batch
    return text + (f", {most} run at once (--max-batch)" if memory.requests > most else "")


def _speed_rows(speeds: Sequence[Speed]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("requests at once", *(f"{speed.at_once:,}" for speed in speeds))]
    rows.append(("time to first token", *(_limited(speed.first_token) for speed in speeds)))
    rows.append(("between tokens", *(_limited(speed.between_tokens) for speed in speeds)))
    rows.append(
        ("answer tokens/s", *(f"{_count(speed.tokens_per_s)} ({speed.request.limit})" for speed in speeds)),
    )
    return rows


def _count(number: float) -> str:
    return f"{float(f'{number:.3g}'):,.0f}" if number >= 100 else f"{number:.3g}"


def _limited(time: Time) -> str:
    return f"{duration(time.seconds)} ({time.limit})"


def _speed(speed: Speed) -> dict[str, Any]:
    times = {"first_token": speed.first_token, "between_tokens": speed.between_tokens, "request": speed.request}
    return {
        "at_once": speed.at_once,
        "tokens_per_s": speed.tokens_per_s,
        **{name: {"seconds": time.seconds, "limit": time.limit} for name, time in times.items()},
    }
