"""The stages of the check: what each measures, of which model, in how much time. Knows no torch.

A stage runs in a process of its own: what it does to its device or its memory ends with it.
"""

import importlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A function `run` of a module, and the model that it measures: its size, and how its weights are kept. `seconds`
    are the most that it may take."""

    name: str
    module: str
    size: str = "11B"
    weights: str = "bfloat16"
    seconds: float = 60.0


STAGES: Sequence[Stage] = (
    Stage(name="limits", module="limits"),
    Stage(name="exactness-float32", module="exactness", weights="float32"),
    Stage(name="exactness-bfloat16", module="exactness"),
    Stage(name="exactness-fp8", module="exactness", weights="fp8"),
    Stage(name="kernels", module="kernels"),
    Stage(name="small-kernels", module="small_kernels"),
    Stage(name="decode", module="decode"),
    Stage(name="decode-fp8", module="decode", weights="fp8"),
    Stage(name="decode-90B/8", module="decode", size="90B/8"),
    Stage(name="decode-90B/8-fp8", module="decode", size="90B/8", weights="fp8"),
    Stage(name="prefill", module="prefill"),
    Stage(name="pictures", module="image_encoding"),
    Stage(name="sampling", module="sampling"),
    Stage(name="engine", module="engine"),
    Stage(name="serving", module="serving", seconds=120.0),
    Stage(name="trace", module="traces"),
)
"""In the order in which they run: what matters most comes first, should the time run out."""

PRELOADED = ("torch", "torch._dynamo", "transformers.models.mllama.configuration_mllama", "subject")
"""Modules that are imported once for all stages, as all that make a model need them. None touches a device."""


def smoke_stages(stages: Sequence[Stage]) -> Sequence[Stage]:
    """Those without the ones that differ from another by the model's size alone, which is tiny for all."""
    return tuple({(stage.module, stage.weights): stage for stage in reversed(stages)}.values())[::-1]


def run_stage(stage: Stage, out: Path, log: Path, *, is_smoke: bool) -> None:
    """Runs a stage in this process, which leads a group of its own and prints to a log from then on."""
    os.setsid()
    with log.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    from stage_run import StageRun  # torch, which only the processes of stages need

    size = "smoke" if is_smoke else stage.size
    run = StageRun(out=out, stage=stage.name, size=size, weights=stage.weights, is_smoke=is_smoke)
    importlib.import_module(stage.module).run(run)
