"""Checks the engine on one GPU: whether it computes what it should, and how near to the device's limits.

    python benchmarks/gpu/check.py
    python benchmarks/gpu/check.py --cpu-smoke
    python benchmarks/gpu/check.py --only decode trace

Each stage runs in a process of its own, so that what fails costs that stage alone, and keeps its results line by line
in results.jsonl in --out. The table and the verdicts come last, and lie there as report.md. README.md in this folder
says what the stages do and how to read them.
"""

import argparse
import contextlib
import importlib
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import partial
from multiprocessing.context import BaseContext
from pathlib import Path

from report import Lines, report
from stages import PRELOADED, STAGES, Stage, run_stage, smoke_stages

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
FOLDERS = (
    "protos", "common", "server", "bridge", "clients", "launcher", "demo", "tests", "benchmarks", "benchmarks/gpu",
)  # fmt: skip
"""Where the stages find their modules: the product's of this tree, whatever is installed."""
MIN_S = 5.0
"""A stage is not started with less time than this."""
NUM_LOG_LINES = 8
"""Of a stage that failed, so many are shown."""


def set_environment(out: Path, wheels: Path, *, is_smoke: bool) -> None:
    """Sets what the stages run with: the variables of the engine's process, and the wheels that lie in a folder."""
    paths = [str(wheels), *(str(ROOT / folder) for folder in FOLDERS)]
    sys.path[:0] = paths
    from spyglass_server.engine.handle.process import ENVIRONMENT

    paths.append(os.environ.get("PYTHONPATH", ""))
    found = ENVIRONMENT | {"TRITON_CACHE_DIR": str(out / "triton")} | os.environ
    found |= {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONUNBUFFERED": "1"}
    found["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # a process that has asked CUDA itself cannot be copied
    if is_smoke:  # shapes are too small for more threads to be of use
        found |= {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    os.environ |= found


class Stages:
    """Runs stages one after the other, in copies of a process that has imported what all of them need, or in `fresh`
    ones."""

    def __init__(self, out: Path, deadline: float, *, is_smoke: bool, fresh: bool) -> None:
        self._out, self._deadline, self._is_smoke = out, deadline, is_smoke
        self._context: BaseContext = multiprocessing.get_context("spawn" if fresh else "forkserver")
        self._context.set_forkserver_preload(list(PRELOADED))

    def run(self, stage: Stage) -> str | None:
        """Runs a stage to its end; returns what went wrong with it as a whole, if anything did."""
        seconds = min(stage.seconds, self._deadline - time.time())
        if seconds < MIN_S:
            return f"not started: {max(0.0, seconds):.0f} s are left"
        log = self._out / f"{stage.name.replace('/', '-')}.log"
        work = partial(run_stage, stage, self._out, log, is_smoke=self._is_smoke)
        process = self._context.Process(target=work, name=stage.name)  # type: ignore[attr-defined]
        process.start()
        assert process.pid is not None
        process.join(seconds)
        is_late = process.is_alive()
        with contextlib.suppress(ProcessLookupError, PermissionError):  # and all that it has started
            os.killpg(process.pid, signal.SIGKILL)
        process.join()
        if is_late:
            return f"took longer than {seconds:.0f} s{_end_of(log)}"
        return f"ended with {process.exitcode}{_end_of(log)}" if process.exitcode else None


def _end_of(log: Path) -> str:
    """The last lines of a log, each on a line of its own."""
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    return "".join(f"\n{line}" for line in lines[-NUM_LOG_LINES:])


@contextlib.contextmanager
def unpacked_wheels() -> Iterator[Path]:
    """A folder with the packages of the wheels that were carried along, as far as this machine lacks them."""
    with tempfile.TemporaryDirectory() as folder:
        carried = sorted((ROOT / ".whl").glob("*.whl"))
        if carried:
            importlib.import_module("wheels").unpack(carried, Path(folder))
        yield Path(folder)


def parser(stages: Sequence[Stage]) -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = result.add_argument
    add("--cpu-smoke", action="store_true", help="runs the same code on tiny shapes, on a CPU")
    add("--out", type=Path, default=ROOT / ".cache" / "gpu", help="folder of the results (default: .cache/gpu)")
    add("--seconds", type=float, default=300.0, help="for all stages together (default: %(default)s)")
    add("--fresh", action="store_true", help="imports all anew for each stage, should copies of a process not do")
    names = [stage.name for stage in stages]
    add("--only", nargs="+", choices=names, default=names, metavar="STAGE", help=f"of {', '.join(names)}")
    return result


def main(arguments: Sequence[str] | None = None, stages: Sequence[Stage] = STAGES) -> int:
    """Runs the script."""
    given = parser(stages).parse_args(arguments)
    deadline = time.time() + given.seconds
    out = given.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    for name in ("results.jsonl", "limits.json", "report.md"):
        (out / name).unlink(missing_ok=True)
    chosen = [stage for stage in stages if stage.name in given.only]
    failures = {}
    with unpacked_wheels() as wheels:
        set_environment(out, wheels, is_smoke=given.cpu_smoke)
        running = Stages(out, deadline, is_smoke=given.cpu_smoke, fresh=given.fresh)
        for stage in smoke_stages(chosen) if given.cpu_smoke else chosen:
            print(f"{stage.name} …", flush=True)
            if failure := running.run(stage):
                failures[stage.name] = failure
    text, is_good = report(Lines.read(out / "results.jsonl"), failures)
    (out / "report.md").write_text(text, encoding="utf-8")
    print(text)
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
