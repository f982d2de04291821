"""One part of the check in a process of its own: its options, its results as JSON lines, stages that fail alone."""

import argparse
import json
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from load import Summary
from spyglass_server.engine.worker.batch import DeviceLost


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What a part was asked to do, and where its results go. `deadline` is in seconds since the epoch."""

    out: Path
    deadline: float
    size: str
    is_smoke: bool

    @classmethod
    def from_arguments(cls) -> "Part":
        """As `check.py` started it."""
        parser = argparse.ArgumentParser(description="a part of the check; check.py starts it")
        parser.add_argument("--out", type=Path, required=True)
        parser.add_argument("--deadline", type=float, required=True)
        parser.add_argument("--size", required=True)
        parser.add_argument("--cpu-smoke", action="store_true")
        given = parser.parse_args()
        return cls(out=given.out, deadline=given.deadline, size=given.size, is_smoke=given.cpu_smoke)

    @property
    def device(self) -> torch.device:
        return torch.device("cpu" if self.is_smoke else "cuda")

    def record(self, stage: str, **figures: object) -> None:
        """Appends a line to the results at once: it is kept even if what comes next ends the process."""
        line = json.dumps({"stage": stage, **figures})
        with (self.out / "results.jsonl").open("a") as file:
            file.write(line + "\n")
        print(line, flush=True)

    def compare(self, case: str, what: str, error: float, bar: float) -> None:
        """Records how far something is from its reference, and whether that is near enough."""
        self.record("exactness", case=case, what=what, error=error, bar=bar, ok=error <= bar)

    def record_load(self, stage: str, summary: Summary, *, together: int, num_images: int) -> None:
        """Records what came of a closed loop of so many requests at once."""
        figures = {name: round(value, 2) for name, value in asdict(summary).items()}
        self.record(stage, together=together, num_images=num_images, **figures)

    def stage(self, name: str, needed_s: float, work: Callable[[], None]) -> bool:
        """Runs a stage and returns whether it worked. One that fails is recorded and does not keep the others from
        running, unless the device is lost: then nothing else can run in this process."""
        left_s = self.deadline - time.time()
        if left_s < needed_s:
            self.record(name, skipped=f"{left_s:.0f} s are left and {needed_s:.0f} needed", failed=True)
            return False
        started, works = time.time(), False
        try:
            work()
            works = True
        except (DeviceLost, torch.AcceleratorError) as error:
            self._record_failure(name, error)
            sys.exit("the device is lost")
        except Exception as error:
            self._record_failure(name, error)
        self.record("time", of=name, seconds=round(time.time() - started, 1))
        return works

    def _record_failure(self, name: str, error: BaseException) -> None:
        traceback.print_exc()
        self.record("failure", of=name, error=f"{type(error).__name__}: {str(error)[:400]}")
