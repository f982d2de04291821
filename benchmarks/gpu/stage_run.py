"""One stage of the check as it runs: what it was asked to do, its results as JSON lines, cases that fail alone."""

import json
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from load import Summary
from spyglass_server.engine.worker.batch import DeviceLost


@dataclass(frozen=True, slots=True, kw_only=True)
class StageRun:
    """`size` and `weights` are of the model that is measured; results go to `out`."""

    out: Path
    stage: str
    size: str
    weights: str
    is_smoke: bool

    @property
    def device(self) -> torch.device:
        return torch.device("cpu" if self.is_smoke else "cuda")

    @property
    def is_gpu(self) -> bool:
        return self.device.type == "cuda"

    def record(self, what: str, **figures: object) -> None:
        """Appends a line to the results at once: it is kept even if what comes next ends the process."""
        line = json.dumps({"what": what, "stage": self.stage, **figures})
        with (self.out / "results.jsonl").open("a") as file:
            file.write(line + "\n")
        print(line, flush=True)

    def figure(
        self, what: str, case: str, ms: float, limit_ms: float | None = None, more: str = "", **figures: object
    ) -> None:
        """Records a line of the table: a time, beside the least that this device could take for it, if that is known;
        `figures` are what its bars are found by."""
        share = {} if limit_ms is None else {"limit_ms": round(limit_ms, 4), "ratio": round(limit_ms / ms, 3)}
        self.record(what, case=case, ms=round(ms, 4), **share, more=more, weights=self.weights, **figures)

    def load(self, what: str, summary: Summary, limit_ms: float, *, together: int, num_images: int = 0) -> None:
        """Records what came of a closed loop of so many requests at once. `limit_ms` is of a decode step."""
        case = f"{together} at once" + (f", {num_images} with pictures" if num_images else "")
        first = f"first token {summary.first_token_ms:.1f} (p99 {summary.first_token_p99_ms:.1f})"
        more = f"{first}, p99 between tokens {summary.gap_p99_ms:.2f}, {summary.tokens_per_s:.0f} tokens/s"
        self.figure(
            what,
            case,
            max(summary.gap_ms, 1e-3),
            limit_ms,
            more,
            together=together,
            num_images=num_images,
            tokens_per_s=summary.tokens_per_s,
            first_token_ms=summary.first_token_ms,
            gap_p99_ms=summary.gap_p99_ms,
            answer_tokens=summary.answer_tokens,
        )

    def compare(self, case: str, what: str, error: float, bar: float) -> None:
        """Records how far something is from its reference, and whether that is near enough."""
        self.record("exactness", case=case, of=what, error=error, bar=bar, ok=error <= bar)

    def case(self, name: str, work: Callable[[], None]) -> None:
        """Runs a part of the stage. One that fails is recorded and does not keep the others from running, unless the
        device is lost: then nothing else can run in this process."""
        started = time.time()
        try:
            work()
        except (DeviceLost, torch.AcceleratorError) as error:
            self._record_failure(name, error)
            sys.exit("the device is lost")
        except Exception as error:
            self._record_failure(name, error)
        self.record("time", of=name, seconds=round(time.time() - started, 1))

    def _record_failure(self, name: str, error: BaseException) -> None:
        traceback.print_exc()
        self.record("failure", of=name, error=f"{type(error).__name__}: {str(error)[:400]}")
