"""`spyglass plan --measure`: compares what a process with random weights measures with what its device's rates predict.

The process is `spyglass_server.runtime.measurement`; only it uses torch and the engine.
"""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from spyglass_server.engine.handle.process import ENVIRONMENT
from spyglass_server.planning.costs import Step, image_tokens, step_work
from spyglass_server.planning.hardware import Rates
from spyglass_server.planning.memory import CacheSizes
from spyglass_server.planning.plan import Question, clock_of
from spyglass_server.planning.report import duration, table
from spyglass_server.planning.sizes import ITEMSIZES, with_defaults
from spyglass_server.planning.times import Speed

SECONDS = 60.0
"""Time for all loads together, once the weights are made."""
_NO_LINK = 1e12
_PROGRAM = "spyglass_server.runtime.measurement"


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """A figure as predicted and as measured; `kind` is "bytes", "seconds" or "tokens/s"."""

    name: str
    kind: str
    predicted: float
    measured: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """A device's measured figures, with the predicted ones."""

    device: str
    figures: tuple[Compared, ...]

    def as_text(self) -> str:
        """Returns a table; a time that did not occur while measuring is a dash."""
        rows = [(f"measured on {self.device}", "predicted", "measured", "measured / predicted")]
        rows += [
            (figure.name, _show(figure.kind, figure.predicted), _show(figure.kind, figure.measured), _ratio(figure))
            for figure in self.figures
        ]
        return table(rows) + "\n"

    def as_json(self) -> str:
        """Returns JSON, in bytes, seconds and tokens per second."""
        return json.dumps(asdict(self), indent=2) + "\n"


def measure(
    raw: Mapping[str, Any],
    question: Question,
    counts: Sequence[int],
    device: str,
    limits: Mapping[str, int | None],
) -> Measurement:
    """Measures a load with each of `counts` requests at once, with the caches that the largest of them needs.

    `limits` are the step limits that are set; the others are the engine's defaults for the device that it finds.

    Raises:
        ValueError: torch is missing, or the engine refuses the model; the text is for the operator.
    """
    if importlib.util.find_spec("torch") is None:
        raise ValueError("--measure needs: pip install 'spyglass[server]'")
    caches = _caches(question, max(counts))
    units = question.model.cache_units(ITEMSIZES[question.dtype])
    set_limits = {name.replace("_", "-"): value for name, value in limits.items() if value is not None}
    options = set_limits | {
        "device": device,
        "dtype": question.dtype,
        "quantization": question.quantization,
        "max-batch": question.max_batch,
        "cache-bytes": caches.num_pages * units.page_bytes,
        "image-cache-bytes": caches.num_tiles * units.tile_bytes,
        "gpu-memory-utilization": question.utilization,
    }
    found = _run(
        {
            "config": with_defaults(raw),
            "options": [word for name, value in options.items() for word in (f"--{name}", str(value))],
            "loads": [asdict(question.load) | {"at_once": count} for count in counts],
            "seconds": SECONDS,
        }
    )
    figures = _memory(question, caches, found["memory"])
    asked = replace(question, **found["limits"])
    for count, measured in zip(counts, found["loads"], strict=True):
        figures += _speed(asked, count, measured)
    return Measurement(device=found["memory"]["device_name"], figures=tuple(figures))


def _caches(question: Question, at_once: int) -> CacheSizes:
    """Returns caches as large as the requests need, plus a page each for what they do not fill."""
    units, load = question.model.cache_units(ITEMSIZES[question.dtype]), question.load
    pages = at_once * (-(-load.tokens // units.page_size) + 1)
    return CacheSizes(num_pages=pages, num_tiles=max(units.image_tiles, 2 * at_once * load.images * load.tiles))


def _run(request: Mapping[str, Any]) -> Any:
    """Returns the answer of the process, which ends with this one."""
    done = subprocess.run(
        [sys.executable, "-m", _PROGRAM],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        env=ENVIRONMENT | os.environ,
        check=False,
    )
    if done.returncode:
        raise ValueError((done.stderr.strip().splitlines() or ["the measuring process failed"])[-1])
    return json.loads(done.stdout)


def _memory(question: Question, caches: CacheSizes, measured: Mapping[str, Any]) -> list[Compared]:
    units = question.model.cache_units(ITEMSIZES[question.dtype])
    weights = question.model.count().nbytes(ITEMSIZES[question.dtype], question.quantization)
    text, pictures = caches.num_pages * units.page_bytes, caches.num_tiles * units.tile_bytes
    predicted = {
        "weight_bytes": ("weights", weights),
        "kv_cache_bytes": ("pages", text),
        "image_cache_bytes": ("tiles", pictures),
        "allocated_bytes": ("all tensors", weights + text + pictures),
    }
    return [
        Compared(name=name, kind="bytes", predicted=value, measured=measured[field])
        for field, (name, value) in predicted.items()
    ]


def _speed(question: Question, at_once: int, measured: Mapping[str, float]) -> list[Compared]:
    speed = predicted_speed(question, at_once, measured)
    names = {
        "first_token": ("time to first token", "seconds", speed.first_token.seconds),
        "between_tokens": ("between tokens", "seconds", speed.between_tokens.seconds),
        "tokens_per_s": ("answer tokens/s", "tokens/s", speed.tokens_per_s),
    }
    return [
        Compared(name=f"{at_once} at once: {name}", kind=kind, predicted=value, measured=measured[field])
        for field, (name, kind, value) in names.items()
    ]


def predicted_speed(question: Question, at_once: int, measured: Mapping[str, float]) -> Speed:
    """Predicts the speed from a device's rates: `bytes_per_s`, `operations_per_s`, and `fixed`, the seconds of a step
    that has as many kernels but reads and computes next to nothing."""
    load = question.load
    seen = load.images * image_tokens(question.model, load.tiles)
    rates = Rates(
        bytes_per_s=measured["bytes_per_s"],
        linear_operations_per_s=measured["operations_per_s"],
        operations_per_s=measured["operations_per_s"],
        link_bytes_per_s=_NO_LINK,
        sum_s=0.0,
        kernel_s=1.0,
    )
    clock = clock_of(question, rates)
    step = step_work(question.model, clock.precision, Step(num_rows=at_once, image_tokens=seen))
    return replace(clock, rates=replace(rates, kernel_s=measured["fixed"] / step.num_kernels)).speed(load, at_once)


def _show(kind: str, value: float) -> str:
    if kind == "bytes":
        return f"{value / 1e6:,.1f} MB"
    if not value:
        return "-"
    return duration(value) if kind == "seconds" else f"{value:.3g}"


def _ratio(figure: Compared) -> str:
    return f"{figure.measured / figure.predicted:.2f}" if figure.measured and figure.predicted else "-"
