"""A stage of the check: what this machine is, and what its device can do at best, to which all others are compared."""

import platform
from dataclasses import asdict
from importlib.metadata import version

import torch

from stage_run import StageRun
from timing import DeviceLimits


def run(run: StageRun) -> None:
    """Runs the stage."""
    gpu = torch.cuda.get_device_properties(0) if run.is_gpu else None
    run.record(
        "facts",
        python=platform.python_version(),
        torch=torch.__version__,
        transformers=version("transformers"),
        gpu=gpu.name if gpu else "none",
        memory_gb=round(gpu.total_memory / 1e9, 1) if gpu else 0,
    )
    found = asdict(DeviceLimits.kept_in(run.out, run.device))
    run.record("limits", **{name: float(f"{value:.4g}") for name, value in found.items()})
