"""The command `spyglass plan`: turns options into a plan, and prints it to stdout."""

import argparse
import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from spyglass_common.settings import add_settings
from spyglass_server.planning.hardware import GPUS, Gpu
from spyglass_server.planning.measure import measure
from spyglass_server.planning.plan import CHUNK_TOKENS, SLICE_OPERATIONS, STEP_TOKENS, Question, make_plan
from spyglass_server.planning.report import as_json, as_text
from spyglass_server.planning.settings import GPU_FIGURES, SETTINGS
from spyglass_server.planning.sizes import ITEMSIZES, ModelSizes, read_config
from spyglass_server.planning.times import Load

_DEFAULT_GPU = "h100-sxm"
_AT_ONCE = 8
"""Requests that are measured at once by default."""


def add_options(parser: argparse.ArgumentParser, environ: Mapping[str, str]) -> None:
    """Adds the command's options, with their environment variables."""
    add_settings(parser, SETTINGS, environ)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--measure",
        action="store_true",
        help="run random weights on this machine's device for up to a minute, and show what was measured beside what "
        "was predicted from the device's bandwidth and operations, which are measured first",
    )


def run_plan(options: argparse.Namespace) -> int:
    """Prints a plan. Returns 0, or 1 if the model does not fit.

    Raises:
        ValueError, OSError: options contradict each other, or the configuration is not served.
    """
    raw = read_config(options.model)
    question = _question(options, raw)
    if options.measure:
        return _measure(options, raw, question)
    plan = make_plan(question, options.at_once)
    show = as_json if options.json else as_text
    sys.stdout.write(show(plan, options.price_input, options.price_output))
    return 0 if plan.fits else 1


def _measure(options: argparse.Namespace, raw: Mapping[str, Any], question: Question) -> int:
    if question.num_gpus > 1:
        raise ValueError("--measure runs on one device: leave --tensor-parallel-size at 1")
    counts = sorted({1, min(options.at_once or _AT_ONCE, question.max_batch)})
    limits = {name: getattr(options, name) for name in ("max_step_tokens", "max_chunk_tokens")}
    found = measure(raw, question, counts, options.device, limits)
    sys.stdout.write(found.as_json() if options.json else found.as_text())
    return 0


def _question(options: argparse.Namespace, raw: Mapping[str, Any]) -> Question:
    model = ModelSizes.of(raw)
    load = Load(
        prompt=options.prompt_tokens, answer=options.answer_tokens, images=options.pictures, tiles=options.tiles
    )
    if load.tiles > model.vision.max_tiles:
        raise ValueError(f"--tiles is {load.tiles}, but pictures of this model have at most {model.vision.max_tiles}")
    return Question(
        name=options.model,
        model=model,
        gpu=_gpu(options),
        num_gpus=options.tensor_parallel_size,
        dtype=_dtype(options.dtype, model),
        quantization=_quantization(options.quantization, model, is_gpu=not options.measure),
        load=load,
        max_batch=options.max_batch,
        utilization=options.gpu_memory_utilization,
        max_step_tokens=options.max_step_tokens or max(options.max_batch, STEP_TOKENS["cuda"]),
        max_chunk_tokens=options.max_chunk_tokens or CHUNK_TOKENS["cuda"],
        slice_operations=SLICE_OPERATIONS["cuda"],
    )


def _gpu(options: argparse.Namespace) -> Gpu:
    """Returns the GPU from the table, with the given figures instead of its own."""
    given = {setting.dest: getattr(options, setting.dest) for setting in GPU_FIGURES}
    given["price"] = options.gpu_price
    return replace(
        GPUS[options.gpu or _DEFAULT_GPU], **{name: value for name, value in given.items() if value is not None}
    )


def _dtype(name: str, model: ModelSizes) -> str:
    found = model.dtype if name == "auto" else name
    if found not in ITEMSIZES:
        raise ValueError(f"the checkpoint is in {found}; choose --dtype bfloat16 or float32")
    return found


def _quantization(name: str, model: ModelSizes, *, is_gpu: bool) -> str:
    if name == "int8" and is_gpu:
        raise ValueError("--quantization int8 is for CPUs; choose fp8 for a GPU")
    if model.quantization != "none" and name not in ("none", model.quantization):
        raise ValueError(f"--quantization is {name}, but the checkpoint is stored in {model.quantization}")
    return name if model.quantization == "none" else model.quantization
